"""``strop chat``: talk to a run's tuned model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from strop.cli.app import verb
from strop.cli.units import at_least

if TYPE_CHECKING:
    from strop.evaluate.chat import Chat


def chat(run: Path, *, ask: tuple[str, ...] = (), max_tokens: int = 512, temperature: float = 0.0) -> None:
    """Talk to a run's tuned model.

    The prompt is built as in training: same template, same system prompt. Without --ask it is a conversation; an empty
    line or the end of input ends it.

    Args:
        run: the run's folder.
        ask: a question to answer and leave; may be repeated, each by itself.
        max_tokens: the longest answer, in tokens (default: 512).
        temperature: 0 for the likeliest answer (the default); above, how freely to sample.

    Examples:
        strop chat runs/2025-01-31-my-model-data
        strop chat runs/2025-01-31-my-model-data --ask "What is 12 × 7?" --max-tokens 64
    """
    at_least("--max-tokens", max_tokens, 1)
    at_least("--temperature", temperature, 0)
    from strop.cli.console import note
    from strop.evaluate.chat import Chat
    from strop.evaluate.tuned import load_tuned

    model = load_tuned(run, note)
    for question in ask:
        if len(ask) > 1:
            _write(f"> {question}\n")
        _answer(Chat(model, max_tokens, temperature), question)
    if not ask:
        converse(Chat(model, max_tokens, temperature))


def converse(conversation: Chat) -> None:
    """Read questions line by line from standard input and answer them, until an empty line or the end of input."""
    while True:
        sys.stderr.write("> ")
        sys.stderr.flush()
        question = sys.stdin.readline().strip()
        if not question:
            return
        _answer(conversation, question)


def _answer(conversation: Chat, question: str) -> None:
    """Answer one question on standard output, piece by piece as it is made."""
    conversation.say(question, _write)
    _write("\n")


def _write(text: str) -> None:
    from strop.cli.console import output_console, printable

    output_console().print(printable(text), end="", soft_wrap=True)


app = verb(chat)
