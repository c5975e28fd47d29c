"""Ctrl-C at any moment of a command's first seconds, the imports above all: words, a documented code, no traceback.

What Python does before Strop's first line is not Strop's: the clock of a test starts when the handlers stand, which
Linux tells in /proc (SIGTERM is caught; Python itself leaves it alone).
"""

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from strop.run.folder import RunFolder
from strop.run.summary import summarize
from strop.training.session import resume_run
from tiny_run import Tiny

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")

SECONDS = 3.0


@pytest.fixture(autouse=True)
def foreground() -> Iterator[None]:
    """SIGINT as a process in the foreground has it, whoever started the tests: what is caught here is not ignored by
    the processes that are started."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def listening(process: subprocess.Popen[str]) -> bool:
    """Whether a process catches SIGTERM."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return False
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")), "0")
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def struck(line: list[str], number: signal.Signals, after: float, times: int) -> tuple[int, str, str]:
    """Runs a command and sends a signal to its group, as a terminal does; its code and what it said."""
    with subprocess.Popen(
        [sys.executable, "-m", "strop", *line],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        while process.poll() is None and not listening(process):
            time.sleep(0.0005)
        for pause in [after] + [0.05] * (times - 1):
            time.sleep(pause)
            if process.poll() is None:
                os.killpg(process.pid, number)
        out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.mark.parametrize("count", [6, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_ctrl_c_in_the_first_seconds(count: int, tiny: Tiny, tmp_path: Path):
    seed = random.SystemRandom().randrange(10**9)
    print(f"seed {seed}")
    chance = random.Random(seed)
    codes: list[int] = []
    for attempt in range(count):
        run = RunFolder(tmp_path / f"run-{attempt}")
        verb = ("train", "plan", "data")[attempt % 3]
        line = {
            "train": tiny.flags(run.path, {"train.steps": 20}),
            "plan": ["plan", str(tiny.model), str(tiny.data)],
            "data": ["data", str(tiny.data), "--model", str(tiny.model), "--html", str(tmp_path / "data.html")],
        }[verb]
        as_json, number = chance.random() < 0.3, chance.choice((signal.SIGINT, signal.SIGINT, signal.SIGTERM))
        after, times = chance.uniform(0, SECONDS) ** 2 / SECONDS, chance.choice((1, 1, 2))
        code, out, err = struck([*line, "--json"] if as_json else line, number, after, times)
        said = f"{verb}, {number.name} × {times} after {after:.3f} s: {code}\n{out}\n{err}"
        codes.append(code)
        assert code in (0, 5, 130) or (times == 2 and code == 128 + number), said
        assert "Traceback" not in err, said
        assert "Exception ignored" not in err, said
        if code == 130 and times == 1:
            assert "interrupted" in (out if as_json else err), said
        assert not as_json or len([json.loads(line) for line in out.splitlines()]) <= 1, said
        assert not (tmp_path / "data.html").exists() or (tmp_path / "data.html").read_text().rstrip().endswith(
            "</html>"
        )
        if run.path.exists():
            if summarize(run)["state"] != "finished":
                resume_run(run.path)
            assert summarize(run)["state"] == "finished"
        if times == 1:
            assert not list(tmp_path.glob(".*")), said
    print(f"codes { {code: codes.count(code) for code in sorted(set(codes))} }")
    assert codes.count(130) > count // 4


def test_the_installed_command_is_the_one_that_listens_first():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = project["scripts"]["strop"].partition(":")
    assert importlib.import_module(module).main is getattr(importlib.import_module("strop.__main__"), function)
    script = "import sys, strop.__main__\nprint([name for name in sys.modules if name.startswith('strop')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "['strop', 'strop.__main__']\n", "what it imports before it listens"


def test_ignored_signals_stay_ignored():
    """As under nohup, or in the background of a script."""
    script = (
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nfrom strop import interrupts\n"
        "interrupts.install(False)\nsignal.raise_signal(signal.SIGINT)\nprint('here')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "here\n")


@pytest.mark.parametrize(
    ("work", "said"),
    [
        ("signal.raise_signal(signal.SIGINT)", "left"),
        ("with interrupts.at_work(): signal.raise_signal(signal.SIGINT)", "caught"),
        ("with interrupts.at_work(): import interrupted_module", "left"),
        ("with interrupts.at_work(): pass\n signal.raise_signal(signal.SIGINT)", "left quietly"),
    ],
)
def test_who_is_told_depends_on_what_goes_on(work: str, said: str, tmp_path: Path):
    module = "import signal\ntry:\n signal.raise_signal(signal.SIGINT)\nexcept BaseException:\n print('swallowed')\n"
    (tmp_path / "interrupted_module.py").write_text(module)
    script = (
        "import signal\nfrom strop import interrupts\ninterrupts.install(True)\n"
        f"try:\n {work}\nexcept KeyboardInterrupt:\n print('caught')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.stderr == ""
    if said == "caught":
        assert (done.returncode, done.stdout) == (0, "caught\n")
    else:
        assert done.returncode == 130
        assert said == "left quietly" or json.loads(done.stdout)["what"] == "interrupted"
        assert said == "left" or done.stdout == ""
