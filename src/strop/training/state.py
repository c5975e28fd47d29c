"""Everything that a run's loop works with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from strop.data.records import Example
from strop.data.tokenizer import Tokenizer
from strop.evaluate.ask import Question
from strop.model.lora import Adapter
from strop.model.paths import AnyEngine
from strop.model.workspace import Work
from strop.plan.choose import packing_of
from strop.plan.forecast import Choice, Forecast
from strop.plan.plan import Plan
from strop.recipe import Recipe
from strop.run.folder import RunFolder
from strop.run.journal import Journal
from strop.training.identity import Identity
from strop.training.optimizer import Optimizer
from strop.training.stop import StopRequest


@dataclass(slots=True)
class Training:
    """What the loop works with; `forecast` and `engine` change where memory falls short and a leaner plan takes over.

    Attributes:
        choice: the plan that was chosen, and the curve that it lies on.
        forecast: the plan in force, and what it was said to cost.
        stop: the user's wish to stop.
        identity: what the run depends on; every checkpoint holds it.
    """

    run: RunFolder
    recipe: Recipe
    choice: Choice
    forecast: Forecast
    engine: AnyEngine
    adapter: Adapter
    optimizer: Optimizer
    tokenizer: Tokenizer
    learned: Sequence[Example]
    held_out: Sequence[Example]
    questions: Sequence[Question]
    journal: Journal
    stop: StopRequest
    identity: Identity
    base: str

    @property
    def plan(self) -> Plan:
        """The plan in force."""
        return self.forecast.plan


def work_of(choice: Choice, plan: Plan, adapter: Adapter) -> Work:
    """What the engine lays its memory out for under a plan of a choice."""
    packing = packing_of(choice, plan)
    return plan.work(
        tokens=packing.largest_pack,
        learned=packing.most_learned,
        targets=adapter.targets,
        rank=adapter.rank,
        dropout=adapter.dropout,
    )


def record(choice: Choice, forecast: Forecast) -> dict[str, Any]:
    """plan.json: the levers, and beside them what the plan was said to cost and why it was taken."""
    why = {"budget_bytes": choice.budget_bytes, "budget_source": choice.budget_source, "reason": choice.reason}
    return {**forecast.plan.as_dict(), "forecast": {**forecast.as_dict(), **why}}
