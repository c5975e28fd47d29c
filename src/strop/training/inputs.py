"""All that a run depends on, read and checked before anything heavy is loaded and anything is written.

recipe ─▶ model folder ─▶ spec, weights' sizes ─▶ tokenizer, template ─▶ data ─▶ Inputs, with the hash of each
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from strop.data.accounting import check_refused
from strop.data.checks import check_questions
from strop.data.examples import Dataset, prepare
from strop.data.mixture import whole_path, whole_sources
from strop.data.tokenizer import Tokenizer
from strop.hub.hashes import cache_folder
from strop.model.lora import parse_targets
from strop.model.paths import AnySpec, AnyTensors, open_tensors
from strop.model.source import model_folder, whole_model
from strop.recipe import Recipe, Resolved
from strop.run.journal import Journal
from strop.training.identity import Identity, recipe_identity


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that a run depends on, read and checked."""

    resolved: Resolved
    folder: Path
    spec: AnySpec
    tensors: AnyTensors
    tokenizer: Tokenizer
    dataset: Dataset
    targets: tuple[str, ...]
    identity: Identity

    @property
    def recipe(self) -> Recipe:
        """The recipe without the sources of its values."""
        return self.resolved.recipe


def prepare_inputs(resolved: Resolved, journal: Journal) -> Inputs:
    """Finds the model, reads and checks the data; nothing heavy is loaded and nothing is written."""
    recipe = resolved.recipe
    folder = model_folder(recipe.model, journal.note, journal.progress)
    tensors = open_tensors(folder)
    spec = tensors.spec
    targets = parse_targets(recipe.adapter.targets, spec.adaptable)
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
    section = resolved.recipe.adapter
    identity = {
        "recipe": recipe_identity(resolved.recipe),
        "model": {
            "sha256": tensors.reader.sha256(journal.progress("hashing the base")),
            "spec_sha256": hashlib.sha256(json.dumps(asdict(spec), sort_keys=True).encode()).hexdigest(),
        },
        "template": {"sha256": tokenizer.template.sha256},
        "data": {
            "fingerprint": dataset.fingerprint,
            "learned": len(dataset.learned),
            "held_out": len(dataset.held_out),
        },
        "adapter": {
            "rank": section.rank,
            "alpha": section.alpha,
            "dropout": section.dropout,
            "targets": list(targets),
        },
    }
    return Inputs(resolved, folder, spec, tensors, tokenizer, dataset, targets, identity)


def with_whole_paths(resolved: Resolved, journal: Journal) -> Resolved:
    """Model and data so that the run can be resumed and asked from any folder: absolute paths, pinned hub ids."""
    recipe = resolved.recipe
    whole: dict[str, str | tuple[str, ...]] = {"data.train": whole_sources(recipe.data.train, journal.note)}
    if isinstance(recipe.data.eval, str):
        whole["data.eval"] = whole_path(recipe.data.eval, journal.note)
    whole["model"] = whole_model(recipe.model, journal.note)
    for field, value in whole.items():
        resolved = resolved.with_value(field, value, resolved.sources[field])
    return resolved
