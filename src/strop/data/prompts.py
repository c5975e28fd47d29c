"""The prompt that was trained beside the prompt that chat sends, token by token: they must be equal.

    trained   the tokens of a sample before an answer, out of the array that a step computes on
    sent      `encode_prompt` of the turns before that answer, as chat and evaluation call it

Where the two differ a model is asked something that it was not trained on. It holds by construction that they do not
(`strop.data.segments`); this looks at the result, so that a fault in template, tokenizer or construction shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from strop.data.records import Conversation, Example
from strop.data.thinking import answers_thinking
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
    """Compare the two prompts of a sample's answers: of each where each is learned whole, else of the last one.

    Args:
        sample: a sample that was not shortened, with its conversation; without one nothing can be compared.
        tokenizer: the model's tokenizer.
    """
    conversation = sample.conversation
    if conversation is None:
        return []
    turns = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
    starts = _starts(sample)
    each = len(starts) == len(turns) and not any(message.spans for message in conversation.messages) and 0 not in starts
    found = []
    for number, index in enumerate(turns, start=1):
        if not each and number < len(turns):
            continue
        try:
            sent = tuple(_prompt(tokenizer, conversation, index))
        except TemplateError as error:
            found.append(PromptPair(sample, number, (), (), error.what))
            continue
        # Where answers are learned whole, the prompt is what stands before them; else it is as long as what is sent.
        end = starts[number - 1] if each else len(sent)
        found.append(PromptPair(sample, number, tuple(sample.tokens[:end].tolist()), sent))
    return found


def compare_some(
    learned: Sequence[Example], held_out: Sequence[Example], whole: Mapping[int, Example], tokenizer: Tokenizer
) -> tuple[list[PromptPair], int]:
    """Compare an even part of many samples, 200 of each kind at most.

    Args:
        learned: the samples to learn.
        held_out: those held out.
        whole: by id those that were cut, as they were before.
        tokenizer: the model's tokenizer.

    Returns:
        The pairs that differ, and how many samples were compared.
    """
    chosen = [one for samples in (learned, held_out) for one in samples[:: max(1, -(-len(samples) // _MOST_COMPARED))]]
    pairs = (pair for one in chosen for pair in compare_prompts(whole.get(one.id, one), tokenizer))
    return unequal(pairs), len(chosen)


def unequal(pairs: Iterable[PromptPair]) -> list[PromptPair]:
    """Those that differ."""
    return [pair for pair in pairs if not pair.equal]


def _starts(sample: Example) -> list[int]:
    """Where each learned stretch starts."""
    before = np.insert(sample.learned[:-1], 0, False)
    starts: list[int] = np.flatnonzero(sample.learned & ~before).tolist()
    return starts


def _prompt(tokenizer: Tokenizer, conversation: Conversation, turn: int) -> list[int]:
    thinking = answers_thinking(conversation)
    sent = encode_prompt(tokenizer, conversation.messages[:turn], conversation.tools, thinking=thinking)
    return [int(token) for token in sent]
