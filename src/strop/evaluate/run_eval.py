"""Measuring a run on data: loss over its learned tokens, and right answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from strop.data.examples import Dataset, prepare
from strop.data.records import Example
from strop.errors import DataError, InputError
from strop.evaluate.answers import Score, score
from strop.evaluate.ask import asks, question_of_sample
from strop.evaluate.held_out import held_out_loss
from strop.evaluate.tuned import TunedModel, load_tuned
from strop.hub.hashes import cache_folder
from strop.model.source import Note


def evaluate_run(run: Path, *, data: Path | None = None, answers: int = 0, note: Note | None = None) -> dict[str, Any]:
    """Measures a run.

    Args:
        run: a run folder.
        data: a file or folder of the shape that the run learned from; by default the run's own held-out samples.
        answers: how many questions to answer in full and check, the first ones of the data.
        note: told what takes long.

    Returns:
        loss (mean over learned tokens), learned_tokens, samples, refused, right and loose (answers that are right in
        the reference's own form, and in any form), asked.

    Raises:
        InputError: no run, no adapter, data that cannot be read, or held-out samples that are no longer those of the
            run.
    """
    model = load_tuned(run, note)
    dataset, examples = _examples(model, data)
    shared = model.plan.shares_prefixes(0.0)
    loss = held_out_loss(model.measure(), model.adapter, examples, model.plan.pack_tokens, shared)
    if loss is None:
        raise DataError(f"{data or run} has no samples to measure", do="name a file: strop eval RUN --data FILE")
    counted = answer_and_score(model, examples[:answers], tuned=True)
    return {
        "loss": loss.mean,
        "learned_tokens": loss.learned_tokens,
        "samples": len(examples),
        "refused": len(dataset.refused) if data else len(dataset.held_out_refused),
        "right": counted.right,
        "loose": counted.loose,
        "asked": counted.asked,
    }


def answer_and_score(model: TunedModel, examples: Sequence[Example], *, tuned: bool) -> Score:
    """Asks the questions of samples and counts right answers."""
    questions = [question_of_sample(example) for example in examples if asks(example)]
    answers = model.answer(questions, tuned=tuned, max_tokens=model.recipe.watch.answer_tokens)
    return score([(answer.text, question.reference or "") for answer, question in zip(answers, questions, strict=True)])


def held_out_of(model: TunedModel) -> Sequence[Example]:
    """The samples that a run held out, read again from its data."""
    return _examples(model, None)[1]


def _examples(model: TunedModel, data: Path | None) -> tuple[Dataset, Sequence[Example]]:
    settings = model.recipe.data
    if data is not None:
        settings = settings.model_copy(update={"train": str(data), "eval": 0.0, "rows": None})
    dataset = prepare(
        settings,
        model.tokenizer,
        seed=model.recipe.train.seed,
        context_tokens=model.decoder.spec.context,
        cache=cache_folder() / "samples",
    )
    if data is not None:
        return dataset, dataset.learned
    kept = model.run.read_json("manifest.json")["data"]["fingerprint"]
    if dataset.fingerprint != kept:
        # Other data is split in another way: samples that were learned would count as held out.
        raise InputError(
            f"the data of run {model.run.path} has changed since it was trained",
            expected=f"fingerprint {str(kept)[:16]}…, as manifest.json says",
            found=f"fingerprint {dataset.fingerprint[:16]}…",
            do="put the data back, or name a file that the run has not learned from: strop eval RUN --data FILE",
        )
    return dataset, dataset.held_out
