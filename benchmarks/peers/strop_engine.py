"""Sides "strop…": Strop's engine as `strop train` uses it, with the plan that it chooses.

"low" is the plan of least memory, a number of bytes is a budget (`--memory`), "default" what `strop train` does when
nothing is said, and "float32" the same where the dtype is said: without, it is what the machine is faster in. The
packs, the gradients and the optimiser are those of a run; what a run does besides (events, checkpoints, watching) is
left out, as it is on the other sides.

A job of many steps can be done in parts: with a time limit the side stops after the step in which it runs out, keeps
adapter, optimiser and the number of steps done in a folder, and goes on from there when it is started again.
"""

from __future__ import annotations

import os

# Before torch is imported, as the command line has it (docs/decisions/0007-passive-threads.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from job import Course, Job, arguments

PART_SECONDS, PART_FOLDER = "STROP_PART_SECONDS", "STROP_PART_FOLDER"


def strop_side(job: Job, course: Course, variant: str) -> None:
    """All steps of the job, or as many as the time allows."""
    from strop.data.packing import pack
    from strop.errors import BudgetError
    from strop.training.step import accumulate_gradients

    part = Part.open()
    try:
        prepared = prepare(job, variant, part)
    except BudgetError as error:
        course.refused(f"{error.what}; expected {error.expected}, found {error.found}")
        return
    engine, adapter, optimizer, plan = prepared.engine, prepared.adapter, prepared.optimizer, prepared.plan
    course.ready(["torch", "strop"], **plan.as_dict(), forecast=prepared.forecast, first_step=part.done)
    for number in range(part.done, len(job.steps)):
        course.begin_step()
        packs = pack(prepared.steps[number], plan.pack_tokens, plan.shares_prefixes(adapter.dropout))
        result = accumulate_gradients(engine, adapter, packs, seed=job.seed, step=number, clip=job.clip)
        optimizer.step(job.rates[number])
        course.count(sum(len(each.tokens_T) for each in packs), result.tokens, result.learned_tokens)
        course.end_step(result.loss)
        if part.is_over():
            part.keep(prepared, number + 1)
            return


@dataclass(frozen=True)
class Prepared:
    """What the steps are done with."""

    engine: Any
    adapter: Any
    optimizer: Any
    plan: Any
    forecast: dict[str, Any]
    steps: list[list[Any]]
    spec: Any


def prepare(job: Job, variant: str, part: Part) -> Prepared:
    """Plans, loads and lays out; from a part that was kept where there is one."""
    from types import SimpleNamespace

    import numpy as np
    import torch

    from strop.data.records import Example, Place
    from strop.model.families import read_spec
    from strop.model.load import load_decoder
    from strop.model.lora import read_adapter
    from strop.model.tensors import ModelTensors
    from strop.plan.apply import make_engine, use_processor
    from strop.plan.budget import budget_for
    from strop.plan.choose import choose
    from strop.recipe.schema import Recipe
    from strop.training.optimizer import Optimizer
    from strop.training.state import work_of

    folder = Path(job.model)
    spec = read_spec(folder)
    steps = [
        [
            Example(np.array(tokens, dtype=np.int32), np.array(learned), index, Place("job"))
            for index, (tokens, learned) in enumerate(samples)
        ]
        for samples in job.steps
    ]
    recipe = Recipe(
        model=job.model,
        data={"train": "job", "eval": 0.0},
        adapter={"rank": job.rank, "alpha": job.alpha, "dropout": job.dropout, "targets": ",".join(job.targets)},
        train={"samples_per_step": len(steps[0]), "steps": len(steps)},
    )
    dataset = SimpleNamespace(learned=[example for samples in steps for example in samples], held_out=[])
    facts = (spec, ModelTensors(folder).item_bytes, dataset, recipe)
    levers = {"device": job.device, **({"dtype": "float32"} if variant == "float32" else {})}
    budget = int(variant) if variant.isdecimal() else None
    choice = choose(*facts, steps=len(steps), budget_bytes=budget, levers=levers)
    if variant == "low":
        least = budget_for(choice.curve[0].peak_bytes)
        choice = choose(*facts, steps=len(steps), budget_bytes=least, machine=choice.machine, levers=levers)
    plan = choice.forecast.plan
    use_processor(plan)
    dtype = getattr(torch, plan.dtype)
    places = {"head": plan.head, "embedding": plan.embedding, "base": plan.base}
    decoder = load_decoder(folder, plan.device, dtype, **places)
    adapter = read_adapter(part.folder if part.done and part.folder else Path(job.first_adapter), spec, decoder.device)
    engine = make_engine(decoder, plan, work_of(choice, plan, adapter))
    optimizer = Optimizer(adapter, 0.0)
    if part.done and part.folder:
        optimizer.read(part.folder, part.done)
    forecast = {**choice.forecast.as_dict(), "budget_bytes": choice.budget_bytes, "whole_steps": len(steps)}
    return Prepared(engine, adapter, optimizer, plan, forecast, steps, spec)


@dataclass
class Part:
    """A part of a job: how long it may take, what was done before, and where that is kept."""

    seconds: float
    folder: Path | None
    done: int = 0
    begun: float = field(default_factory=time.perf_counter)

    @classmethod
    def open(cls) -> Part:
        """The part that the environment names; the whole job where it names none."""
        place = os.environ.get(PART_FOLDER)
        if not place:
            return cls(float("inf"), None)
        file = Path(place) / "done.json"
        done = json.loads(file.read_text(encoding="utf-8"))["steps"] if file.is_file() else 0
        return cls(float(os.environ[PART_SECONDS]), Path(place), done)

    def is_over(self) -> bool:
        """Whether its time is."""
        return time.perf_counter() - self.begun > self.seconds

    def keep(self, prepared: Prepared, done: int) -> None:
        """Writes what the next part begins from."""
        from strop.model.lora import write_adapter

        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        write_adapter(prepared.adapter, self.folder, "made", prepared.spec)
        prepared.optimizer.write(self.folder)
        (self.folder / "done.json").write_text(json.dumps({"steps": done}), encoding="utf-8")


if __name__ == "__main__":
    strop_side(*arguments())
