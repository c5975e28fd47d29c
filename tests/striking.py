"""Kills real training again and again, in processes that start in no time.

A program of its own (`python tests/striking.py ORDER.json`): it imports everything once and forks a process for each
attempt, so that an attempt costs the training and not three seconds of imports. It trains nothing itself, for a fork
has no threads but one.

    kills    SIGKILL at random instants over one run, started again each time
    calls    SIGKILL at every n-th call that changes a file, each in a run of its own, gone on with afterwards
    errors   an error at every n-th call, once or for ever; the same
    signals  SIGINT or SIGTERM at a random instant, each in a run of its own

The results are printed as JSON, an order a line: what each run came to, and how the processes ended.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from random import Random
from typing import Any

import faults

Order = dict[str, Any]


def attempt(order: Order, run: Path, around: Any = None) -> Callable[[], int]:
    """Training from the start, or from wherever the run is; the exit code."""

    def work() -> int:
        from strop.errors import StropError
        from strop.training.session import resume_run
        from tiny_run import Tiny

        tiny = Tiny(Path(order["model"]), Path(order["data"]))
        try:
            with around or nullcontext():
                if (run / "manifest.json").exists():
                    resume_run(run)
                else:
                    tiny.train(run, order["changes"])
        except StropError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt:
            return 130
        return 0

    return work


def fork(work: Callable[[], int]) -> int:
    """A process that does it and nothing else."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        code = work()
        sys.stderr.flush()
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """The exit code of a process, or minus its signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def timed(order: Order, run: Path) -> tuple[float, float]:
    """Seconds of an undisturbed run: until the first step, and from there to the end."""
    began = time.time()
    child = fork(attempt(order, run))
    first = 0.0
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if (
            not first
            and (run / "events.jsonl").exists()
            and b'"step", "step": 1' in (run / "events.jsonl").read_bytes()
        ):
            first = time.time()
        time.sleep(0.002)
    assert first, "the run did not train"
    return first - began, time.time() - first


def outcome(run: Path) -> dict[str, Any]:
    """What a run came to: all that is to be the same, the optimiser's state included."""
    import hashlib

    from strop.run.checkpoint import newest_checkpoint
    from strop.run.folder import RunFolder
    from tiny_run import course

    found = course(RunFolder(run))
    checkpoint, skipped = newest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    assert not skipped
    found["checkpoint"] = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(checkpoint.path.iterdir())
        if file.name != "manifest.json"
    }
    found["adapter"] = hashlib.sha256(found["adapter"]).hexdigest()
    found["strays"] = sorted(path.name for path in run.rglob(".*"))
    return found


def kills(order: Order, folder: Path, random: Random) -> dict[str, Any]:
    """SIGKILLs over one run."""
    starting, _ = timed(order, folder / "whole")
    steps = int(order["changes"]["train.steps"])
    codes: Counter[int] = Counter()
    runs = [folder / "run-0"]
    while (left := order["kills"] - codes[-signal.SIGKILL]) > 0:
        child = fork(attempt(order, runs[-1]))
        if random.random() < 0.4:
            time.sleep(random.uniform(0, starting))
        else:
            # So that the run has not ended when the last one falls: what is left of it, shared out.
            begun = saved(runs[-1])
            wait_for_step(runs[-1], child, random.randint(begun, begun + (steps - begun) // (left + 1)))
            time.sleep(random.uniform(0, 0.01))
        os.kill(child, signal.SIGKILL)
        code = ended(child)
        codes[code] += 1
        if code in (0, 2):  # it was faster, or had ended when the last one fell; the next one strikes another run
            runs.append(folder / f"run-{len(runs)}")
    codes[ended(fork(attempt(order, runs[-1])))] += 1
    return {"whole": outcome(folder / "whole"), "runs": [outcome(run) for run in runs], "codes": codes}


def saved(run: Path) -> int:
    """The step of the newest checkpoint."""
    return max((int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")), default=0)


def wait_for_step(run: Path, child: int, step: int) -> None:
    """Waits until a process has got so far, or has ended."""
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if (run / "events.jsonl").exists():
            with (run / "events.jsonl").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
                found = re.findall(rb'"kind": "step", "step": (\d+),', file.read())
            if found and int(found[-1]) >= step:
                return
        time.sleep(0.001)


class Told(faults.Counting):
    """Counts calls, and tells how many there were."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def do(self, _name: str, real: Callable[..., Any], _arguments: tuple[Any, ...]) -> Any:
        self.path.write_text(str(self.count))
        return real()


def calls(order: Order, folder: Path, random: Random) -> dict[str, Any]:
    """A kill or an error at every n-th call."""
    counting = Told(folder / "calls")
    ended(fork(attempt(order, folder / "whole", faults.in_place(counting))))
    last = int(counting.path.read_text())
    codes: Counter[int] = Counter()
    runs = []
    number = random.randint(1, order["share"])
    while True:
        run = folder / f"run-{number}"
        code, for_ever = order.get("code"), order.get("for_ever", False)
        fake = faults.Failing(number, code, for_ever) if code else faults.Deadly(number)
        first = ended(fork(attempt(order, run, faults.in_place(fake))))
        codes[first] += 1
        if first != 0:
            assert ended(fork(attempt(order, run))) in (0, 2)  # 2: it had ended, and was killed at its report
        runs.append(outcome(run))
        shutil.rmtree(run)
        if number > last:
            break
        number += order["share"]
    return {"whole": outcome(folder / "whole"), "runs": runs, "codes": codes, "calls": last}


def signals(order: Order, folder: Path, random: Random) -> dict[str, Any]:
    """A signal at a random instant; a run that was stopped is gone on with."""
    starting, training = timed(order, folder / "whole")
    codes: Counter[int] = Counter()
    runs = []
    for number in range(order["signals"]):
        run = folder / f"run-{number}"
        child = fork(attempt(order, run))
        time.sleep(0.01 + random.uniform(0, starting + training))
        os.kill(child, random.choice((signal.SIGINT, signal.SIGTERM)))
        code = ended(child)
        codes[code] += 1
        assert (run / "manifest.json").exists() or code in (130, -signal.SIGTERM), code
        if code != 0:
            assert ended(fork(attempt(order, run))) == 0
        runs.append(outcome(run))
        shutil.rmtree(run)
    return {"whole": outcome(folder / "whole"), "runs": runs, "codes": codes}


def time_the_machine_once(folder: Path, order: Order) -> None:
    """Lets a process time the machine, and has every later one take its word: attempts are short then."""
    from strop.plan import choose

    kept, probe = folder / "rates", choose.probe

    def timing(*arguments: Any, **named: Any) -> Any:
        rates = probe(*arguments, **named)
        kept.write_bytes(pickle.dumps(rates))
        return rates

    choose.probe = timing
    assert ended(fork(attempt(order, folder / "first"))) == 0
    rates = pickle.loads(kept.read_bytes())
    choose.probe = lambda *_arguments, **_named: rates


def main() -> None:
    """Carries out orders, one after the other."""
    import strop.training.session

    assert strop.training.session
    common, orders = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    time_the_machine_once(Path(common["folder"]), {**common, "changes": {"train.steps": 1}})
    for number, order in enumerate(orders):
        folder = Path(common["folder"]) / str(number)
        folder.mkdir()
        do = {"kills": kills, "calls": calls, "signals": signals}[order["do"]]
        print(json.dumps(do({**common, **order}, folder, Random(common["seed"]))), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
