"""What timing runs with: a device, its clock, and operands that are out of the caches when they are used.

Everything but matrix products is as fast as memory: a step finds its operands where other layers' have driven them out
of the caches. So every run takes the next stretch of a ring that is larger than the caches are. With one operand over
and over, norms seemed 4 times as fast as they are in a step, and dequantising 5 times (Zen 5, 32 MiB).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from strop.plan.clocks import Clock, Run

# The ring holds so many of an operation's largest operand.
_OPERANDS = 6


@dataclass(frozen=True, slots=True)
class Bench:
    """What is timed, and how.

    Attributes:
        device: what computes.
        dtype: of activations.
        numbers: numbers of an operation's largest operand.
        seconds: for the repetitions of one operation.
        clock: times them.
    """

    device: torch.device
    dtype: torch.dtype
    numbers: int
    seconds: float
    clock: Clock

    def full(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Ordinary numbers."""
        return torch.full(shape, 0.5, dtype=dtype or self.dtype, device=self.device)

    def rows(self, width: int) -> int:
        """Rows of an operand of this width."""
        return max(64, min(2048 if self.device.type == "cpu" else 16384, self.numbers // width))


class Ring:
    """Memory whose stretches are taken in turn, so that each is out of the caches when its turn comes again."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._memory, self._at = bench.full(_OPERANDS * bench.numbers), 0

    def take(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """The next stretch; what an earlier run wrote to it is still there."""
        dtype = dtype or self.bench.dtype
        count = -(-prod(shape) * dtype.itemsize // self._memory.itemsize)
        if count > len(self._memory):
            return self.bench.full(*shape, dtype=dtype)
        # Numbers of any dtype begin where theirs may.
        self._at = -(-self._at // 64) * 64
        if self._at + count > len(self._memory):
            self._at = 0
        self._at += count
        return self._memory[self._at - count : self._at].view(dtype)[: prod(shape)].view(shape)

    def time(self, run: Run) -> float:
        """Seconds of a run, over ordinary numbers: denormal ones, which some operations end in, would be slow."""
        self._memory.fill_(0.5)
        # The first run pays for memory and threads: ten times what a unit by autograd takes after it.
        run()
        return self.bench.clock(run, self.bench.seconds)
