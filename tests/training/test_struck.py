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

from tiny_run import Tiny, memory_folder

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and forks of POSIX")

CHANGES = {"train.save_every": 2, "watch.every": 10, "watch.answer_tokens": 3}
DIRECTORY = Path(__file__).parents[1]


Order = dict[str, Any]


def strike(tiny: Tiny, *orders: Order) -> list[dict[str, Any]]:
    """Carries out orders of `striking` and checks that every run came to what the undisturbed one came to."""
    seed = SystemRandom().randrange(10**9)
    print(f"seed {seed}")
    with memory_folder() as folder:
        path = folder / "orders.json"
        common = {"model": str(tiny.model), "data": str(tiny.data), "folder": str(folder), "seed": seed}
        path.write_text(json.dumps([common, orders]))
        done = subprocess.run(
            [sys.executable, str(DIRECTORY / "striking.py"), str(path)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for order, found in zip(orders, results, strict=True):
        print(f"{order['do']}: codes {found['codes']}; {done.stderr.splitlines()[-1:]}")
        check(order, found)
    return results


def check(order: Order, found: dict[str, Any]) -> None:
    assert found["whole"]["strays"] == []
    for run in found["runs"]:
        if order.get("code") and run["saves"][-1:] != found["whole"]["saves"][-1:]:
            # The last save failed and the run ended all the same: its newest checkpoint is an older one.
            run["checkpoint"] = found["whole"]["checkpoint"]
        if order["do"] == "signals" or order.get("code"):  # a stop saves once more, a failed save once less
            run["saves"] = found["whole"]["saves"]
        assert run == found["whole"]


def kills(count: int, steps: int) -> Order:
    return {"do": "kills", "kills": count, "changes": {**CHANGES, "train.steps": steps}}


def signals(count: int) -> Order:
    return {"do": "signals", "signals": count, "changes": {**CHANGES, "train.steps": 40}}


def check_kills(found: dict[str, Any], count: int) -> None:
    assert found["codes"]["-9"] == count
    assert set(found["codes"]) <= {"-9", "0", "2"}, "killed, ended, or killed when it had ended"
    print(f"{len(found['runs'])} runs")


def check_signals(found: dict[str, Any], count: int) -> None:
    assert sum(found["codes"].values()) == count
    # Before Strop listens the system ends the process: nothing has been written then.
    assert set(found["codes"]) <= {"0", "5", "130", "-15"}


def test_killed_and_asked_to_stop_at_random_instants(tiny: Tiny):
    """The fast share of the two tests that follow, in one process that imports everything once."""
    killed, asked = strike(tiny, kills(20, 100), signals(5))
    check_kills(killed, 20)
    check_signals(asked, 5)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_random_instants(tiny: Tiny):
    (found,) = strike(tiny, kills(200, 800))
    check_kills(found, 200)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_asked_to_stop_at_random_instants(tiny: Tiny):
    (found,) = strike(tiny, signals(100))
    check_signals(found, 100)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_every_call_of_a_run(tiny: Tiny):
    (found,) = strike(tiny, {"do": "calls", "share": 1, "changes": {}})
    assert found["codes"] == {"-9": found["calls"], "0": 1}
    assert found["calls"] > 150


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
def test_an_error_at_every_third_call_of_a_run(code: int, for_ever: bool, tiny: Tiny):
    (found,) = strike(tiny, {"do": "calls", "share": 3, "code": code, "for_ever": for_ever, "changes": {}})
    assert set(found["codes"]) <= {"0", "2", "5"}
