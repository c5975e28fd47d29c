"""Base against tuned: the same questions, the same prompt, both answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from strop.errors import InputError
from strop.evaluate.ask import question_of_line
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
    questions = [model.question(text) for text in ask] or [
        # With the history that led to it, as it was trained and watched.
        question_of_line(sample)
        for sample in model.run.lines(model.run.samples)
        if sample["step"] == 0
    ]
    if not questions:
        raise InputError(
            f"{run} watched itself by no question", do=f'ask one: strop compare {run} --ask "What is 12 + 30?"'
        )
    limit = model.recipe.watch.answer_tokens
    base, tuned = (model.answer(questions, tuned=with_adapter, max_tokens=limit) for with_adapter in (False, True))
    return [
        {"question": question.text, "reference": question.reference, "base": before.text, "tuned": after.text}
        for question, before, after in zip(questions, base, tuned, strict=True)
    ]
