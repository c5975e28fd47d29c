"""The loop: samples of a step, gradients, one move, then what is due: looking, saving, stopping.

Step k (from 0) of a run is a function of the recipe, k, the adapter and the optimiser's moments alone, so a run can be
cut after any checkpoint and continued to the same bytes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from strop.data.order import step_samples
from strop.data.packing import pack
from strop.data.records import Example
from strop.errors import Stopped
from strop.model.lora import write_adapter
from strop.run.checkpoint import sync, write_checkpoint
from strop.run.summary import summarize
from strop.training.guards import LossSpike, NotFinite, SpikeGuard, StopRequest
from strop.training.meter import memory_bytes, peak_bytes
from strop.training.schedule import learning_rate, total_steps
from strop.training.shortage import dry_run, with_enough_memory
from strop.training.state import Training
from strop.training.step import StepResult, accumulate_gradients
from strop.training.watch import watch


def train_loop(training: Training, first_step: int) -> None:
    """Trains from ``first_step`` to the end and writes the adapter.

    Raises:
        Stopped: the user asked to stop (saved first), or numbers were not finite.
    """
    recipe = training.recipe
    steps = total_steps(recipe.train, len(training.learned))
    training.journal.event(
        "start",
        first_step,
        steps=steps,
        plan=training.plan.as_dict(),
        forecast=training.forecast.as_dict(),
        budget_bytes=training.choice.budget_bytes,
        reason=training.choice.reason,
        resumed=first_step > 0,
    )
    dry_run(training, first_step)
    if first_step == 0:
        _watch(training, 0)
    spikes = SpikeGuard(recipe.train.spike, training.run.lines(training.run.events))
    with StopRequest() as stop:
        for step in range(first_step, steps):
            _step(training, step, steps, spikes)
            done = step + 1
            stopping = stop.reason and done < steps
            if done % recipe.watch.every == 0 or done == steps:
                _watch(training, done)
            if done % recipe.train.save_every == 0 or done == steps or stopping:
                _save(training, done)
            if stopping:
                training.journal.event("stop", done, reason=stop.reason)
                raise Stopped(
                    f"stopped by {stop.reason} after step {done} of {steps}, and saved",
                    do=f"strop resume {training.run.path}",
                )
        _finish(training, steps)


def _step(training: Training, step: int, steps: int, spikes: SpikeGuard) -> None:
    """One optimiser step and its event, or the event of why it was passed over."""
    began = time.perf_counter()
    section = training.recipe.train
    chosen = step_samples(section.seed, step, len(training.learned), section.samples_per_step)
    samples = [training.learned[index] for index in chosen]
    ids, places = [sample.id for sample in samples], [str(sample.place) for sample in samples]
    try:
        result = with_enough_memory(training, step, lambda: _gradients(training, samples, step))
        skipped = spikes.skips(step, result.loss, ids, places)
    except (NotFinite, LossSpike) as error:
        training.journal.event("stop", step, reason=error.what)
        raise
    if skipped:
        seconds, bound = time.perf_counter() - began, spikes.bound
        training.journal.event(
            "skip", step + 1, loss=result.loss, bound=bound, samples=ids, places=places, seconds=seconds
        )
        return
    spikes.taken(result.loss)
    rate = learning_rate(section, step, steps)
    training.optimizer.step(rate)
    seconds = time.perf_counter() - began
    training.journal.event(
        "step",
        step + 1,
        epoch=(step + 1) * section.samples_per_step / len(training.learned),
        loss=result.loss,
        learned_tokens=result.learned_tokens,
        tokens=result.tokens,
        lr=rate,
        grad_norm=result.grad_norm,
        seconds=seconds,
        tokens_per_s=result.tokens / seconds,
        learned_tokens_per_s=result.learned_tokens / seconds,
        memory_bytes=memory_bytes(training.engine.device),
    )


def _gradients(training: Training, samples: Sequence[Example], step: int) -> StepResult:
    """The gradients of a step's samples, packed as the plan has it."""
    section, plan = training.recipe.train, training.plan
    packs = pack(samples, plan.pack_tokens, plan.shares_prefixes(training.adapter.dropout))
    return accumulate_gradients(
        training.engine, training.adapter, packs, seed=section.seed, step=step, clip=section.clip
    )


def _watch(training: Training, step: int) -> None:
    watch(
        training.engine,
        training.adapter,
        training.tokenizer,
        training.held_out,
        training.questions,
        training.journal,
        step=step,
        pack_tokens=training.plan.pack_tokens,
        # Looking is without dropout, so that beginnings are equal whatever the recipe says.
        share_prefixes=training.plan.shares_prefixes(0.0),
        answer_tokens=training.recipe.watch.answer_tokens,
    )


def _save(training: Training, step: int) -> None:
    def write_files(folder: Path) -> None:
        write_adapter(training.adapter, folder, training.base, training.engine.decoder.spec)
        training.optimizer.write(folder)

    checkpoint = write_checkpoint(training.run.checkpoints, step, write_files)
    training.journal.event("save", step, folder=str(checkpoint.path))


def _finish(training: Training, steps: int) -> None:
    """Publishes the adapter under its final name, whole, and records the end."""
    staging = training.run.path / ".adapter.new"
    shutil.rmtree(staging, ignore_errors=True)
    write_adapter(training.adapter, staging, training.base, training.engine.decoder.spec)
    for path in staging.iterdir():
        sync(path)
    shutil.rmtree(training.run.adapter, ignore_errors=True)
    staging.rename(training.run.adapter)
    summary = summarize(training.run)
    training.journal.event(
        "end",
        steps,
        seconds=summary["seconds"],
        peak_bytes=peak_bytes(training.engine.device),
        learned_tokens=summary["learned_tokens"],
        tokens_per_s=summary["tokens_per_s"],
        held_out_loss=summary["held_out_loss"],
        forecast=training.forecast.as_dict(),
    )
