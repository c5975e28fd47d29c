"""What stops a run: numbers that are not finite, and the user."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

from strop.errors import Stopped


class NotFinite(Stopped):
    """A loss or a gradient was NaN or infinite; the adapter was not moved."""

    def __init__(self, what: str, samples: Sequence[int]) -> None:
        listed = ", ".join(map(str, samples[:8])) + (" …" if len(samples) > 8 else "")
        super().__init__(
            f"the {what} is not finite",
            expected="finite numbers",
            found=f"NaN or infinity, in samples {listed}",
            do="lower --train.lr, or look at these samples; the last checkpoint is whole",
        )


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a wish to stop after the step; the second one leaves at once.

    A context manager. Outside the main thread, where Python delivers no signals, it only holds the flag.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.reason:
            # The user asked twice: leave without running anything more. The last checkpoint is whole.
            os._exit(128 + number)
        self.reason = signal.Signals(number).name
