"""The prompt that was trained beside the prompt that chat sends, token by token: they must be equal.

    trained   the tokens of a sample before an answer, out of the array that a step computes on
    sent      `encode_prompt` of the turns before that answer, as chat and evaluation call it

Where the two differ a model is asked something that it was not trained on. It holds by construction that they do not
(`strop.data.segments`); this looks at the result, so that a fault in template, tokenizer or construction shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from strop.data.records import Example, Message
from strop.data.tokenizer import Tokenizer
from strop.data.tokens import encode_prompt
from strop.errors import TemplateError

_MOST_COMPARED = 200


@dataclass(frozen=True, slots=True)
class PromptPair:
    """The two prompts of one answer.

    Args:
        sample: the sample.
        turn: which of its answers, from 1.
        trained: tokens that the sample has before the answer.
        sent: tokens that chat sends.
        fault: why chat can send nothing; empty where it can.
    """

    sample: Example
    turn: int
    trained: tuple[int, ...]
    sent: tuple[int, ...]
    fault: str = ""

    @property
    def equal(self) -> bool:
        """Whether they are the same tokens."""
        return not self.fault and self.trained == self.sent

    @property
    def first_difference(self) -> int | None:
        """The first position at which they differ; None where they are equal."""
        if self.equal:
            return None
        alike = (mine == theirs for mine, theirs in zip(self.trained, self.sent, strict=False))
        return next((at for at, same in enumerate(alike) if not same), min(len(self.trained), len(self.sent)))


def compare_prompts(sample: Example, tokenizer: Tokenizer) -> list[PromptPair]:
    """Compare the two prompts of every learned answer of a sample.

    Args:
        sample: a sample that was not shortened, with its conversation; without one nothing can be compared.
        tokenizer: the model's tokenizer.
    """
    if sample.conversation is None:
        return []
    messages = sample.conversation.messages
    turns = [index for index, message in enumerate(messages) if message.role == "assistant"]
    starts = np.flatnonzero(sample.learned & ~np.insert(sample.learned[:-1], 0, False)).tolist()
    found = []
    for number, index in enumerate(turns, start=1):
        try:
            sent = tuple(_prompt(tokenizer, messages[:index]))
        except TemplateError as error:
            found.append(PromptPair(sample, number, (), (), error.what))
            continue
        # Each stretch that is learned is an answer where there are as many of the one as of the other.
        end = starts[number - 1] if len(starts) == len(turns) else len(sent)
        found.append(PromptPair(sample, number, tuple(sample.tokens[:end].tolist()), sent))
    return found


def compare_some(samples: Sequence[Example], tokenizer: Tokenizer) -> tuple[list[PromptPair], int]:
    """Compare an even part of many samples, 200 at most.

    Returns:
        The pairs that differ, and how many samples were compared.
    """
    chosen = samples[:: max(1, -(-len(samples) // _MOST_COMPARED))]
    return unequal(pair for sample in chosen for pair in compare_prompts(sample, tokenizer)), len(chosen)


def unequal(pairs: Iterable[PromptPair]) -> list[PromptPair]:
    """Those that differ."""
    return [pair for pair in pairs if not pair.equal]


def _prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    return [int(token) for token in encode_prompt(tokenizer, messages)]
