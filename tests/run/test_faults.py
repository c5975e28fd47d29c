"""A run's files under everything that can happen to a disk: kills, errors and power cuts at every single call.

The run is a pretended one: real folder, logs and checkpoints, and content that a step decides. So thousands of faults
take seconds, and whatever is found afterwards can be compared byte by byte. `tests/training/test_faults_of_a_run.py`
has fewer faults and real training.
"""

import errno
import os
import shutil
from functools import partial
from itertools import count
from pathlib import Path
from random import Random, SystemRandom

import pytest

from faults import Deadly, Failing, Forgetful, in_a_process, in_place
from power_cut import Recorder
from strop.errors import SaveError, UsageError
from strop.run import disk
from strop.run.checkpoint import newest_checkpoint, write_checkpoint
from strop.run.folder import RunFolder, create_run, open_run
from strop.run.journal import Journal

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals, forks and syncs of POSIX")

STEPS, EVERY = 8, 2
CODES = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EACCES, errno.EROFS)
RECORD = {"recipe.yaml": b"model: m\n", "plan.json": b"{}\n", "manifest.json": b'{"model": {}}\n'}


def contents(step: int) -> dict[str, bytes]:
    """What the checkpoint of a step holds; sectors and less."""
    random = Random(step)
    return {"adapter.bin": random.randbytes(1300), "moments.bin": random.randbytes(2100), "config.json": b"{}\n"}


def files(of: dict[str, bytes]) -> dict[str, disk.File]:
    return {name: disk.File(len(content), iter([content[:700], content[700:]])) for name, content in of.items()}


def write_record(run: RunFolder) -> None:
    for name, content in RECORD.items():
        disk.replace_file(run.path / name, content)


def work(run: RunFolder, saves: list[int] | None = None, steps: int = STEPS) -> None:
    """Goes on from the newest checkpoint, as a session does: logs cut back, steps, saves that may fail, the adapter."""
    checkpoint, _ = newest_checkpoint(run.checkpoints)
    first = checkpoint.step if checkpoint else 0
    run.sweep()
    assert run.cut_logs(first, checkpoint.logs if checkpoint else {}) == []
    journal = Journal(run, None)
    try:
        if checkpoint:
            journal.saved(checkpoint)
        for step in range(first + 1, steps + 1):
            journal.event("step", step, loss=1 / step)
            if step % EVERY == 0:
                try:
                    made = write_checkpoint(run.checkpoints, step, files(contents(step)), {}, journal.sync())
                except SaveError as error:
                    assert error.path
                    assert error.free_bytes is not None
                    journal.event("save_failed", step)
                    continue
                journal.saved(made)
                if saves is not None:
                    saves.append(step)
        run.publish_adapter(files(contents(steps)))
        journal.event("end", steps)
        journal.sync()
    finally:
        journal.close()


def start(path: Path, saves: list[int] | None = None) -> None:
    """A run from its beginning, or from wherever it is."""
    run = open_run(path) if path.exists() else create_run(path, write_record)
    work(run, saves)


def logged(run: RunFolder, *kinds: str) -> list[tuple[str, int]]:
    return [(event["kind"], event["step"]) for event in run.lines(run.events) if event["kind"] in kinds]


def check_found(path: Path, at_least: int) -> None:
    """Whatever happened: nothing half under a final name, no checkpoint but whole ones, nothing lost that was saved."""
    if path.exists():
        run = open_run(path)
        assert {name: (path / name).read_bytes() for name in RECORD} == RECORD
        checkpoint, _ = newest_checkpoint(run.checkpoints)
        assert (checkpoint.step if checkpoint else 0) >= at_least
        if checkpoint:
            assert {name: (checkpoint.path / name).read_bytes() for name in contents(0)} == contents(checkpoint.step)
        if run.adapter.exists():
            assert {file.name: file.read_bytes() for file in run.adapter.iterdir()} == contents(STEPS)
    else:
        assert at_least == 0


def check_ended(path: Path) -> None:
    """A run that has come to its end: every event once, in order; two checkpoints; the adapter; nothing else."""
    run = open_run(path)
    assert logged(run, "step") == [("step", step) for step in range(1, STEPS + 1)]
    assert logged(run, "end") == [("end", STEPS)]
    saved = [step for _, step in logged(run, "save", "save_failed")]
    assert saved == list(range(EVERY, STEPS + 1, EVERY))
    assert {file.name: file.read_bytes() for file in run.adapter.iterdir()} == contents(STEPS)
    names = sorted(entry.name for entry in path.iterdir())
    assert names == ["adapter", "checkpoints", "events.jsonl", "manifest.json", "plan.json", "recipe.yaml"]
    assert all(entry.name.startswith("step-") for entry in run.checkpoints.iterdir())


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many calls a run makes when nothing goes wrong."""
    root = tmp_path_factory.mktemp("calls")
    with in_place(Recorder(root)) as recorder:
        start(root / "run")
    check_ended(root / "run")
    assert recorder.count > 150
    return recorder.count


# The fast share takes every n-th call, beginning anywhere.
SHARES = [pytest.param(7, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)]


def numbers(calls: int, share: int) -> range:
    """Numbers of calls to strike at."""
    first = SystemRandom().randint(1, share)
    print(f"calls {first}, {first + share}, … of {calls}")
    return range(first, calls + 1, share)


class Told(list[int]):
    """Steps that were saved, told to another process."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def append(self, step: int) -> None:
        self.path.write_text(str(step))


