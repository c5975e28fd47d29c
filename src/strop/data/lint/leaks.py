"""Held-out questions that stand in the training data, whole or for the most part.

A text is cut into units: words where letters are written in words, single characters where they are Chinese, Japanese
or Thai. A held-out question is leaked by a training sample that holds most of its n-grams: of 13 words (Brown et al.
2020, appendix C) or of 20 characters. What many questions share, an instruction for instance, is no sign of anything.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from strop.data.lint.characters import SCRIPTS, Characters, plain_table, scripts_table
from strop.data.lint.repeats import question_digest, question_of
from strop.data.lint.sketches import mixed, window_hashes
from strop.data.records import Conversation

if TYPE_CHECKING:
    import numpy.typing as npt

    Hashes = npt.NDArray[np.uint64]
    Integers = npt.NDArray[np.int64]

WORDS, SINGLES = 13, 20
"""Units of an n-gram: words, and Chinese characters."""

SHARE = 0.5
"""Share of a held-out question's n-grams that makes a leak."""

_COMMON = 20
_NUMBERS = re.compile(r"\d+(?:[.,]\d+)*")
_SINGLE = np.isin(np.arange(len(SCRIPTS)), [SCRIPTS.index(name) for name in ("Han", "Kana", "Thai", "Hangul")])


@dataclass(frozen=True, slots=True)
class Leak:
    """A held-out question in a training sample.

    Args:
        learned: the training sample's number.
        held_out: the held-out sample's number.
        share: of the question's n-grams that stand there; 1 where the question is the same.
        exact: whether the question is the same, blanks and case put aside.
    """

    learned: int
    held_out: int
    share: float
    exact: bool


