"""One process writes to a run: the lock holds against processes and ends with them, and asks nothing of a stranger's
folder. `tests/training/test_one_writer.py` has the command line and real training."""

import errno
import os
import platform
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import pytest

from strop.errors import SaveError, UsageError
from strop.run.folder import RunFolder, create_run
from strop.run.writer import LOCK, OWNER, refuse_busy, sole_writer

posix = pytest.mark.skipif(os.name == "nt", reason="forks and signals of POSIX")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return create_run(tmp_path / "run")


@contextmanager
def another_process(work: Callable[[Callable[[], None]], None]) -> Iterator[int]:
    """A forked process that does something, tells that it has got somewhere, and then waits; its id."""
    ours, its = socket.socketpair()
    child = os.fork()
    if child == 0:

        def wait() -> None:
            its.send(b"there")
            signal.pause()

        try:
            work(wait)
        finally:
            os._exit(1)
    its.close()
    assert ours.recv(5) == b"there"
    try:
        yield child
    finally:
        ours.close()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def write(run: RunFolder) -> Callable[[Callable[[], None]], None]:
    def work(wait: Callable[[], None]) -> None:
        with sole_writer(run):
            wait()

    return work


@posix
def test_another_process_is_refused_until_the_first_is_gone(run: RunFolder):
    with another_process(write(run)) as pid:
        for refused in (lambda: sole_writer(run).__enter__(), lambda: refuse_busy(run.path)):
            with pytest.raises(UsageError, match="another process is at work on the run") as caught:
                refused()
            assert f"process {pid} on {platform.node()}, since 20" in caught.value.found
            assert f"kill -INT {pid}; then strop resume {run.path}" in caught.value.do
    # It was killed: its files are there, its lock is not.
    assert {LOCK, OWNER} <= {path.name for path in run.path.iterdir()}
    refuse_busy(run.path)
    with sole_writer(run):
        assert run.read_json(OWNER)["pid"] == os.getpid()
    assert not (run.path / OWNER).exists()


def test_the_same_process_is_refused_as_well(run: RunFolder):
    with sole_writer(run), pytest.raises(UsageError), sole_writer(run):
        pass
    with sole_writer(run):
        pass


@posix
def test_of_two_that_make_the_same_run_one_has_it(tmp_path: Path):
    path = tmp_path / "run"

    def make(wait: Callable[[], None]) -> None:
        create_run(path, lambda staged: wait())

    with another_process(make):
        (staged,) = tmp_path.glob(".run.staging-*")
        create_run(path, lambda run: run.write_json("manifest.json", {}))
        assert staged.is_dir(), "what a living process has begun is left alone"
        with pytest.raises(UsageError, match="cannot be made"):
            create_run(tmp_path / "other", lambda _: os.rename(staged, path))  # noqa: PTH104 - as the other will
    create_run(tmp_path / "third")
    assert not staged.exists(), "and swept when it is dead"


def test_what_another_machine_has_begun_is_left_alone(tmp_path: Path):
    foreign = tmp_path / ".run.staging-elsewhere-999999999"
    foreign.mkdir()
    create_run(tmp_path / "run")
    assert foreign.is_dir()


@pytest.mark.parametrize(
    "owner", [None, "{", "[]", '{"pid": "7; rm -rf /", "host": ["x"]}', '{"pid": 7, "host": "elsewhere"}']
)
def test_who_it_is_may_be_unknown(run: RunFolder, owner: str | None):
    with sole_writer(run):
        (run.path / OWNER).unlink()
        if owner is not None:
            (run.path / OWNER).write_text(owner)
        with pytest.raises(UsageError) as caught:
            refuse_busy(run.path)
    assert "kill" not in caught.value.do
    assert f"remove {run.path / LOCK}" in caught.value.do


@posix
def test_a_link_in_place_of_the_lock_is_not_followed(run: RunFolder, tmp_path: Path):
    victim = tmp_path / "victim"
    victim.write_text("years of work")
    (run.path / LOCK).symlink_to(victim)
    with pytest.raises(SaveError, match="cannot be written"), sole_writer(run):
        pass
    assert victim.read_text() == "years of work"


def test_a_folder_without_a_lock_is_left_as_it_is(tmp_path: Path):
    refuse_busy(tmp_path)
    refuse_busy(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [NotImplementedError(), OSError(errno.ENOLCK, "No locks available")])
def test_where_there_are_no_locks_it_is_told(run: RunFolder, error: Exception, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", fail)
    told: list[str] = []
    with sole_writer(run, told.append):
        assert len(told) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_said(run: RunFolder):
    run.path.chmod(0o500)
    try:
        with pytest.raises(SaveError, match="cannot be written"), sole_writer(run):
            pass
    finally:
        run.path.chmod(0o700)
