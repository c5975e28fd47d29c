"""Sides "strop" and "strop-low": Strop's engine as `strop train` uses it, with the plan that it chooses.

"strop-low" is the plan of least memory. The packs, the gradients and the optimiser are those of a run; what a run does
besides (events, checkpoints, watching) is left out, as it is on the other sides.
"""

from __future__ import annotations

import os

# Before torch is imported, as the command line has it (docs/decisions/0007-passive-threads.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from job import Course, Job, arguments


def strop_side(job: Job, course: Course, variant: str) -> None:
    """All steps of the job."""
    from pathlib import Path
    from types import SimpleNamespace

    import numpy as np

    from strop.data.packing import pack
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
    from strop.training.step import accumulate_gradients

    folder = Path(job.model)
    spec = read_spec(folder)
    adapter = read_adapter(Path(job.first_adapter), spec)
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
        adapter={"rank": adapter.rank, "alpha": adapter.alpha, "targets": ",".join(adapter.targets)},
        train={"samples_per_step": len(steps[0]), "steps": len(steps)},
    )
    dataset = SimpleNamespace(learned=[example for samples in steps for example in samples], held_out=[])
    facts = (spec, ModelTensors(folder).item_bytes, dataset, recipe)
    choice = choose(*facts, steps=len(steps))
    if variant == "low":
        choice = choose(
            *facts, steps=len(steps), budget_bytes=budget_for(choice.curve[0].peak_bytes), machine=choice.machine
        )
    plan = choice.forecast.plan
    use_processor(plan)
    decoder = load_decoder(folder, head=plan.head, embedding=plan.embedding)
    engine = make_engine(decoder, plan, work_of(choice, plan, adapter))
    optimizer = Optimizer(adapter, 0.0)
    course.ready(["torch", "strop"], **plan.as_dict())
    for number, samples in enumerate(steps):
        course.begin_step()
        packs = pack(samples, plan.pack_tokens, plan.shares_prefixes(adapter.dropout))
        result = accumulate_gradients(engine, adapter, packs, seed=job.seed, step=number, clip=job.clip)
        optimizer.step(job.rates[number])
        course.count(sum(len(each.tokens_T) for each in packs), result.tokens, result.learned_tokens)
        course.end_step(result.loss)


if __name__ == "__main__":
    strop_side(*arguments(["default", "low"]))
