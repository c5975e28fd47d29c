"""Memory that falls short: found in the first seconds where possible, survived where not.

Before the first step the largest pack of the run is computed once with made-up tokens (`dry_run`): all memory that a
step ever asks for is touched then. Where more is in use than the budget allows, or where memory runs out in the middle
of a step, the next leaner plan of the curve takes over; the step is done again with the same samples and the same
mathematics, and an event says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import torch

from strop.errors import BudgetError
from strop.model.batch import Batch
from strop.plan import gpu
from strop.plan.apply import make_engine
from strop.plan.choose import leaner, packing_of
from strop.plan.workload import Workload
from strop.training.meter import memory_bytes
from strop.training.state import Training, record, work_of

Result = TypeVar("Result")

# What torch's allocator of a CPU says, as a plain RuntimeError, when the system gives it nothing.
_CPU_MESSAGES = ("can't allocate memory", "not enough memory")


def dry_run(training: Training, step: int) -> None:
    """Computes the run's largest pack once, and goes over to a leaner plan until what is in use fits the budget.

    Raises:
        BudgetError: not even the leanest plan fits.
    """
    budget = training.choice.budget_bytes
    gpu.give_back(str(training.engine.device))  # what loading needed and training does not
    while True:
        began = time.perf_counter()
        with_enough_memory(training, step, lambda: _largest_pack(training))
        used = memory_bytes(training.engine.device)
        training.journal.event(
            "dry_run",
            step,
            tokens=training.engine.tokens,
            seconds=time.perf_counter() - began,
            memory_bytes=used,
        )
        if used <= budget:
            return
        _go_leaner(training, step, f"the longest pack took {used:,} bytes, the budget is {budget:,}")


def with_enough_memory(training: Training, step: int, compute: Callable[[], Result]) -> Result:
    """Runs a computation; where memory runs out, runs it again under a leaner plan.

    Raises:
        BudgetError: memory ran out under the leanest plan.
    """
    while True:
        try:
            return compute()
        except (MemoryError, RuntimeError) as error:
            if not _is_shortage(error):
                raise
            reason = str(error).splitlines()[0] if str(error) else "out of memory"
        _go_leaner(training, step, reason)


def _is_shortage(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(message in str(error) for message in _CPU_MESSAGES)


def _go_leaner(training: Training, step: int, reason: str) -> None:
    """Puts the next leaner plan into force, or gives up."""
    found = leaner(training.choice, training.plan)
    if found is None:
        raise BudgetError(
            f"memory fell short in step {step + 1}, and no plan needs less",
            expected=f"{training.forecast.peak_bytes:,} bytes, as was forecast",
            found=reason,
            do=f"free memory and go on: strop resume {training.run.path}; or train with a lower adapter.rank",
        )
    decoder = training.engine.decoder
    # The old engine's memory has to be gone before the new one's is made.
    training.engine.release()
    gpu.give_back(str(decoder.device))
    training.forecast = found
    training.engine = make_engine(decoder, found.plan, work_of(training.choice, found.plan, training.adapter))
    try:
        training.run.write_json("plan.json", record(training.choice, found))
    except OSError as error:
        # Without it a resumed run begins under the plan before, and falls back to this one again.
        training.journal.note(f"plan.json could not be written: {error.strerror or error}")
    training.journal.event("replan", step, reason=reason, plan=found.plan.as_dict(), forecast=found.as_dict())


def _largest_pack(training: Training) -> None:
    """Computes a pack of the largest size with made-up tokens; its gradients are thrown away."""
    engine, adapter = training.engine, training.adapter
    batch = largest_batch(packing_of(training.choice, training.plan), engine.device)
    adapter.zero_gradients()
    engine.gradients(batch, adapter, len(batch.rows_N), 0)
    adapter.zero_gradients()


def largest_batch(packing: Workload, device: torch.device) -> Batch:
    """As many tokens and learned tokens as any pack of a run has, in documents as long as its longest sample."""
    tokens, learned = packing.largest_pack, packing.most_learned
    longest = min(packing.longest_sample, tokens)
    starts = [*range(0, tokens, longest), tokens]
    positions_T = torch.cat([torch.arange(end - start) for start, end in pairwise(starts)])
    return Batch(
        torch.zeros(tokens, dtype=torch.int64, device=device),
        positions_T.to(device),
        torch.zeros(tokens, dtype=torch.int64, device=device),
        tuple(starts),
        torch.arange(tokens - learned, tokens, device=device),
        torch.zeros(learned, dtype=torch.int64, device=device),
        tuple((start, end, start, start) for start, end in pairwise(starts)),
    )
