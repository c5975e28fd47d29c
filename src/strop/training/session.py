"""A whole training run: everything is checked before anything is loaded, then the base, then the loop, then the proof.

    resolve ─▶ model folder ─▶ tokenizer ─▶ data ─▶ plan ─▶ run folder ─▶ base in NF4 ─▶ adapter ─▶ loop ─▶ report

`train_run` starts a run and `resume_run` continues one; both come together at `_train`. A signal ends what comes before
the run folder with nothing written, and what comes after it with a run that can be resumed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from strop.data.mixture import parse_sources
from strop.errors import InputError, SaveError, Stopped, UsageError
from strop.model.adapter_tree import from_tree
from strop.model.four_bit import in_four_bits
from strop.model.general.files import GeneralTensors
from strop.model.lora import WEIGHTS_FILE, Adapter, load_matrices, make_adapter, read_tensors
from strop.model.paths import AnySpec, load_any
from strop.plan.apply import make_engine, use_processor
from strop.plan.choose import choose
from strop.plan.forecast import Choice
from strop.plan.general import choose_general
from strop.plan.plan import Plan, check_device, plan_from_dict, read_levers
from strop.recipe import Recipe, Resolved, from_yaml
from strop.run import disk
from strop.run.checkpoint import Checkpoint, newest_checkpoint
from strop.run.folder import RunFolder, create_run, open_run, refuse_existing
from strop.run.journal import Journal, Listener
from strop.run.report import write_report
from strop.run.summary import summarize
from strop.run.writer import refuse_busy, sole_writer
from strop.training.identity import check_accepted, check_identity, plan_identity
from strop.training.inputs import Inputs, prepare_inputs, with_whole_paths
from strop.training.loop import train_loop
from strop.training.optimizer import Optimizer
from strop.training.record import write_record
from strop.training.schedule import total_steps
from strop.training.state import Training, work_of
from strop.training.stop import StopRequest
from strop.training.tuning import take_up_tuning
from strop.training.watch import choose_questions


def train_run(
    resolved: Resolved,
    *,
    folder: Path | None = None,
    budget_bytes: int | None = None,
    plan_overrides: Mapping[str, str] | None = None,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Trains from a recipe into a new run folder.

    Args:
        resolved: the recipe with its sources.
        folder: the run folder; by default runs/<date>-<model>-<data>.
        budget_bytes: the most memory that the run may use; by default a share of what is free.
        plan_overrides: levers of the plan set by hand.
        listener: is told every event.

    Returns:
        The run's summary (`strop.run.summary.summarize`).

    Raises:
        UsageError: recipe, plan or run folder.
        InputError: model, template or data.
        BudgetError: no plan fits the budget.
        Stopped: the run was stopped and saved.
    """
    folder = folder or _default_folder(resolved.recipe)
    refuse_busy(folder)
    refuse_existing(folder)
    levers = read_levers(plan_overrides or {})
    early = Journal(None, listener)
    with StopRequest(early.note) as stop:
        inputs = prepare_inputs(with_whole_paths(resolved, early), early)
        choice = _choose(inputs, budget_bytes, levers, early)
        with stop.held():
            run = create_run(folder, lambda staged: write_record(staged, inputs, choice))
            with sole_writer(run, early.note):
                return _train(run, inputs, choice, Journal(run, listener), None, stop)


def plan_run(
    resolved: Resolved,
    *,
    budget_bytes: int | None = None,
    plan_overrides: Mapping[str, str] | None = None,
    listener: Listener | None = None,
) -> Choice:
    """The plan that `train_run` would take, and what it costs; nothing heavy is loaded and nothing is written.

    Args:
        resolved: the recipe with its sources.
        budget_bytes: the most memory that the run may use; by default a share of what is free.
        plan_overrides: levers of the plan set by hand.
        listener: is told how far the data has been read.

    Raises:
        UsageError: recipe or plan.
        InputError: model, template or data.
        BudgetError: no plan fits the budget.
    """
    levers = read_levers(plan_overrides or {})
    journal = Journal(None, listener)
    return _choose(prepare_inputs(resolved, journal), budget_bytes, levers, journal)