# ── killed ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def strike(number: int, path: Path, told: Path) -> None:
    with in_place(Deadly(number)):
        start(path, Told(told))


@pytest.mark.parametrize("share", SHARES)
def test_killed_at_every_call(share: int, calls: int, memory_path: Path):
    """SIGKILL before a call, or inside a write; then the run is gone on with, and ends as if nothing had been."""
    path, told = memory_path / "run", memory_path / "told"
    for number in [*numbers(calls, share), calls + 1]:
        told.write_text("0")
        status = in_a_process(partial(strike, number, path, told))
        assert os.WIFSIGNALED(status) == (number <= calls), number
        check_found(path, int(told.read_text()))
        if os.WIFSIGNALED(status):
            start(path)
        check_ended(path)
        assert sorted(entry.name for entry in memory_path.iterdir()) == ["run", "told"], "what was begun is swept"
        shutil.rmtree(path)


# ── failing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("code", CODES, ids=lambda code: errno.errorcode[code])
def test_an_error_at_every_call(code: int, for_ever: bool, share: int, calls: int, memory_path: Path):
    """The run ends, or says what could not be written; what was saved stands, and it can be gone on with."""
    path = memory_path / "run"
    outcomes: list[str] = []
    for number in numbers(calls, share):
        saves: list[int] = []
        outcome = "ended"
        with in_place(Failing(number, code, for_ever)) as failing:
            try:
                start(path, saves)
            except (SaveError, UsageError) as error:
                outcome = type(error).__name__
                assert os.strerror(code) in error.found
                assert "bytes free" in error.found
        assert failing.count >= number
        outcomes.append(outcome)
        check_found(path, saves[-1] if saves else 0)
        if outcome != "ended":
            start(path)
        check_ended(path)
        shutil.rmtree(path)
        for stray in memory_path.iterdir():
            assert for_ever
            shutil.rmtree(stray)
    ended = outcomes.count("ended") / len(outcomes)
    assert ended < 0.1 if for_ever else ended > 0.5, "one fault does not end a run, and none that stays is passed over"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reaches a file by its handle as Linux does")
def test_what_a_failed_sync_forgot_is_written_again(memory_path: Path):
    """A sync fails and drops what it should have kept; the next one of the same file would say that all is well."""
    path = memory_path / "run"
    for number in count(1):
        try:
            with in_place(Forgetful(number)) as forgetful:
                start(path)
        except (SaveError, UsageError):
            start(path)
        check_ended(path)
        checkpoint, skipped = newest_checkpoint(path / "checkpoints")
        assert checkpoint is not None
        assert not skipped
        assert RunFolder(path).cut_logs(checkpoint.step, checkpoint.logs) == []
        shutil.rmtree(path)
        assert isinstance(forgetful, Forgetful)
        if forgetful.syncs < number:
            break
    assert number > 20


# ── the power goes ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("cuts", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_power_cuts(cuts: int, memory_path: Path):
    """At a random call the power goes; of what was not synced anything may be left. What is found is whole."""
    seed = SystemRandom().randrange(10**9)
    print(f"seed {seed}")
    random, saves = Random(seed), list[tuple[int, int]]()

    class Noted(list[int]):
        def append(self, step: int) -> None:
            saves.append((recorder.count, step))

    with in_place(Recorder(memory_path)) as recorder:
        start(memory_path / "run", Noted())
    assert isinstance(recorder, Recorder)
    found = memory_path / "found"
    whole = 0
    for number in range(cuts):
        cut = random.randint(0, recorder.count)
        recorder.disk_after(cut).crash(random, found)
        check_found(found / "run", max((step for calls, step in saves if calls <= cut), default=0))
        checkpoint, skipped = newest_checkpoint(found / "run" / "checkpoints")
        assert not skipped, "a name that is there is that of a whole checkpoint"
        if checkpoint:
            whole += 1
            run = open_run(found / "run")
            assert run.cut_logs(checkpoint.step, checkpoint.logs) == [], "its logs are there up to it"
            assert logged(run, "step") == [("step", step) for step in range(1, checkpoint.step + 1)]
        if number % 10 == 0:
            start(found / "run")
            check_ended(found / "run")
        shutil.rmtree(found)
    assert whole > cuts // 2
