"""What is noticed about every sample while it is encoded: one bit for each kind of fault, kept in the store.

    a: … [4 2 <stop>]        STOPS               b: … [4 2] <stop>       ENDLESS: the stop token is not learned
    c: … (nothing learned)   NOTHING             d: <bos> <bos> … [4]    DOUBLED, ENDLESS

`strop.data.checks` makes findings of them. So a million samples that were kept are checked without being read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from strop.data.records import Conversation, Example
from strop.data.samples import Joined, Samples
from strop.data.segments import Learn
from strop.data.thinking import answers_thinking
from strop.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy.typing as npt

    from strop.data.records import Learned, Tokens

NOTHING = 1 << 1
"""Nothing of it is learned."""
ENDLESS = 1 << 2
"""A stretch that is learned does not end in a stop token."""
PADDED = 1 << 3
"""An answer ends in the padding token."""
DOUBLED = 1 << 4
"""BOS stands twice in a row."""
OPENED = 1 << 5
"""BOS is learned."""
UNLEARNED = 1 << 6
"""Some of its answers are only read."""
STOPS = 1 << 7
"""A stop token is learned."""
THINKS = 1 << 8
"""Its answers reason."""

_CHUNK = 2048
_TURNS = 4


class Encoded(Protocol):
    """Tokens, and which of them are learned."""

    @property
    def tokens(self) -> Tokens:
        """int32 [T]."""

    @property
    def learned(self) -> Learned:
        """bool [T]."""


def marks(examples: Sequence[Example], tokenizer: Tokenizer, learn: Learn) -> npt.NDArray[np.int64]:
    """The marks of samples [S]: those that are kept, or found now.

    Args:
        examples: the samples.
        tokenizer: the model's tokenizer.
        learn: the recipe's ``data.learn``.
    """
    if isinstance(examples, Samples | Joined):
        return examples.marks_S
    found = [np.empty(0, np.int64)]
    for start in range(0, len(examples), _CHUNK):
        part = examples[start : start + _CHUNK]
        found.append(find_marks(part, [example.conversation for example in part], tokenizer, learn))
    return np.concatenate(found)


def find_marks(
    samples: Sequence[Encoded], conversations: Sequence[Conversation | None], tokenizer: Tokenizer, learn: Learn
) -> npt.NDArray[np.int64]:
    """The marks of some samples [S], of which each was made of the conversation beside it."""
    found_S = np.zeros(len(samples), np.int64)
    if not len(samples):
        return found_S
    tokens_T = np.concatenate([sample.tokens for sample in samples])
    learned_T = np.concatenate([sample.learned for sample in samples])
    sample_T = np.repeat(np.arange(len(samples)), [len(sample.tokens) for sample in samples])
    follows_T = np.append(sample_T[1:] == sample_T[:-1], False)
    last_T = learned_T & ~(np.append(learned_T[1:], False) & follows_T)
    ends_T = np.isin(tokens_T, np.array(sorted(tokenizer.stop_ids), np.int32))
    runs_S = np.bincount(sample_T[last_T], minlength=len(samples))
    found_S[runs_S == 0] |= NOTHING
    stops_S = np.bincount(sample_T[learned_T & ends_T], minlength=len(samples))
    found_S[stops_S > 0] |= STOPS
    if learn == "all":
        found_S[(stops_S == 0) & (runs_S > 0)] |= ENDLESS
    else:
        found_S[sample_T[last_T & ~ends_T]] |= ENDLESS
    bos = tokenizer.bos if tokenizer.bos not in tokenizer.stop_ids else None
    pad = tokenizer.backend.token_to_id(tokenizer.template.tokens.get("pad_token", ""))
    if pad is not None and pad != tokenizer.eos:
        found_S[sample_T[last_T & ends_T & (tokens_T == pad)]] |= PADDED
    if bos is not None:
        bos_T = tokens_T == bos
        found_S[sample_T[bos_T & np.append(bos_T[1:], False) & follows_T]] |= DOUBLED
        if learn != "all":
            found_S[sample_T[bos_T & learned_T]] |= OPENED
    for number, conversation in enumerate(conversations):
        if conversation is None:
            continue
        if found_S[number] & ENDLESS and _weighted(conversation):
            found_S[number] &= ~ENDLESS
        if learn == "answers" and _answers(conversation) > runs_S[number]:
            found_S[number] |= UNLEARNED
        if answers_thinking(conversation):
            found_S[number] |= THINKS
    return found_S


def _weighted(conversation: Conversation) -> bool:
    """Whether the row itself says what of its answers is learned, and so may leave out their ends."""
    return any(message.weight is not None or message.spans for message in conversation.messages)


def _answers(conversation: Conversation) -> int:
    """Answers that a sample would have its learner learn."""
    if len(conversation.messages) < _TURNS:
        return 0
    return sum(m.role == "assistant" and m.weight is None and not m.spans for m in conversation.messages)
