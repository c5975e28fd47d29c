"""A sketch of each sample from which the share of n-grams that two samples have in common can be read.

One-permutation MinHash (Li, Owen, Zhang 2012): every n-gram of characters is hashed once, the hash chooses one of 63
bins, and each bin keeps its smallest hash. The share of bins in which two sketches agree estimates the Jaccard
similarity of the two sets of n-grams. A bin that got nothing takes over from its neighbour (Shrivastava, Li 2014).

Characters rather than words, because Chinese has no blanks between words; n is 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from strop.data.lint.characters import Characters, plain_table

if TYPE_CHECKING:
    import numpy.typing as npt

    Hashes = npt.NDArray[np.uint64]
    Sketches = npt.NDArray[np.uint32]
    Flags = npt.NDArray[np.bool_]

BINS = 63
BAND = 3
"""Bins that have to agree for two samples to be compared: there are 21 such bands. At a similarity s two samples are
compared with probability 1 - (1 - s³)²¹: 0.94 at s = 0.5, 0.9999 at 0.75."""

GRAM = 5
SHORTEST = 32
"""Width below which a sample has no sketch: few n-grams say little."""

_EMPTY = np.uint32(0xFFFFFFFF)
_SALT = np.uint64(0x9E3779B97F4A7C15)


def window_hashes(values: Hashes, length: int) -> Hashes:
    """Hash every window of a sequence.

    Args:
        values: uint64 [n].
        length: of the window.

    Returns:
        uint64 [n - length + 1], each well mixed.
    """
    count = len(values) - length + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    values = mixed(values)
    total = values[:count].copy()
    for offset in range(1, length):
        total *= _SALT
        total += values[offset : offset + count]
    return mixed(total)


def mixed(values: Hashes) -> Hashes:
    """Numbers to numbers that look random, one to one (the first half of splitmix64's finaliser)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    return values


def sketch(
    characters: Characters, row_of_text: npt.NDArray[np.int64], rows: int, used: Flags
) -> tuple[Sketches, Flags]:
    """Sketch the samples of a batch.

    Args:
        characters: the texts.
        row_of_text: int64 [texts], ascending: the sample in the batch that each belongs to.
        rows: samples in the batch.
        used: bool [texts]: whether the text counts; system prompts do not.

    Returns:
        uint32 [rows, BINS], and bool [rows]: whether a sample is long enough to be compared.
    """
    letters = plain_table()[characters.codes]
    letters[~used[characters.owner]] = 0
    kept = np.flatnonzero(letters)
    letters = letters[kept]
    row = row_of_text[characters.owner[kept]]
    hashes = window_hashes(letters.astype(np.uint64), GRAM)
    inside = row[: len(hashes)] == row[GRAM - 1 :] if len(hashes) else np.zeros(0, np.bool_)
    cells = row[: len(hashes)] * BINS + ((hashes >> np.uint64(40)) % np.uint64(BINS)).astype(np.int64)
    sketches = np.full(rows * BINS, _EMPTY, np.uint32)
    # The all-ones value stands for an empty bin.
    smallest = np.minimum(hashes & np.uint64(0xFFFFFFFF), np.uint64(0xFFFFFFFE)).astype(np.uint32)
    np.minimum.at(sketches, cells[inside], smallest[inside])
    width = np.bincount(row, weights=1.0 + ((letters >= 0x2E80) & (letters < 0xFB00)), minlength=rows)
    return _filled(sketches.reshape(rows, BINS)), width >= SHORTEST


def _filled(sketches: Sketches) -> Sketches:
    """Fill empty bins from the next one that is not, to the right and around."""
    open_rows = np.flatnonzero((sketches == _EMPTY).any(axis=1) & (sketches != _EMPTY).any(axis=1))
    part = sketches[open_rows]
    for _ in range(BINS):
        empty = part == _EMPTY
        if not empty.any():
            break
        # One more for every step, so that a value taken over is not mistaken for one found there.
        beside = np.roll(part, -1, axis=1)
        part = np.where(empty & (beside != _EMPTY), np.minimum(beside + np.uint32(1), _EMPTY - np.uint32(1)), part)
    sketches[open_rows] = part
    return sketches


def candidate_pairs(
    sketches: Sketches, usable: Flags, least: float = 0.0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Pairs of samples that are worth comparing.

    In each band equal samples stand in one bucket; each is paired with the first of the bucket and with the one
    before it, so that a bucket of thousands gives thousands of pairs and not millions.

    Args:
        sketches: uint32 [rows, BINS].
        usable: bool [rows].
        least: the similarity below which a pair is of no interest; such pairs are never held.

    Returns:
        Earlier and later rows, int64 [pairs], and the similarity by the sketches, float32 [pairs].
    """
    rows = np.flatnonzero(usable)
    pairs = np.zeros(0, np.uint64)
    similar = np.zeros(0, np.float32)
    for first in range(0, BINS, BAND):
        found = np.setdiff1d(_band_pairs(sketches, rows, first), pairs, assume_unique=True)
        alike = _similarity(sketches, found)
        found, alike = found[alike >= least], alike[alike >= least]
        pairs, similar = np.concatenate([pairs, found]), np.concatenate([similar, alike])
    order = np.argsort(pairs)
    pairs, similar = pairs[order], similar[order]
    return (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64), similar


def _band_pairs(sketches: Sketches, rows: npt.NDArray[np.int64], first: int) -> Hashes:
    """The pairs of one band, each once: the earlier row in the upper half of 64 bits, the later one in the lower."""
    band = sketches[rows, first : first + BAND].astype(np.uint64)
    key = mixed(band[:, 0] * _SALT + mixed(band[:, 1] * _SALT + mixed(band[:, 2] + np.uint64(first))))
    order = np.argsort(key, kind="stable")
    key, member = key[order], rows[order].astype(np.uint64)
    fresh = np.r_[True, key[1:] != key[:-1]]
    leader = member[np.maximum.accumulate(np.where(fresh, np.arange(len(key)), 0))]
    again = np.flatnonzero(~fresh)
    codes = [leader[again] << np.uint64(32) | member[again], member[again - 1] << np.uint64(32) | member[again]]
    return np.unique(np.concatenate(codes))


def _similarity(sketches: Sketches, pairs: Hashes) -> npt.NDArray[np.float32]:
    """The share of bins in which the two of each pair agree."""
    similarity = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), 65536):
        part = pairs[start : start + 65536]
        earlier, later = part >> np.uint64(32), part & np.uint64(0xFFFFFFFF)
        similarity[start : start + 65536] = (sketches[earlier] == sketches[later]).mean(axis=1)
    return similarity
