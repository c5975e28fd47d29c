"""Runs in bfloat16 on a CPU: the same samples and, within its rounding, losses under any plan; the same bits after a
signal; what the command line says of the dtype."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from strop.cli.main import main
from strop.evaluate.tuned import load_tuned
from strop.kernels import blas
from strop.run.folder import RunFolder
from strop.training.session import resume_run
from tiny_run import PLAN, Tiny, course, values

LOW = {**PLAN, "dtype": "bfloat16"}
OTHERWISE = {
    "pack_tokens": 70,
    "recompute_layers": 1,
    "recompute_elementwise": 1,
    "dense_layers": 0,
    "loss_chunk": 3,
    "embedding": "file",
    "threads": 2,
}
# Half a unit in the last place of bfloat16 is 0.2 %; a loss is a mean over many tokens.
ROUNDING = 0.01

pytestmark = pytest.mark.usefixtures("restore_threads")

# Strikes a run by SIGINT when its second step is told, as Ctrl-C does.
STRUCK = """
import os, signal, sys
from strop.cli.main import main
from strop.cli import progress
told = progress.TerminalListener.on_event
def on_event(self, event):
    told(self, event)
    if event["kind"] == "step" and event["step"] == 2:
        os.kill(os.getpid(), signal.SIGINT)
progress.TerminalListener.on_event = on_event
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def low(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return tiny.train(tmp_path_factory.mktemp("low") / "run", plan=LOW)


def test_no_other_plan_changes_the_samples_nor_the_losses_beyond_rounding(low: RunFolder, tiny: Tiny, tmp_path: Path):
    other = tiny.train(tmp_path / "other", plan={**LOW, **OTHERWISE})
    exact = tiny.train(tmp_path / "exact", plan=PLAN)
    for run in (other, exact):
        for name in ("step", "learned_tokens", "tokens", "lr"):
            assert values(run, "step", name) == values(low, "step", name), name
        assert values(run, "watch", "held_out_tokens") == values(low, "watch", "held_out_tokens")
        for kind, name in (("step", "loss"), ("watch", "held_out_loss")):
            assert values(run, kind, name) == pytest.approx(values(low, kind, name), rel=ROUNDING), name
    assert values(exact, "step", "loss") != values(low, "step", "loss")


def test_the_same_plan_gives_the_same_bits(low: RunFolder, tiny: Tiny, tmp_path: Path):
    assert course(tiny.train(tmp_path / "again", plan=LOW)) == course(low)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send to a process")
def test_a_signal_and_a_resume_through_the_command_line_end_with_the_same_bytes(
    low: RunFolder, tiny: Tiny, tmp_path: Path
):
    run = RunFolder(tmp_path / "run")
    flags = tiny.flags(run.path, {"plan.dtype": "bfloat16"})
    line = [sys.executable, "-c", STRUCK, *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    struck = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    assert struck.returncode == 5, struck.stderr
    assert "Traceback" not in struck.stderr
    assert "cpu, bfloat16, 1 thread" in struck.stderr
    assert run.read_json("plan.json")["dtype"] == "bfloat16"
    assert values(run, "step", "step") == [1, 2]
    resume_run(run.path)
    assert course(run) == course(low)
    assert "bfloat16" in (run.path / "report.html").read_text(encoding="utf-8")


def test_strop_plan_names_the_dtype(tiny: Tiny, capsys: pytest.CaptureFixture[str]):
    line = ["plan", str(tiny.model), str(tiny.data), "--data.eval", "4"]
    assert main([*line, "--plan.dtype", "bfloat16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["plan"]["dtype"], found["plan"]["matmul"]) == ("bfloat16", blas.libraries(torch.bfloat16)[0])
    assert {item["dtype"] for item in found["machine"]["matmul"]} == {"bfloat16"}
    assert set(found["machine"]["dtypes"]) in (set(), {"float32", "bfloat16"})
    assert main([*line, "--plan.dtype", "bfloat16", "--plan.matmul", "openblas"]) == 2
    assert "does nothing in bfloat16" in capsys.readouterr().err


def test_asking_says_that_it_computes_in_another_dtype(low: RunFolder, finished: RunFolder):
    told: list[str] = []
    model = load_tuned(low.path, told.append)
    said = [line for line in told if "the run was tuned in bfloat16" in line]
    assert bool(said) == (model.plan.dtype != "bfloat16")
    told.clear()
    load_tuned(finished.path, told.append)
    assert not any("tuned in" in line for line in told)