def resume_run(path: Path, listener: Listener | None = None, accept: Collection[str] = ()) -> dict[str, Any]:
    """Continues a run that was stopped, from its newest whole checkpoint, under the same plan.

    Args:
        path: the run's folder.
        listener: is told every event.
        accept: parts that may differ from what they were: recipe, model, template, data.

    Raises:
        UsageError: the run has ended; another process is at work on it; or no such part.
        InputError: no run; or its recipe, model, template or data is no longer what it was.
        SaveError: the run's folder cannot be written.
        Stopped: the run was stopped.
    """
    check_accepted(accept)
    run = open_run(path)
    early = Journal(None, listener)
    with StopRequest(early.note) as stop:
        try:
            with sole_writer(run, early.note):
                return _resume(run, listener, accept, stop, early)
        except KeyboardInterrupt:
            raise Stopped("stopped before another step was done", do=f"strop resume {run.path}") from None


def _resume(
    run: RunFolder, listener: Listener | None, accept: Collection[str], stop: StopRequest, early: Journal
) -> dict[str, Any]:
    before = summarize(run)
    if before["state"] == "finished":
        run.sweep()  # killed while its report was written
        raise UsageError(
            f"the run {run.path} has ended",
            found="a finished run",
            do=f"talk to it: strop chat {run.path}; or train a new one",
        )
    plan = _plan_of(run)
    check_device(plan.device)
    inputs = prepare_inputs(from_yaml(run.read_recipe(), str(run.recipe)), early)
    checkpoint, skipped = _newest(run)
    kept = checkpoint.identity if checkpoint else run.read_json("manifest.json")
    accepted = check_identity(run.path, kept, inputs.identity, accept)
    step = checkpoint.step if checkpoint else 0
    for reason in skipped:
        early.note(f"skipped: {reason}")
    lost = max(0, before["steps"] - step)
    early.note(f"going on from step {step}; {lost} steps after it are computed again" if lost else f"from step {step}")
    if checkpoint and checkpoint.identity.get("plan") != plan_identity(plan):
        early.note(f"the plan is another one than at step {step}: numbers agree to rounding, not to the bit")
    budget = _budget_of(run)
    choice = _choose(inputs, budget, {}, early, plan)
    with stop.held():
        journal = _reopen(run, checkpoint, listener, early)
        if accepted:
            _accept(run, inputs, journal, step, accepted)
        return _train(run, inputs, choice, journal, checkpoint, stop)


