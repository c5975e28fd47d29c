"""Looking at a run without touching it: held-out loss and sample answers before, every n steps, and after."""

from __future__ import annotations

import time
from collections.abc import Sequence

from strop.data.examples import Dataset
from strop.data.records import Example
from strop.data.samples import asking
from strop.data.tokenizer import Tokenizer
from strop.evaluate.ask import (
    DEFAULT_QUESTIONS,
    Question,
    answer_questions,
    question_of_sample,
    question_of_text,
)
from strop.evaluate.held_out import held_out_loss
from strop.model.lora import Adapter
from strop.model.paths import AnyEngine
from strop.recipe import Recipe
from strop.run.journal import Journal
from strop.training.stop import StopRequest


def choose_questions(dataset: Dataset, recipe: Recipe) -> list[Question]:
    """The recipe's questions, or else some held-out samples', evenly spread (learned ones' where none are held out)."""
    if recipe.watch.ask:
        thinking = recipe.data.thinking == "keep"
        return [question_of_text(text, recipe.data.system, thinking=thinking) for text in recipe.watch.ask]
    examples = asking(dataset.held_out or dataset.learned)
    count = min(DEFAULT_QUESTIONS, len(examples))
    return [question_of_sample(examples[index * len(examples) // count]) for index in range(count)]


def watch(
    engine: AnyEngine,
    adapter: Adapter,
    tokenizer: Tokenizer,
    held_out: Sequence[Example],
    questions: Sequence[Question],
    journal: Journal,
    stop: StopRequest,
    *,
    step: int,
    pack_tokens: int,
    share_prefixes: bool,
    answer_tokens: int,
) -> None:
    """Measures the held-out loss and asks the questions; both are functions of the adapter alone.

    Raises:
        KeyboardInterrupt: the user asked to stop meanwhile; nothing of the look is recorded.
    """
    began = time.perf_counter()
    with stop.interruptible():
        loss = held_out_loss(engine, adapter, held_out, pack_tokens, share_prefixes)
        answers = answer_questions(engine.decoder, adapter, tokenizer, questions, answer_tokens)
    journal.event(
        "watch",
        step,
        held_out_loss=loss.mean if loss else None,
        held_out_tokens=loss.learned_tokens if loss else 0,
        seconds=time.perf_counter() - began,
    )
    for question, answer in zip(questions, answers, strict=True):
        journal.sample(answer.as_sample(step, question))
