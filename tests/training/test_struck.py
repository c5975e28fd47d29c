"""Real training under real SIGKILLs, signals and errors: whatever happened, it ends with the same bytes.

Dropout is on. What is compared is `striking.outcome`: each number of each step, held-out losses, answers, saves, the
adapter, and the optimiser's state in the last checkpoint.
"""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from random import SystemRandom
from typing import Any

import pytest

from tiny_run import Tiny

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and forks of POSIX")

CHANGES = {"train.save_every": 2, "watch.every": 10, "watch.answer_tokens": 3}
DIRECTORY = Path(__file__).parents[1]


def strike(tiny: Tiny, folder: Path, **order: Any) -> dict[str, Any]:
    """Carries out an order of `striking` and checks that every run came to what the undisturbed one came to."""
    seed = SystemRandom().randrange(10**9)
    print(f"seed {seed}")
    path = folder / "order.json"
    places = {"model": str(tiny.model), "data": str(tiny.data), "folder": str(folder), "seed": seed}
    path.write_text(json.dumps({**places, **order}))
    done = subprocess.run(
        [sys.executable, str(DIRECTORY / "striking.py"), str(path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"codes {found['codes']}; {done.stderr.splitlines()[-1:]}")
    assert found["whole"]["strays"] == []
    for run in found["runs"]:
        if order.get("code") and run["saves"][-1:] != found["whole"]["saves"][-1:]:
            # The last save failed and the run ended all the same: its newest checkpoint is an older one.
            run["checkpoint"] = found["whole"]["checkpoint"]
        if order["do"] == "signals" or order.get("code"):  # a stop saves once more, a failed save once less
            run["saves"] = found["whole"]["saves"]
        assert run == found["whole"]
    return found


@pytest.mark.parametrize(
    ("kills", "steps"),
    [
        pytest.param(20, 150, id="20"),
        pytest.param(200, 800, id="200", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_killed_at_random_instants(kills: int, steps: int, tiny: Tiny, memory_path: Path):
    found = strike(tiny, memory_path, do="kills", kills=kills, changes={**CHANGES, "train.steps": steps})
    assert found["codes"]["-9"] == kills
    assert set(found["codes"]) <= {"-9", "0", "2"}, "killed, ended, or killed when it had ended"
    print(f"{len(found['runs'])} runs")


@pytest.mark.parametrize("count", [5, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_asked_to_stop_at_random_instants(count: int, tiny: Tiny, memory_path: Path):
    found = strike(tiny, memory_path, do="signals", signals=count, changes={**CHANGES, "train.steps": 40})
    assert sum(found["codes"].values()) == count
    # Before Strop listens the system ends the process: nothing has been written then.
    assert set(found["codes"]) <= {"0", "5", "130", "-15"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_every_call_of_a_run(tiny: Tiny, memory_path: Path):
    found = strike(tiny, memory_path, do="calls", share=1, changes={})
    assert found["codes"] == {"-9": found["calls"], "0": 1}
    assert found["calls"] > 150


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
def test_an_error_at_every_third_call_of_a_run(code: int, for_ever: bool, tiny: Tiny, memory_path: Path):
    found = strike(tiny, memory_path, do="calls", share=3, code=code, for_ever=for_ever, changes={})
    assert set(found["codes"]) <= {"0", "2", "5"}
