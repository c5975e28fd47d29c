"""What stops a run: numbers that are not finite, and a loss that leaps.

    loss of a step > highest + max(highest - median, 1 nat)   of the losses of the last 32 steps that were taken

is a spike: what was read is at least e times less likely, token for token, than in any of the steps before, and further
from the highest of them than that is from their middle. The losses come from the events of the run, so a run that is
resumed judges as one that was not (`docs/decisions/0015-numbers-that-leap.md`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from strop.errors import Stopped

SPIKE_WINDOW = 32
FEWEST_LOSSES = 8
"""Before so many steps were taken nothing is called a spike."""

LEAST_LEAP = 1.0
"""Nats."""

MOST_SKIPS = 3
"""Steps in a row that are skipped; one more is no outlier but a run that has come apart."""


class NotFinite(Stopped):
    """A loss or a gradient was NaN or infinite; the adapter was not moved.

    Args:
        what: what was not finite: the loss, or the gradient of a matrix.
        samples: those that were being computed.
        step: optimiser steps done before.
        tensor: where it began, if that is known.
    """

    def __init__(self, what: str, samples: Sequence[int], step: int, tensor: str = "") -> None:
        super().__init__(
            f"step {step + 1}: the {what} is not finite",
            expected="finite numbers",
            found=f"NaN or infinity{f', first in {tensor}' if tensor else ''}, in samples {_listed(samples)}",
            do="lower --train.lr, or look at these samples; the last checkpoint is whole",
        )


class LossSpike(Stopped):
    """The loss leapt out of those before it; the adapter was not moved."""

    def __init__(self, step: int, loss: float, bound: float, samples: Sequence[int], places: Sequence[str]) -> None:
        super().__init__(
            f"step {step + 1}: the loss leapt to {loss:.4g}",
            expected=f"at most {bound:.4g}, by the {SPIKE_WINDOW} steps before",
            found=f"samples {_listed(samples)}: {_listed(places)}",
            do="look at these samples; go on without them: set train.spike to skip in the run's recipe.yaml, "
            "then strop resume RUN --accept recipe; or lower --train.lr",
        )


class SpikeGuard:
    """Judges the loss of each step by those of the steps that were taken before it.

    Args:
        policy: the recipe's ``train.spike``.
        events: those of the run so far, in their order.
    """

    def __init__(self, policy: str, events: Iterable[Mapping[str, Any]] = ()) -> None:
        self.policy = policy
        self._losses: deque[float] = deque(maxlen=SPIKE_WINDOW)
        self._skipped = 0
        for event in events:
            if event.get("kind") == "step":
                self.taken(float(event["loss"]))
            elif event.get("kind") == "skip":
                self._skipped += 1

    @property
    def bound(self) -> float | None:
        """The highest loss that is no spike; None while there is too little to judge by."""
        if len(self._losses) < FEWEST_LOSSES:
            return None
        highest = max(self._losses)
        return highest + max(highest - median(self._losses), LEAST_LEAP)

    def taken(self, loss: float) -> None:
        """A step was taken."""
        self._losses.append(loss)
        self._skipped = 0

    def skips(self, step: int, loss: float, samples: Sequence[int], places: Sequence[str]) -> bool:
        """Whether a step is to be passed over.

        Raises:
            LossSpike: its loss is a spike and the policy is to stop, or the steps before were passed over too.
        """
        bound = self.bound
        if self.policy == "ignore" or bound is None or loss <= bound:
            return False
        if self.policy == "stop" or self._skipped >= MOST_SKIPS:
            raise LossSpike(step, loss, bound, samples, places)
        self._skipped += 1
        return True


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values[:8])) + (" …" if len(values) > 8 else "")