class HeldOutQuestions:
    """What to look for in the training data, and what was found of it.

    Args:
        held_out: the held-out samples.
    """

    def __init__(self, held_out: Sequence[Conversation]) -> None:
        self._held_out = held_out
        self._asked: defaultdict[bytes, list[int]] = defaultdict(list)
        for number, conversation in enumerate(held_out):
            if (digest := question_digest(conversation)) is not None:
                self._asked[digest].append(number)
        questions = [question_of(conversation) or conversation.text or "" for conversation in held_out]
        self._grams, self._owners, self._sizes, self._kind = _index(questions)
        self._filter = np.zeros(1 << 22, np.bool_)
        self._filter[_slots(self._grams)] = True
        self._leaks: dict[int, Leak] = {}
        self._hits: list[tuple[Integers, Integers]] = []

    def same_question(self, row: int, conversation: Conversation) -> None:
        """Look whether a training sample asks a held-out question."""
        digest = question_digest(conversation)
        if digest is not None and digest in self._asked:
            self._leaks[row] = Leak(row, self._asked[digest][0], 1.0, exact=True)

    def overlap(self, characters: Characters, row_of_text: Integers) -> None:
        """Look which training samples of a batch hold n-grams of held-out questions.

        Args:
            characters: their texts.
            row_of_text: int64 [texts]: the number of the sample that each belongs to.
        """
        if not len(self._grams):
            return
        units, text_of_unit, _ = _units(characters)
        for length in (WORDS, SINGLES):
            hashes = window_hashes(units, length) ^ np.uint64(length)
            inside = text_of_unit[: len(hashes)] == text_of_unit[length - 1 :] if len(hashes) else np.zeros(0, np.bool_)
            near = np.flatnonzero(inside & self._filter[_slots(hashes)])
            at = np.minimum(np.searchsorted(self._grams, hashes[near]), len(self._grams) - 1)
            there = self._grams[at] == hashes[near]
            self._hits.append((row_of_text[text_of_unit[near[there]]], at[there]))

    def leaks(self, learned: Sequence[Conversation]) -> list[Leak]:
        """All leaks, one for each training sample that has one, once all batches were looked at."""
        if self._hits:
            for leak in self._overlaps(max(_COMMON, len(learned) // 500)):
                if leak.learned not in self._leaks and self._same_numbers(learned[leak.learned], leak.held_out):
                    self._leaks[leak.learned] = leak
        return sorted(self._leaks.values(), key=lambda leak: leak.learned)

    def _overlaps(self, common: int) -> list[Leak]:
        rows = np.concatenate([rows for rows, _ in self._hits])
        grams = np.concatenate([grams for _, grams in self._hits])
        pairs = np.unique(np.stack([grams, rows], axis=1), axis=0)
        frequent = np.bincount(pairs[:, 0], minlength=len(self._grams)) > common
        counted: defaultdict[tuple[int, int], int] = defaultdict(int)
        left = self._sizes.copy()
        for gram in np.flatnonzero(frequent):
            left[self._owners[gram]] -= 1
        for gram, row in pairs.tolist():
            if not frequent[gram]:
                for owner in self._owners[gram]:
                    counted[row, owner] += 1
        found = [
            Leak(row, owner, count / left[owner], exact=False)
            for (row, owner), count in counted.items()
            # Little that is the question's own says little, whatever share of it is found.
            if count >= SHARE * left[owner] and left[owner] * 2 >= self._sizes[owner]
        ]
        return sorted(found, key=lambda leak: -leak.share)

    def _same_numbers(self, conversation: Conversation, held_out: int) -> bool:
        """Whether a training sample has all numbers of a question: with others it is another exercise."""
        asked = set(_NUMBERS.findall(question_of(self._held_out[held_out])))
        text = conversation.text or ""
        there = set(_NUMBERS.findall(text + "\n".join(message.content for message in conversation.messages)))
        return asked <= there


def _index(questions: Sequence[str]) -> tuple[Hashes, list[list[int]], Integers, Integers]:
    """N-grams of questions, ascending; who has each; how many each has; and of how many units they are."""
    sizes = np.zeros(len(questions), np.int64)
    kind = np.full(len(questions), WORDS, np.int64)
    if not questions:
        return np.zeros(0, np.uint64), [], sizes, kind
    units, text_of_unit, single = _units(Characters(questions))
    amount = np.bincount(text_of_unit, minlength=len(questions))
    singles = np.bincount(text_of_unit, weights=single, minlength=len(questions))
    kind[singles * 2 > amount] = SINGLES
    found: list[Integers] = []
    for length in (WORDS, SINGLES):
        hashes = window_hashes(units, length) ^ np.uint64(length)
        owner = text_of_unit[: len(hashes)]
        inside = (owner == text_of_unit[length - 1 :]) & (kind[owner] == length) if len(hashes) else owner == -1
        found.append(np.stack([hashes[inside].view(np.int64), owner[inside].astype(np.int64)], axis=1))
    pairs = np.unique(np.concatenate(found), axis=0)
    order = np.argsort(pairs[:, 0].copy().view(np.uint64), kind="stable")
    hashes, owner = pairs[order, 0].copy().view(np.uint64), pairs[order, 1]
    grams, starts = np.unique(hashes, return_index=True)
    owners = [part.tolist() for part in np.split(owner, starts[1:])] if len(grams) else []
    # An n-gram that a fiftieth of all questions have is an instruction.
    common = max(3, len(questions) // 50)
    rare = np.array([len(part) <= common for part in owners], np.bool_)
    owners = [part for part, keep in zip(owners, rare, strict=True) if keep]
    for part in owners:
        sizes[part] += 1
    return grams[rare] if len(grams) else grams, owners, sizes, kind


def _units(characters: Characters) -> tuple[Hashes, npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Words and single characters as numbers, the text of each, and whether each is a single character."""
    codes = plain_table()[characters.codes]
    script = scripts_table()[characters.codes]
    single = _SINGLE[script] & (codes != 0)
    # Letters and digits make words; everything else, signs that compute included, stands between them.
    inside = ((script != 0) | ((codes >= 48) & (codes <= 57))) & ~single
    begins = inside & ~np.r_[False, inside[:-1]]
    at = np.flatnonzero(begins | single)
    if not len(at):
        return np.zeros(0, np.uint64), np.zeros(0, np.int32), np.zeros(0, np.bool_)
    # A word's number is the sum over its characters, each mixed with its place in the word.
    position = np.arange(len(codes)) - np.maximum.accumulate(np.where(begins | single, np.arange(len(codes)), 0))
    value = mixed(codes.astype(np.uint64) + (position.astype(np.uint64) << np.uint64(32)) + np.uint64(1))
    value[~(inside | single)] = 0
    return np.add.reduceat(value, at), characters.owner[at], single[at]


def _slots(hashes: Hashes) -> Integers:
    return (hashes >> np.uint64(42)).astype(np.int64)