def _plan_of(run: RunFolder) -> Plan:
    try:
        return plan_from_dict(run.read_json("plan.json"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{run.path / 'plan.json'} is damaged", found=repr(error), do="train a new run") from None


def _budget_of(run: RunFolder) -> int | None:
    """The budget that was given by hand; None where it was a share of what was free."""
    if run.fact("plan.json", "forecast", "budget_source") != "--memory":
        return None
    said = run.fact("plan.json", "forecast", "budget_bytes")
    return said if isinstance(said, int) and said > 0 else None


def _newest(run: RunFolder) -> tuple[Checkpoint | None, list[str]]:
    try:
        return newest_checkpoint(run.checkpoints)
    except OSError as error:
        raise InputError(
            f"{run.checkpoints} cannot be read",
            expected="a folder of checkpoints",
            found=str(error),
            do="let it be read",
        ) from None


def _reopen(run: RunFolder, checkpoint: Checkpoint | None, listener: Listener | None, early: Journal) -> Journal:
    """Puts the folder back to what it was when the checkpoint had just been made."""
    step, marks = (checkpoint.step, checkpoint.logs) if checkpoint else (0, {})
    try:
        run.sweep()
        for name in run.cut_logs(step, marks):
            early.note(f"{name} is not what it was at step {step}; of its lines up to there the whole ones are kept")
        journal = Journal(run, listener)
    except OSError as error:
        raise _unwritable(run, run.events, error) from None
    if checkpoint:
        journal.saved(checkpoint)
    return journal


def _accept(run: RunFolder, inputs: Inputs, journal: Journal, step: int, accepted: list[str]) -> None:
    """Records what was accepted, in the log and in the manifest."""
    manifest = run.read_json("manifest.json")
    for part, facts in inputs.identity.items():
        manifest[part] = {**manifest.get(part, {}), **facts}
    try:
        run.write_json("manifest.json", manifest)
    except OSError as error:
        raise _unwritable(run, run.manifest, error) from None
    for difference in accepted:
        journal.event("accept", step, difference=difference)
        journal.note(f"accepted: {difference}")


def _unwritable(run: RunFolder, path: Path, error: OSError) -> SaveError:
    return disk.save_error(f"run {run.path} cannot be written", path, error.strerror or str(error), run.path)


def _train(
    run: RunFolder, inputs: Inputs, choice: Choice, journal: Journal, checkpoint: Checkpoint | None, stop: StopRequest
) -> dict[str, Any]:
    try:
        stop.check()
        with stop.interruptible():
            training = _load(run, inputs, choice, journal, checkpoint, stop)
        train_loop(training, first_step=checkpoint.step if checkpoint else 0)
    except KeyboardInterrupt:
        raise Stopped("stopped before another step was done", do=f"strop resume {run.path}") from None
    finally:
        journal.close()
        # Whatever ended the run, what happened so far is there to look at.
        try:
            write_report(run.path)
        except OSError as error:
            journal.note(f"the report could not be written ({error.strerror or error}); strop report {run.path} does")
    return summarize(run)


def _choose(
    inputs: Inputs,
    budget_bytes: int | None,
    levers: Mapping[str, str | int],
    journal: Journal,
    plan: Plan | None = None,
) -> Choice:
    """The fastest plan that fits, or what goes with the plan that a run began with."""
    journal.note("timing this machine, planning")
    steps = total_steps(inputs.recipe.train, len(inputs.dataset.learned))
    given: dict[str, Any] = {"steps": steps, "budget_bytes": budget_bytes, "levers": levers, "plan": plan}
    tensors, dataset, recipe = inputs.tensors, inputs.dataset, inputs.recipe
    if isinstance(tensors, GeneralTensors):
        return choose_general(tensors, dataset, recipe, **given)
    return choose(tensors.spec, tensors.item_bytes, dataset, recipe, **given)


def _load(
    run: RunFolder, inputs: Inputs, choice: Choice, journal: Journal, checkpoint: Checkpoint | None, stop: StopRequest
) -> Training:
    """Loads the base and makes the adapter, or takes it up where a checkpoint left it."""
    recipe, plan = inputs.recipe, choice.forecast.plan
    use_processor(plan)
    decoder = load_any(
        inputs.folder,
        plan.device,
        getattr(torch, plan.dtype),
        progress=journal.progress("loading the base in NF4"),
        head=plan.head,
        embedding=plan.embedding,
        base=plan.base,
    )
    journal.note(f"checked: {in_four_bits(decoder.spec)}")
    adapter = _new_adapter(inputs, decoder.device)
    optimizer = Optimizer(adapter, recipe.train.weight_decay)
    if checkpoint:
        _take_up(decoder.spec, adapter, optimizer, checkpoint)
    return Training(
        run=run,
        recipe=recipe,
        choice=choice,
        forecast=choice.forecast,
        engine=make_engine(decoder, plan, work_of(choice, plan, adapter)),
        adapter=adapter,
        optimizer=optimizer,
        tokenizer=inputs.tokenizer,
        learned=inputs.dataset.learned,
        held_out=inputs.dataset.held_out,
        questions=choose_questions(inputs.dataset, recipe),
        journal=journal,
        stop=stop,
        identity=inputs.identity,
        base=str(inputs.folder),
    )


def _take_up(spec: AnySpec, adapter: Adapter, optimizer: Optimizer, checkpoint: Checkpoint) -> None:
    """Puts a checkpoint's numbers into adapter and optimiser."""
    weights = checkpoint.path / WEIGHTS_FILE
    tensors = read_tensors(weights)
    load_matrices(adapter, from_tree(spec, tensors, adapter.targets, adapter.rank), weights)
    optimizer.read(checkpoint.path, checkpoint.step)
    take_up_tuning(checkpoint.path)


def _new_adapter(inputs: Inputs, device: torch.device) -> Adapter:
    section = inputs.recipe.adapter
    return make_adapter(
        inputs.spec,
        rank=section.rank,
        alpha=section.alpha,
        dropout=section.dropout,
        targets=inputs.targets,
        seed=inputs.recipe.train.seed,
        device=device,
    )


def _default_folder(recipe: Recipe) -> Path:
    source = parse_sources(recipe.data.train)[0].path
    model, data = (re.sub(r"[^\w.-]+", "-", Path(text).stem).strip("-") or "run" for text in (recipe.model, source))
    stamp = datetime.now().astimezone().strftime("%Y-%m-%d")
    folder = Path("runs") / f"{stamp}-{model}-{data}"
    number = 2
    while folder.exists():
        folder = Path("runs") / f"{stamp}-{model}-{data}-{number}"
        number += 1
    return folder
