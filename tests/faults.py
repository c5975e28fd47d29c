"""An `os` for `strop.run.disk` that counts its calls and does something at the n-th: fail, kill, or only remember.

    Recorder   all calls, as a list of operations on an imagined disk (tests/power_cut.py replays it)
    Failing    an errno at the n-th call, once or from then on
    Forgetful  a failed fsync, after which what was not synced is gone and the next one succeeds
    Deadly     SIGKILL before the n-th call, or in the middle of it

Everything else is the real `os`. A call is one that changes files or makes a change last: open, write, fsync, close,
ftruncate, replace, mkdir, unlink, rmdir.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from strop.run import disk

CALLS = ("open", "write", "fsync", "close", "ftruncate", "replace", "mkdir", "unlink", "rmdir")


class Counting:
    """Counts the calls and passes them on."""

    def __init__(self) -> None:
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            return self.do(name, lambda *changed: real(*(changed or arguments), **named), arguments)

        return call

    def do(self, _name: str, real: Callable[..., Any], _arguments: tuple[Any, ...]) -> Any:
        """One call."""
        return real()


class Failing(Counting):
    """Raises an error at the n-th call (from 1); ``for_ever``: and at every later one.

    A write that fails takes half of its bytes first, as a disk does that fills up. A handle is closed whatever it says.
    """

    def __init__(self, number: int, code: int, for_ever: bool) -> None:
        super().__init__()
        self.number, self.code, self.for_ever = number, code, for_ever

    def do(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if self.count == self.number or (self.for_ever and self.count > self.number):
            if name == "write" and not self.for_ever and len(arguments[1]) > 1:
                self.number += 1  # half is taken, and the rest fails
                return real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
            if name == "close":
                real()
            raise OSError(self.code, os.strerror(self.code))
        return real()


class Forgetful(Counting):
    """Fails the n-th fsync of a file (from 1) and drops what was written since the last one; later ones succeed.

    So do ext4 and xfs: the pages are called clean, and nobody is told again.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.syncs = number, 0
        self.kept: dict[int, int] = {}  # inode: bytes that were synced

    def do(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if name != "fsync":
            return real()
        about = os.fstat(arguments[0])
        if not stat.S_ISREG(about.st_mode):
            return real()
        self.syncs += 1
        if self.syncs == self.number:
            os.truncate(f"/proc/self/fd/{arguments[0]}", self.kept.get(about.st_ino, 0))
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.kept[about.st_ino] = about.st_size
        return real()


class Deadly(Counting):
    """Kills the process before the n-th call (from 1), or, where that is a write, when half of it is done."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def do(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if self.count == self.number:
            if name == "write":
                real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return real()


@contextmanager
def in_place(fake: Counting) -> Iterator[Counting]:
    """Puts it in the place of `os` in `strop.run.disk`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "os", fake)
        yield fake


def in_a_process(work: Callable[[], None]) -> int:
    """Does something in a forked process that ends in no other way; its exit status as `os.waitpid` has it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]
