"""Training from Python: a recipe in, a run out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strop.plan.budget import parse_size
from strop.recipe import Recipe, Resolved
from strop.run.journal import Listener
from strop.training.session import resume_run, train_run


@dataclass(frozen=True, slots=True)
class Run:
    """What a finished run came to.

    Attributes:
        folder: the run folder; `strop.load(run.folder)` loads its model.
        adapter: the adapter, in PEFT's format.
        steps: optimiser steps.
        learned_tokens: tokens learned, over all steps.
        tokens_per_s: all tokens over the seconds of the steps.
        peak_bytes: most memory in use.
        loss_before: held-out loss of the base, None where nothing was held out.
        loss_after: held-out loss of the tuned model.
    """

    folder: Path
    adapter: Path
    steps: int
    learned_tokens: int
    tokens_per_s: float
    peak_bytes: int
    loss_before: float | None
    loss_after: float | None


def train(
    recipe: Recipe | Resolved,
    *,
    run: str | Path | None = None,
    memory: str | int | None = None,
    plan: Mapping[str, str] | None = None,
    listener: Listener | None = None,
) -> Run:
    """Trains a recipe.

    Args:
        recipe: what to learn.
        run: the run folder; by default runs/<date>-<model>-<data>.
        memory: the most memory that the run may use, in bytes or as "8GB"; by default a share of what is free.
        plan: levers of the plan set by hand, such as {"pack_tokens": "4096"}.
        listener: is told every event (`strop.run.journal.Listener`).

    Returns:
        The finished run.

    Raises:
        strop.StropError: with what failed, what was expected, what was found and what to do.
    """
    resolved = recipe if isinstance(recipe, Resolved) else Resolved(recipe, {})
    folder = None if run is None else Path(run)
    budget = parse_size(memory, "memory=") if isinstance(memory, str) else memory
    return _run(train_run(resolved, folder=folder, budget_bytes=budget, plan_overrides=plan, listener=listener))


def resume(run: str | Path, *, accept: Collection[str] = (), listener: Listener | None = None) -> Run:
    """Continues a run that was stopped, to its end.

    Args:
        run: the run folder.
        accept: what may differ from what the run began with: "recipe", "model", "template", "data".
        listener: is told every event.
    """
    return _run(resume_run(Path(run), listener, accept))


def _run(summary: Mapping[str, Any]) -> Run:
    losses = summary["held_out_loss"]
    return Run(
        Path(summary["run"]),
        Path(summary["adapter"]),
        summary["steps"],
        summary["learned_tokens"],
        summary["tokens_per_s"],
        summary["peak_bytes"],
        losses["before"],
        losses["after"],
    )
