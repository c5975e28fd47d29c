"""A whole training run: everything is checked before anything is loaded, then the base, then the loop, then the proof.

    resolve ─▶ model folder ─▶ tokenizer ─▶ data ─▶ plan ─▶ run folder ─▶ base in NF4 ─▶ adapter ─▶ loop ─▶ report

`train_run` starts a run and `resume_run` continues one; both come together at `_train`.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from strop.data.accounting import check_refused
from strop.data.checks import check_questions
from strop.data.examples import Dataset, prepare
from strop.data.mixture import parse_sources, whole_path, whole_sources
from strop.data.preview import length_histogram, segments
from strop.data.samples import Joined
from strop.data.tokenizer import Tokenizer
from strop.errors import InputError, Stopped, UsageError
from strop.hub.hashes import cache_folder
from strop.model.adapter_tree import from_tree
from strop.model.load import load_decoder
from strop.model.lora import Adapter, load_matrices, make_adapter, parse_targets, read_tensors
from strop.model.source import model_folder, whole_model
from strop.model.spec import DecoderSpec
from strop.model.support import require_support
from strop.model.tensors import ModelTensors
from strop.plan.apply import make_engine, use_processor
from strop.plan.choose import choose
from strop.plan.forecast import Choice
from strop.plan.plan import Plan, check_device, plan_from_dict, read_levers
from strop.recipe import Recipe, Resolved, from_yaml
from strop.run.checkpoint import Checkpoint, newest_checkpoint
from strop.run.folder import RunFolder, create_run, open_run, write_text
from strop.run.journal import Journal, Listener
from strop.run.report import write_report
from strop.run.summary import summarize
from strop.training.loop import train_loop
from strop.training.optimizer import Optimizer
from strop.training.schedule import total_steps
from strop.training.state import Training, record, work_of
from strop.training.watch import choose_questions

# Samples whose tokens the report shows in colour.
_SHOWN_SAMPLES = 6


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
    _refuse_existing(folder)
    levers = read_levers(plan_overrides or {})
    early = Journal(None, listener)
    inputs = _prepare(_with_whole_paths(resolved, early), early)
    choice = _choose(inputs, budget_bytes, levers, early)
    run = create_run(folder)
    journal = Journal(run, listener)
    _write_record(run, inputs, choice)
    return _train(run, inputs, choice, journal, None)


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
    return _choose(_prepare(resolved, journal), budget_bytes, levers, journal)


def resume_run(path: Path, listener: Listener | None = None) -> dict[str, Any]:
    """Continues a run that was stopped, from its newest whole checkpoint, under the same plan.

    Raises:
        UsageError: the run has ended.
        InputError: no run; or its model or data is no longer what it was.
    """
    run = open_run(path)
    if summarize(run)["state"] == "finished":
        raise UsageError(
            f"the run {path} has ended", found="a finished run", do=f"talk to it: strop chat {path}; or train a new one"
        )
    try:
        plan = plan_from_dict(run.read_json("plan.json"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path / 'plan.json'} is damaged", found=repr(error), do="train a new run") from None
    check_device(plan.device)
    journal = Journal(run, listener)
    inputs = _prepare(from_yaml(run.read_recipe(), str(run.recipe)), journal)
    for (part, key), value in inputs.identity.items():
        kept = run.fact("manifest.json", part, key)
        if kept != value:
            raise InputError(
                f"the {part} of run {path} has changed since it began",
                expected=f"{key} {str(kept)[:16]}…, as manifest.json says",
                found=f"{key} {value[:16]}…",
                do=f"put the {part}{' (or the tokenizer)' if part == 'data' else ''} back, or train a new run",
            )
    checkpoint, skipped = newest_checkpoint(run.checkpoints)
    for reason in skipped:
        journal.note(f"skipped: {reason}")
    run.cut_logs(checkpoint.step if checkpoint else -1)
    budget = None
    if run.fact("plan.json", "forecast", "budget_source") == "--memory":
        said = run.fact("plan.json", "forecast", "budget_bytes")
        budget = said if isinstance(said, int) and said > 0 else None
    return _train(run, inputs, _choose(inputs, budget, {}, journal, plan), journal, checkpoint)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """All that a run depends on, read and checked."""

    resolved: Resolved
    folder: Path
    spec: DecoderSpec
    tokenizer: Tokenizer
    dataset: Dataset
    targets: tuple[str, ...]
    identity: Mapping[tuple[str, str], str]
    """Part and key of manifest.json → hash. What a part decides is hashed in those after it, so the first one that
    differs is to blame: another template makes other tokens of the same data."""

    @property
    def recipe(self) -> Recipe:
        return self.resolved.recipe


def _prepare(resolved: Resolved, journal: Journal) -> _Inputs:
    """Finds the model, reads and checks the data; nothing heavy is loaded and nothing is written."""
    recipe = resolved.recipe
    parse_targets(recipe.adapter.targets)
    folder = model_folder(recipe.model, journal.note, journal.progress)
    tensors = ModelTensors(folder)
    spec = tensors.spec
    require_support(spec, folder / "config.json")
    targets = parse_targets(recipe.adapter.targets, spec.projections)
    tokenizer = Tokenizer.from_folder(folder)
    if recipe.data.max_tokens is None:
        resolved = resolved.with_value("data.max_tokens", spec.context, "model")
    dataset = prepare(
        resolved.recipe.data,
        tokenizer,
        seed=recipe.train.seed,
        progress=journal.progress("reading data"),
        cache=cache_folder() / "samples",
    )
    check_refused(dataset, recipe.data.refuse_limit)
    if recipe.data.thinking is None:  # chat opens its turns as the answers that were learned were opened
        resolved = resolved.with_value("data.thinking", "keep" if dataset.thinking else "drop", "data")
    for finding in (*dataset.findings, *check_questions(recipe.watch.ask, dataset.learned)):
        if finding.severity == "warn":
            where = f" ({finding.instances[0].place})" if finding.instances else ""
            journal.note(f"{finding.kind}: {finding.what}{where}; {finding.do}")
    identity = {
        ("model", "sha256"): tensors.reader.sha256(journal.progress("hashing the base")),
        ("model", "spec_sha256"): hashlib.sha256(json.dumps(asdict(spec), sort_keys=True).encode()).hexdigest(),
        ("template", "sha256"): tokenizer.template.sha256,
        ("data", "fingerprint"): dataset.fingerprint,
    }
    return _Inputs(resolved, folder, spec, tokenizer, dataset, targets, identity)


def _train(
    run: RunFolder, inputs: _Inputs, choice: Choice, journal: Journal, checkpoint: Checkpoint | None
) -> dict[str, Any]:
    try:
        train_loop(_load(run, inputs, choice, journal, checkpoint), first_step=checkpoint.step if checkpoint else 0)
    except KeyboardInterrupt:
        raise Stopped("stopped before another step was done", do=f"strop resume {run.path}") from None
    finally:
        # Whatever ended the run, what happened so far is there to look at.
        write_report(run.path)
    return summarize(run)


def _choose(
    inputs: _Inputs,
    budget_bytes: int | None,
    levers: Mapping[str, str | int],
    journal: Journal,
    plan: Plan | None = None,
) -> Choice:
    """The fastest plan that fits, or what goes with the plan that a run began with."""
    journal.note("timing this machine, planning")
    steps = total_steps(inputs.recipe.train, len(inputs.dataset.learned))
    return choose(
        inputs.spec,
        ModelTensors(inputs.folder).item_bytes,
        inputs.dataset,
        inputs.recipe,
        steps=steps,
        budget_bytes=budget_bytes,
        levers=levers,
        plan=plan,
    )


def _load(run: RunFolder, inputs: _Inputs, choice: Choice, journal: Journal, checkpoint: Checkpoint | None) -> Training:
    """Loads the base and makes the adapter, or takes it up where a checkpoint left it."""
    recipe, plan = inputs.recipe, choice.forecast.plan
    use_processor(plan)
    if plan.device.startswith("cuda"):
        # Attention's backward pass and scatters may sum in any order on a GPU unless they are told not to.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # set through a property
    decoder = load_decoder(
        inputs.folder,
        plan.device,
        getattr(torch, plan.dtype),
        progress=journal.progress("loading the base in NF4"),
        head=plan.head,
        embedding=plan.embedding,
    )
    adapter = _new_adapter(inputs, decoder.device)
    optimizer = Optimizer(adapter, recipe.train.weight_decay)
    if checkpoint:
        weights = checkpoint.path / "adapter_model.safetensors"
        load_matrices(adapter, from_tree(decoder.spec, read_tensors(weights), adapter.targets, adapter.rank), weights)
        optimizer.read(checkpoint.path, checkpoint.step)
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
        base=str(inputs.folder),
    )


def _new_adapter(inputs: _Inputs, device: torch.device) -> Adapter:
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


def _write_record(run: RunFolder, inputs: _Inputs, choice: Choice) -> None:
    """Writes everything that is known before the first step."""
    dataset, spec, recipe = inputs.dataset, inputs.spec, inputs.recipe
    write_text(run.recipe, inputs.resolved.to_yaml())
    run.write_json("plan.json", record(choice, choice.forecast))
    shown = dataset.learned[:_SHOWN_SAMPLES]
    run.write_json(
        "data.json",
        {
            "lengths": _histogram(dataset),
            "samples": [
                {
                    "place": str(example.place),
                    "segments": [{"text": text, "kind": kind} for text, kind in segments(example, inputs.tokenizer)],
                }
                for example in shown
            ],
        },
    )
    for refusal in (*dataset.refused, *dataset.held_out_refused):
        run.append(run.path / "refused.jsonl", refusal.as_dict())
    targets = [spec.projection_shape(name) for name in inputs.targets]
    hashes: dict[str, dict[str, str]] = {"model": {}, "template": {}, "data": {}}
    for (part, key), value in inputs.identity.items():
        hashes[part][key] = value
    run.write_json(
        "manifest.json",
        {
            "strop": version("strop"),
            "created": datetime.now().astimezone().isoformat(timespec="seconds"),
            "model": {
                "path": recipe.model,
                **hashes["model"],
                "family": spec.family,
                "parameters": spec.parameters,
                "trainable": spec.layers * recipe.adapter.rank * sum(rows + columns for rows, columns in targets),
            },
            "template": hashes["template"],
            "data": {
                "train": recipe.data.train,
                **hashes["data"],
                "read": dataset.read,
                "learned": len(dataset.learned),
                "held_out": len(dataset.held_out),
                "refused": len(dataset.refused),
                "held_out_read": dataset.held_out_read,
                "held_out_refused": len(dataset.held_out_refused),
                "sources": [asdict(source) for source in dataset.sources],
                "shapes": dict(dataset.shapes),
            },
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
            "device": _device_facts(choice.forecast.plan),
        },
    )


def _histogram(dataset: Dataset) -> dict[str, list[int]]:
    """Lengths of all samples: the lower edges of the bars and, last, the upper end; and how many lie in each."""
    buckets = length_histogram(Joined(dataset.learned, dataset.held_out))
    edges = [bucket.low for bucket in buckets] + [bucket.high + 1 for bucket in buckets[-1:]]
    return {"bins": edges, "counts": [bucket.count for bucket in buckets]}


_LIBRARIES = ("torch", "numpy", "tokenizers", "safetensors", "jinja2")


def _device_facts(plan: Plan) -> dict[str, Any]:
    import psutil

    name = torch.cuda.get_device_name(plan.device) if plan.device.startswith("cuda") else platform.processor()
    return {
        "device": plan.device,
        "name": name or platform.machine(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": psutil.cpu_count(logical=False),
        "memory_bytes": psutil.virtual_memory().total,
    }


def _with_whole_paths(resolved: Resolved, journal: Journal) -> Resolved:
    """Model and data so that the run can be resumed and asked from any folder: absolute paths, pinned hub ids."""
    recipe = resolved.recipe
    whole: dict[str, str | tuple[str, ...]] = {"data.train": whole_sources(recipe.data.train, journal.note)}
    if isinstance(recipe.data.eval, str):
        whole["data.eval"] = whole_path(recipe.data.eval, journal.note)
    whole["model"] = whole_model(recipe.model, journal.note)
    for field, value in whole.items():
        resolved = resolved.with_value(field, value, resolved.sources[field])
    return resolved


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


def _refuse_existing(folder: Path) -> None:
    """Says before any work that a run folder is in the way; `create_run` says it again when it is made."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        create_run(folder)
