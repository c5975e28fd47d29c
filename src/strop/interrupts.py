"""Ctrl-C and SIGTERM of the command line, from its first instant to its last: words and an exit code, no traceback.

    starting, importing   the process ends there and then, with 130 and two lines
    a verb at work        KeyboardInterrupt, so that what it began is cleared away
    reporting, leaving    the process ends there and then, with 130

Python's own handler raises KeyboardInterrupt wherever it finds the program: before there is anybody to catch it, and in
the middle of an import, whose locks and C code tell of it in tracebacks that nobody can catch, or swallow it. Nothing
that is imported has to be cleared away, so there the process simply ends. `strop.training.stop` takes over where there
is a run.

Until `install` has been called, Python itself answers: while the interpreter starts, a signal ends it with the system's
own code or with a traceback of Python's start, and no program can change that.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Literal, NoReturn

INTERRUPTED = 130

_AGAIN = "run it again"
_IMPORT = "<frozen importlib._bootstrap>"


class _State:
    installed = False
    as_json = False
    phase: Literal["starting", "at work", "done"] = "starting"


def install(as_json: bool) -> None:
    """Takes both signals for this process, which has to be one of the command line's. Ignored ones stay ignored.

    Args:
        as_json: the error is told as one JSON object on standard output.
    """
    _State.installed, _State.as_json = True, as_json
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)


@contextlib.contextmanager
def at_work() -> Iterator[None]:
    """What is done in here ends with KeyboardInterrupt, imports aside; the caller catches it."""
    _State.phase = "at work"
    try:
        yield
    finally:
        _State.phase = "done"


def ignore() -> None:
    """Lets neither signal take the place of the exit code while the interpreter leaves, which takes no time."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def leave_if_importing(frame: FrameType | None, do: str = _AGAIN) -> None:
    """Ends a process of the command line that is in the middle of an import; another one goes on.

    Args:
        frame: where the signal found it.
        do: what the user can do then.
    """
    if _State.installed and importing(frame):
        _leave(do)


def importing(frame: FrameType | None) -> bool:
    """Whether a frame is in the middle of an import."""
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT:
            return True
        frame = frame.f_back
    return False


def _handle(_number: int, frame: FrameType | None) -> None:
    if _State.phase != "at work":
        _leave(_AGAIN)
    leave_if_importing(frame)
    raise KeyboardInterrupt


def _leave(do: str) -> NoReturn:
    """Ends the process without running anything more."""
    facts = {"error": "StropError", "what": "interrupted", "expected": "", "found": "", "do": do, "exit": INTERRUPTED}
    words = json.dumps(facts) + "\n" if _State.as_json else f"error: interrupted\n        do: {do}\n"
    with contextlib.suppress(OSError, AttributeError):  # a stream that is closed, or none
        if sys.stderr.isatty():
            os.write(2, b"\x1b[?25h\n")  # a progress bar hides the cursor
        if _State.phase != "done":  # what was done is told, or being told
            os.write(1 if _State.as_json else 2, words.encode())
    os._exit(INTERRUPTED)
