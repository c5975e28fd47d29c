"""Near duplicates: pairs that the sketches propose, held to the text itself.

Two samples are nearly the same if they differ in at most one character in ten, case, blanks and punctuation put aside;
in the answer alone as well, and in the question alone in at most one in four. Two things are not that, however many
characters agree:

    long instructions, another matter    "<300 characters> Word: cat" and "<300 characters> Word: dog"
    the same exercise, other numbers     said apart, as same-but-for-numbers

The first is told by what is left when common beginnings and ends are taken off: either a word or an insertion, or it
has to be similar by itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from strop.data.lint.characters import plain
from strop.data.lint.sketches import candidate_pairs
from strop.data.records import Conversation

if TYPE_CHECKING:
    from strop.data.lint.sketches import Flags, Sketches

LEAST = 0.9
"""Share of characters that have to agree, in the answer and in all."""

_LEAST_ASKED = 0.75

_PROPOSED = 0.3
"""Similarity of n-grams below which texts that differ in one character in ten, all apart, do not lie."""

_TRIES = 8
_WORD = 12
_NUMBERS = re.compile(r"\d+(?:[.,:/]\d+)*|[+*×÷=<>≤≥]|-(?=\d)|[一二三四五六七八九十百千万亿两]+")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two samples that are nearly the same.

    Args:
        earlier: the number of the first.
        later: the number of the second.
        numbers: whether their numbers are the same.
    """

    earlier: int
    later: int
    numbers: bool


@dataclass(frozen=True, slots=True)
class _Sides:
    question: str
    answer: str
    numbers: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.question) + len(self.answer)


def near_duplicates(samples: Sequence[Conversation], sketches: Sketches, usable: Flags, held_out: int) -> list[Pair]:
    """Find for each sample one that it is nearly the same as.

    Args:
        samples: the learned ones, then the held-out ones.
        sketches: uint32 [samples, BINS].
        usable: bool [samples]: which to compare.
        held_out: how many stand at the end that are held out; pairs among them are of no interest.

    Returns:
        At most one pair for each later sample, numbers equal where there is such a pair.
    """
    earlier, later, similarity = candidate_pairs(sketches, usable, _PROPOSED)
    wanted = earlier < len(samples) - held_out
    earlier, later, similarity = earlier[wanted], later[wanted], similarity[wanted]
    order = np.lexsort((-similarity, later))
    ordered = later[order]
    order = order[np.arange(len(order)) - np.searchsorted(ordered, ordered) < _TRIES]
    sides = lru_cache(maxsize=4096)(lambda number: _sides(samples[number]))
    best: dict[int, Pair] = {}
    for first, second in ((int(earlier[at]), int(later[at])) for at in order):
        found = best.get(second)
        if found and found.numbers:
            continue
        pair = _compared(first, second, sides(first), sides(second), asked_only=second >= len(samples) - held_out)
        if pair and (found is None or pair.numbers):
            best[second] = pair
    return sorted(best.values(), key=lambda pair: pair.later)


def _compared(earlier: int, later: int, one: _Sides, other: _Sides, *, asked_only: bool) -> Pair | None:
    if asked_only:
        same = _nearly_same(one.question, other.question, LEAST)
    else:
        # A few words before a short question weigh little beside a long answer that is the same.
        same = (
            _nearly_same(one.answer, other.answer, LEAST)
            and _nearly_same(one.question, other.question, _LEAST_ASKED)
            and _differing(one, other) <= (1 - LEAST) * max(len(one), len(other))
        )
    return Pair(earlier, later, one.numbers == other.numbers) if same else None


def _differing(one: _Sides, other: _Sides) -> int:
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.distance(one.question, other.question) + Levenshtein.distance(one.answer, other.answer)


def _nearly_same(one: str, other: str, least: float) -> bool:
    """Whether two texts agree in a share of their characters, and do not differ in one piece that is another matter."""
    if one == other:
        return True
    from rapidfuzz.distance import Levenshtein, Postfix, Prefix

    if Levenshtein.normalized_similarity(one, other, score_cutoff=least) < least:
        return False
    start = Prefix.similarity(one, other)
    left, right = one[start:], other[start:]
    end = Postfix.similarity(left, right)
    left, right = left[: len(left) - end], right[: len(right) - end]
    if not left or not right or max(len(left), len(right)) <= _WORD:
        return True
    return bool(Levenshtein.normalized_similarity(left, right) >= 0.5)


def _sides(conversation: Conversation) -> _Sides:
    if text := conversation.text:
        return _Sides("", plain(text), tuple(_NUMBERS.findall(text)))
    asked = "\n".join(turn.content for turn in conversation.messages if turn.role in ("user", "tool"))
    answered = "\n".join(
        f"{turn.thinking or ''}{turn.content}{''.join(call.name + call.arguments for call in turn.calls)}"
        for turn in conversation.messages
        if turn.role == "assistant"
    )
    return _Sides(plain(asked), plain(answered), tuple(_NUMBERS.findall(asked)))
