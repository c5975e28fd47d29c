"""One run folder, one process that writes to it: a lock that ends with its process, however that ended.

    RUN/writer.lock   locked by the process that trains; the file stays, what counts is the system's lock on it
        writer.json   who that is: pid, host, since when; for the eye

The system gives a lock back when its process is gone, so one left by a kill stands in nobody's way. Who only reads a
run (report, runs, chat, eval) asks for none. Where the file system knows no locks, that is told, and the run goes on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strop.errors import InputError, UsageError
from strop.run import disk
from strop.run.folder import RunFolder

if TYPE_CHECKING:
    import filelock

LOCK, OWNER = "writer.lock", "writer.json"
_NO_LOCKS = frozenset((errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK))


@contextlib.contextmanager
def sole_writer(run: RunFolder, tell: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Makes this process the one that writes to a run, until the context ends.

    Args:
        run: the run.
        tell: is told where the file system has no locks.

    Raises:
        UsageError: another process is at work on it.
        SaveError: the run's folder cannot be written.
    """
    lock = _lock(run.path)
    try:
        taken = _take(lock, run.path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise disk.save_error(f"run {run.path} cannot be written", run.path / LOCK, reason, run.path) from None
    if not taken:
        tell("this file system has no locks that end with their process: see that no other one trains this run")
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        run.write_json(OWNER, {"pid": os.getpid(), "host": platform.node(), "since": now})
    try:
        yield
    finally:
        disk.discard(run.path / OWNER)
        lock.release()


def refuse_busy(path: Path) -> None:
    """Refuses a folder that another process writes a run to; whatever else it may be is left alone.

    Raises:
        UsageError: another process is at work on it.
    """
    if (path / LOCK).is_file():
        lock = _lock(path)
        with contextlib.suppress(OSError):
            _take(lock, path)
        lock.release()


def _lock(path: Path) -> filelock.BaseFileLock:
    import filelock

    return filelock.FileLock(path / LOCK)


def _take(lock: filelock.BaseFileLock, path: Path) -> bool:
    """Takes a lock; False where the file system has none that ends with its process."""
    import filelock

    if (path / LOCK).is_symlink():  # older versions of the library would follow it, and empty what it leads to
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer versions of the library turn to a lock by existence, and warn
            lock.acquire(timeout=0)
    except filelock.Timeout:
        raise _busy(path) from None
    except NotImplementedError:  # how older versions say ENOSYS
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return not isinstance(lock, filelock.SoftFileLock)


def _busy(path: Path) -> UsageError:
    owner: dict[str, Any] = {}
    with contextlib.suppress(InputError):
        owner = RunFolder(path).read_json(OWNER)
    pid, host, since = (owner.get(name) for name in ("pid", "host", "since"))
    if isinstance(pid, int) and host == platform.node():
        stop = f"stop it: kill -INT {pid}"
    else:
        stop = f"stop it where it runs; if you know that there is none, remove {path / LOCK}"
    return UsageError(
        f"another process is at work on the run {path}",
        expected="one process that writes to a run",
        found=f"process {pid} on {host}, since {since}" if owner else f"a lock on {path / LOCK}",
        do=f"wait for its end, or {stop}; then strop resume {path}. Reading (report, runs, chat) is free meanwhile",
    )
