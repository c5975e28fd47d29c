"""The forecast beside the fact: what a run was said to cost, and what it cost.

    forecast {peak_bytes, step_seconds, seconds, parts}  ─┐
    facts    peak, steps, seconds of steps, of watching  ─┴─compare──▶ [Compared("peak memory", 1.21e9, 1.24e9, …), …]

The fact's seconds are those of the events: a step is the mean of all steps, and the whole is steps and watching, since
loading ends before the first event. What is not in the forecast, or has not happened yet, has no row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from strop.run.figures import duration, significant, size


@dataclass(frozen=True, slots=True)
class Facts:
    """What happened.

    Attributes:
        peak_bytes: most memory in use, as far as it is known.
        steps: optimiser steps taken.
        step_seconds: the sum over them.
        watch_seconds: seconds of held-out losses and sample answers.
        finished: whether the run has ended, so that sums can be compared.
    """

    peak_bytes: float | None
    steps: int
    step_seconds: float
    watch_seconds: float
    finished: bool


@dataclass(frozen=True, slots=True)
class Compared:
    """One measure, as it was forecast and as it came."""

    name: str
    forecast: float
    fact: float
    unit: Literal["bytes", "seconds"]

    def written(self, value: float) -> str:
        """A value in words."""
        return size(value) if self.unit == "bytes" else duration(max(value, 0.0))

    @property
    def difference(self) -> str:
        """By how much the fact exceeds the forecast: ``+2.5 %``."""
        percent = (self.fact - self.forecast) / self.forecast * 100
        if abs(percent) < 0.05:
            return "0 %"
        return f"{'−' if percent < 0 else '+'}{significant(abs(percent), 2)} %"


def compare(forecast: Mapping[str, Any], facts: Facts) -> list[Compared]:
    """Puts a forecast beside the facts.

    Args:
        forecast: as an event or plan.json has it; whatever it lacks, or is no positive number, is left out.
        facts: what happened.
    """
    parts = forecast.get("parts")
    parts = parts if isinstance(parts, Mapping) else {}
    steps, watching = _positive(parts.get("steps")), _positive(parts.get("watching"))
    rows = [_row("peak memory", forecast.get("peak_bytes"), facts.peak_bytes, "bytes")]
    if facts.steps:
        rows.append(_row("a step", forecast.get("step_seconds"), facts.step_seconds / facts.steps, "seconds"))
    if facts.finished:
        rows.append(_row("all steps", steps, facts.step_seconds, "seconds"))
        rows.append(_row("watching", watching, facts.watch_seconds, "seconds"))
        if steps is not None and watching is not None:
            both = facts.step_seconds + facts.watch_seconds
            rows.append(_row("steps and watching", steps + watching, both, "seconds"))
    return [row for row in rows if row is not None]


def _row(name: str, forecast: object, fact: object, unit: Literal["bytes", "seconds"]) -> Compared | None:
    said, came = _positive(forecast), _positive(fact)
    return Compared(name, said, came, unit) if said is not None and came is not None else None


def _positive(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e18:
        return None
    return float(value)
