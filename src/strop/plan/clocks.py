"""How long something takes: on a CPU by the wall, on a GPU by events that the device itself records.

A clock is called with what is to be run and about how many seconds that may be repeated for, and gives seconds a run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

Run = Callable[[], object]
Clock = Callable[[Run, float], float]

# Rounds that a GPU's runs are timed in; the middle one counts.
_ROUNDS = 3
_MOST_RUNS = 200


def wall_clock(run: Run, seconds: float) -> float:
    """Seconds of the middle one of a few runs; the first does not count where there is time for another."""
    found: list[float] = []
    began = time.perf_counter()
    while True:
        start = time.perf_counter()
        run()
        end = time.perf_counter()
        found.append(end - start)
        # A machine that is busy with something else must not hold up the plan: three times the time is the end of it.
        if end - began >= (seconds if len(found) > 3 else 3 * seconds):
            return statistics.median(found[1:] or found)


class Event(Protocol):
    """`torch.cuda.Event`, as far as it is used here."""

    def record(self) -> None:
        """Notes the time when the device gets here."""

    def synchronize(self) -> None:
        """Waits until it has."""

    def elapsed_time(self, end_event: Any) -> Any:
        """Milliseconds to a later one."""


def _cuda_event() -> Event:
    return torch.cuda.Event(enable_timing=True)


class EventClock:
    """Times runs on a GPU: so many of them one after another that the host's launches do not show.

    Args:
        event: makes an event; another maker stands in for a device in tests.
    """

    def __init__(self, event: Callable[[], Event] = _cuda_event) -> None:
        self._event = event

    def __call__(self, run: Run, seconds: float) -> float:
        """Seconds of a run, the middle one of three rounds."""
        run()  # what is compiled or chosen at the first call is not of interest
        once = self._round(run, 1)
        count = max(1, min(_MOST_RUNS, int(seconds / max(once, 1e-6) / _ROUNDS)))
        return statistics.median(self._round(run, count) for _ in range(_ROUNDS))

    def _round(self, run: Run, count: int) -> float:
        first, last = self._event(), self._event()
        first.record()
        for _ in range(count):
            run()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3 / count
