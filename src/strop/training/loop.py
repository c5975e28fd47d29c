"""The loop: samples of a step, gradients, one move, then what is due: looking, saving, stopping.

Step k (from 0) of a run is a function of the recipe, k, the adapter and the optimiser's moments alone, so a run can be
cut after any checkpoint and continued to the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NoReturn

from strop.data.order import step_samples
from strop.data.packing import pack
from strop.data.records import Example
from strop.errors import SaveError, Stopped
from strop.model.lora import adapter_files
from strop.model.tensor_bytes import Content
from strop.run.checkpoint import write_checkpoint
from strop.run.disk import File
from strop.run.summary import summarize
from strop.training.guards import LossSpike, NotFinite, SpikeGuard
from strop.training.identity import plan_identity
from strop.training.meter import memory_bytes, peak_bytes
from strop.training.schedule import learning_rate, total_steps
from strop.training.shortage import dry_run, with_enough_memory
from strop.training.state import Training
from strop.training.step import StepResult, accumulate_gradients
from strop.training.tuning import tuning_files
from strop.training.watch import watch


def train_loop(training: Training, first_step: int) -> None:
    """Trains from ``first_step`` to the end and writes the adapter.

    A checkpoint of step k is made before the look of step k, so a look may be cut short: whoever goes on from step k
    looks first.

    Raises:
        Stopped: the user asked to stop (saved first), or numbers were not finite.
        SaveError: what had to be written could not be.
        KeyboardInterrupt: the user asked to stop before there was anything to save.
    """
    recipe, stop = training.recipe, training.stop
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
    spikes = SpikeGuard(recipe.train.spike, training.run.lines(training.run.events))
    stop.check()
    done = saved = first_step
    try:
        while True:
            if done < steps:
                stop.check()
            if done % recipe.watch.every == 0 or done == steps:
                _watch(training, done)
            if done == steps:
                break
            stop.check()
            _step(training, done, steps, spikes)
            done += 1
            if (done % recipe.train.save_every == 0 or done == steps) and _save(training, done):
                saved = done
    except KeyboardInterrupt:
        if done == first_step:
            raise
        _leave(training, done, steps, saved == done)
    _finish(training, steps)


def _leave(training: Training, done: int, steps: int, is_saved: bool) -> NoReturn:
    """Saves what is not saved yet, and ends the run in the middle."""
    if not is_saved:
        _save(training, done, needed=True)
    training.journal.event("stop", done, reason=training.stop.reason)
    training.journal.sync()
    raise Stopped(
        f"stopped by {training.stop.reason} after step {done} of {steps}, and saved",
        do=f"strop resume {training.run.path}",
    )


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
        training.stop,
        step=step,
        pack_tokens=training.plan.pack_tokens,
        # Looking is without dropout, so that beginnings are equal whatever the recipe says.
        share_prefixes=training.plan.shares_prefixes(0.0),
        answer_tokens=training.recipe.watch.answer_tokens,
    )


def _save(training: Training, step: int, needed: bool = False) -> bool:
    """Makes a checkpoint, after the logs up to it are on the disk. One that fails is told, and the run goes on.

    Raises:
        SaveError: it failed where the run cannot go on without it.
    """
    journal = training.journal
    files = {
        **adapter_files(training.adapter, training.base, training.engine.decoder.spec),
        **training.optimizer.files(),
        **tuning_files(),
    }
    identity = {**training.identity, "plan": plan_identity(training.plan)}
    try:
        logs = journal.sync()
        checkpoint = write_checkpoint(training.run.checkpoints, step, _files(files), identity, logs)
    except SaveError as error:
        journal.event(
            "save_failed",
            step,
            reason=f"{error.what}: {error.found}",
            path=error.path,
            need_bytes=error.need_bytes,
            free_bytes=error.free_bytes,
        )
        if needed:
            raise
        return False
    journal.saved(checkpoint)
    return True


def _files(contents: Mapping[str, Content]) -> dict[str, File]:
    return {name: File(*content) for name, content in contents.items()}


def _finish(training: Training, steps: int) -> None:
    """Publishes the adapter under its final name, whole, and records the end."""
    training.run.publish_adapter(_files(adapter_files(training.adapter, training.base, training.engine.decoder.spec)))
    training.journal.sync()
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
    training.journal.sync()
