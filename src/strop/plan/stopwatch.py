"""How long an operation takes: the middle one of a few runs, each over memory that is out of the caches.

In a step an operation finds its operands where other layers' have driven them out. So every run takes the next stretch
of a ring that is larger than the caches are. With one operand over and over, norms seemed 4 times as fast as they are
in a step, and dequantising 5 times (Zen 5, 32 MiB).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

# Seconds that the repetitions of one operation may take.
SECONDS = 0.02
# Numbers of an operation's largest operand, and of the ring: 16 and 96 MiB in float32.
NUMBERS = 1 << 22
RING = 6 * NUMBERS


class Ring:
    """Memory whose stretches are taken in turn, so that each is out of the caches when its turn comes again."""

    def __init__(self) -> None:
        self._memory, self._at = numbers(RING), 0

    def take(self, *shape: int) -> Tensor:
        """The next stretch; what an earlier run wrote to it is still there."""
        count = prod(shape)
        if count > len(self._memory):
            return numbers(*shape)
        if self._at + count > len(self._memory):
            self._at = 0
        self._at += count
        return self._memory[self._at - count : self._at].view(shape)

    def time(self, run: Callable[[], object]) -> float:
        """Seconds of a run, over ordinary numbers: denormal ones, which some operations end in, would be slow."""
        self._memory.fill_(0.5)
        # The first run pays for memory and threads: ten times what a unit by autograd takes after it.
        run()
        return typical(run)


def numbers(*shape: int) -> Tensor:
    """Ordinary numbers."""
    return torch.full(shape, 0.5)


def rows_of(width: int) -> int:
    """Rows of an operand of so many columns."""
    return max(64, min(2048, NUMBERS // width))


def typical(run: Callable[[], object], seconds: float | None = None) -> float:
    """Seconds of the middle one of a few runs; the first does not count where there is time for another."""
    found: list[float] = []
    seconds = SECONDS if seconds is None else seconds
    began = time.perf_counter()
    while True:
        start = time.perf_counter()
        run()
        end = time.perf_counter()
        found.append(end - start)
        # A machine that is busy with something else must not hold up the plan: three times the time is the end of it.
        if end - began >= (seconds if len(found) > 3 else 3 * seconds):
            return statistics.median(found[1:] or found)
