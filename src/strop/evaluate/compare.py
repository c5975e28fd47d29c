"""Base against tuned: the same questions, the same prompt, both answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from strop.errors import InputError
from strop.evaluate.ask import question_of_text
from strop.evaluate.tuned import load_tuned
from strop.model.source import Note


def compare(run: Path, *, ask: Sequence[str] = (), note: Note | None = None) -> list[dict[str, Any]]:
    """Asks the base and the tuned model the same questions.

    Args:
        run: a run folder.
        ask: questions; by default those that the run watched itself by.
        note: told what takes long.

    Returns:
        One object a question: question, reference (or None), base, tuned.

    Raises:
        InputError: no run, or no question to ask.
    """
    model = load_tuned(run, note)
    watched = [sample for sample in model.run.lines(model.run.samples) if sample.get("step") == 0]
    references = {str(sample.get("question")): sample.get("reference") for sample in watched}
    texts = list(ask) or list(references)
    if not texts:
        raise InputError(
            f"{run} watched itself by no question", do=f'ask one: strop compare {run} --ask "What is 12 + 30?"'
        )
    limit = model.recipe.watch.answer_tokens
    questions = [question_of_text(text, model.recipe.data.system) for text in texts]
    base, tuned = (model.answer(questions, tuned=with_adapter, max_tokens=limit) for with_adapter in (False, True))
    return [
        {"question": text, "reference": references.get(text), "base": before.text, "tuned": after.text}
        for text, before, after in zip(texts, base, tuned, strict=True)
    ]
