"""Ctrl-C and SIGTERM: the first asks, the second leaves.

    preparing, loading, looking   the first signal ends it there and then: nothing of it has to be kept
    a step, saving, ending        the first signal is noted; what was begun is finished, saved, and then the run stops
    anything                      the second signal ends the process within a second; the last checkpoint is whole

Python runs a handler only between two instructions of the main thread, and a product of matrices can take seconds. So
the signals are counted by a thread as well, which the system wakes through a pipe at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from strop import interrupts

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """The wish to stop. A context manager that takes both signals; outside the main thread, where Python delivers none,
    it only holds the wish.

    Args:
        tell: is told, from another thread, that a first signal is waiting for the end of what was begun.

    Attributes:
        reason: the first signal's name; empty before.
    """

    def __init__(self, tell: Callable[[str], None] = lambda _: None) -> None:
        self.reason = ""
        self._tell = tell
        self._held = False
        self._previous: dict[int, Any] = {}
        self._previous_pipe = -1
        self._pipe: tuple[int, int] | None = None
        self._thread = threading.Thread(target=self._count, name="strop signals", daemon=True)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            if os.name != "nt":  # there the pipe would have to be a socket, and the handler alone does
                self._pipe = os.pipe()
                os.set_blocking(self._pipe[1], False)
                self._previous_pipe = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
                self._thread.start()
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._pipe:
            signal.set_wakeup_fd(self._previous_pipe)
            os.close(self._pipe[1])
            self._thread.join()
            os.close(self._pipe[0])

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """What is done in here is finished whatever is asked."""
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """What is done in here ends at a signal.

        Raises:
            KeyboardInterrupt: a signal came.
        """
        before, self._held = self._held, False
        try:
            yield
        finally:
            self._held = before

    def check(self) -> None:
        """Ends what is done where a signal has come.

        Raises:
            KeyboardInterrupt: one has.
        """
        if self.reason:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.reason:
            _leave(number)
        self.reason = signal.Signals(number).name
        if not self._held:
            interrupts.leave_if_importing(frame, "run it again; strop resume goes on with a run that had begun")
            # A callback of an import's locks would swallow it, with a traceback; `check` ends what comes after.
            if not interrupts.importing(frame):
                raise KeyboardInterrupt

    def _count(self) -> None:
        """Reads the numbers of signals as they come, whatever the main thread is at."""
        assert self._pipe is not None
        seen = 0
        while numbers := os.read(self._pipe[0], 1):
            if numbers[0] not in _SIGNALS:
                continue
            seen += 1
            if seen > 1:
                _leave(numbers[0])
            if self._held:
                self._tell("stopping as soon as what was begun is done and saved; once more to leave at once")


def _leave(number: int) -> None:
    """Ends the process without running anything more."""
    if sys.stderr is not None and sys.stderr.isatty():
        os.write(2, b"\x1b[?25h\n")  # a progress bar hides the cursor
    os._exit(128 + number)
