"""What a plan is said to cost, and which one is taken: the types that `strop.plan.choose` answers with.

    Machine, Workload ──memory, duration──▶ Forecast ──choose──▶ Choice ──▶ events, plan.json, the report, strop plan

A forecast is made before any weight is read, and is held against what happened (`docs/architecture.md`, Events).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from strop.plan.plan import Plan

if TYPE_CHECKING:
    from strop.plan.machine import Machine
    from strop.plan.workload import Workload


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run under a plan is said to need.

    Attributes:
        plan: the plan.
        components: bytes by component, in the order that they are shown in.
        step_seconds: a mean optimiser step.
        parts: seconds of the whole run: "loading", "steps", "watching".
        step_parts: seconds of a mean step by kind of work: "matrix products", "head and loss", "attention",
            "element-wise", "dequantising", "computing again", "optimiser".
        tokens_per_s: tokens of samples, each counted once, per second of the steps.
    """

    plan: Plan
    components: Mapping[str, int]
    step_seconds: float
    parts: Mapping[str, float]
    step_parts: Mapping[str, float]
    tokens_per_s: float

    @property
    def peak_bytes(self) -> int:
        """The most memory that the process holds at any time."""
        return sum(self.components.values())

    @property
    def seconds(self) -> float:
        """The whole run."""
        return sum(self.parts.values())

    def as_dict(self) -> dict[str, Any]:
        """The forecast as events and `--json` hold it; the plan stands beside it."""
        return {
            "peak_bytes": self.peak_bytes,
            "components": dict(self.components),
            "seconds": self.seconds,
            "parts": dict(self.parts),
            "step_seconds": self.step_seconds,
            "step_parts": dict(self.step_parts),
            "tokens_per_s": self.tokens_per_s,
        }


@dataclass(frozen=True, slots=True)
class Choice:
    """The plan that was chosen, and what it was chosen from.

    Attributes:
        forecast: the plan and its cost.
        curve: the plans that nothing beats in both memory and time: the smallest memory first, the fastest last.
        budget_bytes: the most resident memory that the process may hold.
        budget_source: where the budget comes from: "--memory" or "share of free memory".
        reason: why this plan, in a sentence or two.
        machine: what was computed on.
        workload: what has to be computed under this plan.
        packings: the same for every plan of the curve (`strop.plan.choose.packing_of`).
        path: what a person should know of the path that computes the model; "" for Strop's own decoder.
    """

    forecast: Forecast
    curve: tuple[Forecast, ...]
    budget_bytes: int
    budget_source: str
    reason: str
    machine: Machine
    workload: Workload
    packings: tuple[Workload, ...] = ()
    path: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The choice as plan.json's neighbours and `--json` hold it."""
        return {
            "plan": self.forecast.plan.as_dict(),
            "forecast": self.forecast.as_dict(),
            "budget_bytes": self.budget_bytes,
            "budget_source": self.budget_source,
            "reason": self.reason,
            "curve": [
                {"plan": point.plan.as_dict(), "peak_bytes": point.peak_bytes, "seconds": point.seconds}
                for point in self.curve
            ],
            "machine": self.machine.as_dict(),
            "workload": self.workload.as_dict(),
            **({"path": self.path} if self.path else {}),
        }
