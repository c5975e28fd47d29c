"""Which rows are used and which samples are held out, by their content and the seed.

A choice by content does not depend on the order of files or rows. Samples that ask the same (`strop.data.digests`) go
the same way, whatever they answer: a question that is held out is in no case learned under another line number. Every
content gets a number, BLAKE2b of seed and content (RFC 7693); contents of one question are one group, whose number is
their sum; the smallest are chosen.

    "2 + 2?" ─▶ "4"     7 ┐ 7 + 1 = 8        "3 + 3?" ─▶ "6"     5        one of three to hold out: the second question
    "2 + 2?" ─▶ "four"  1 ┘
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from strop.data.order import scramble
from strop.data.records import Record
from strop.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy.typing as npt

    from strop.data.records import Tokens


def content_key(seed: int, tokens: Tokens) -> bytes:
    """The number of a sample's content: 16 bytes, compared as they stand."""
    return _key(seed, tokens.astype("<i4").tobytes())


def choose_rows(records: Iterable[Record], rows: int, seed: int) -> list[int]:
    """Choose rows of a data set; of each one 16 bytes are held.

    Args:
        records: all rows.
        rows: how many; more than there are, for all.
        seed: the recipe's seed.

    Returns:
        The numbers of the chosen rows, ascending.
    """
    keys = b"".join(_key(seed, _row_text(record)) for record in records)
    numbers = np.frombuffer(keys, ">u8").reshape(-1, 2)
    order = np.lexsort((numbers[:, 1], numbers[:, 0]))
    chosen: list[int] = np.sort(order[:rows]).tolist()
    return chosen


def row_key(record: Record, seed: int) -> int:
    """The first 64 bits of the number of a row's content, for choosing among rows that are not held."""
    return int.from_bytes(_key(seed, _row_text(record))[:8], "big")


def held_out_count(wanted: float, samples: int) -> int:
    """How many samples to hold out.

    Args:
        wanted: the recipe's ``eval``: a share below 1, a count from 1, or 0.
        samples: how many there are.

    Returns:
        The count; for a share at least 1, as long as one sample is left to learn.

    Raises:
        UsageError: a count that is not whole.
        DataError: a count that leaves nothing to learn.
    """
    if wanted < 1:
        return min(max(round(wanted * samples), 1), max(samples - 1, 0)) if wanted else 0
    if wanted != int(wanted):
        raise UsageError(
            f"data.eval is {wanted}", expected="a share below 1, a whole count, a path, or 0", do="give a whole number"
        )
    if wanted >= samples:
        raise DataError(
            f"holding out {int(wanted)} samples leaves nothing to learn",
            expected="fewer than there are",
            found=f"{samples} samples",
            do="lower data.eval, or give more data",
        )
    return int(wanted)


def hold_out(
    contents_S2: npt.NDArray[np.uint64],
    asked_S2: npt.NDArray[np.uint64],
    records_S: npt.NDArray[np.int64],
    count: int,
) -> npt.NDArray[np.bool_]:
    """Choose samples to hold out; those that are equal, ask the same or come from one record are chosen together.

    Args:
        contents_S2: the number of each sample's content (`content_key`), as 128 bits [S, 2].
        asked_S2: what each sample asks (`strop.data.digests.asked`), as 128 bits [S, 2].
        records_S: the number of each sample's record [S], ascending.
        count: how many; fewer are chosen where samples that belong together stand in the way.

    Returns:
        Whether each is chosen [S].
    """
    chosen_S = np.zeros(len(records_S), np.bool_)
    if not count:
        return chosen_S
    group_S = _groups(contents_S2.byteswap(), asked_S2, records_S)
    order_S = np.argsort(group_S, kind="stable")
    ends_G = np.cumsum(np.bincount(group_S))
    start, left = 0, count
    for end in ends_G.tolist():
        if end - start <= left:
            chosen_S[order_S[start:end]] = True
            left -= end - start
            if not left:
                break
        start = end
    return chosen_S


def _groups(
    numbers_S2: npt.NDArray[np.uint64], asked_S2: npt.NDArray[np.uint64], records_S: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The group of each sample [S], the one with the smallest number first."""
    is_first_S = np.diff(records_S, prepend=-1) != 0
    starts_R, record_S = np.flatnonzero(is_first_S), np.cumsum(is_first_S) - 1
    first, second = numbers_S2[:, 0], numbers_S2[:, 1]
    if len(starts_R) < len(records_S):
        # A record's number: a sum over its samples that tells their order.
        turn = scramble((np.arange(len(records_S)) - starts_R[record_S]).astype(np.uint64))
        first = np.add.reduceat(scramble(first ^ turn), starts_R)
        second = np.add.reduceat(scramble(second ^ turn), starts_R)
    content_R = _ranks(first, second)
    group_R = _joined(_ranks(*asked_S2[starts_R].T), content_R)
    # A group's number: the sum over its contents, each counted once, however often it stands there.
    order_R = np.lexsort((content_R, group_R))
    starts_G = np.flatnonzero(np.diff(group_R[order_R], prepend=-1))
    once_R = np.diff(content_R[order_R], prepend=-1) != 0  # one content is never in two groups
    sums = [np.add.reduceat(np.where(once_R, half[order_R], np.uint64(0)), starts_G) for half in (first, second)]
    rank_G = np.empty(len(starts_G), np.int64)
    rank_G[np.lexsort((sums[1], sums[0]))] = np.arange(len(starts_G))
    group_S: npt.NDArray[np.int64] = rank_G[group_R][record_S]
    return group_S


def _ranks(first: npt.NDArray[np.uint64], second: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The rank of each pair of numbers among all that there are, equal ones alike: 0, 1, 2, …"""
    order = np.lexsort((second, first))
    new = np.diff(first[order], prepend=first[order[:1]]) != 0
    new |= np.diff(second[order], prepend=second[order[:1]]) != 0
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.cumsum(new)
    return ranks


def _joined(asked_R: npt.NDArray[np.int64], content_R: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Groups of what asks the same or is the same, and of what is joined by others: 0, 1, 2, …

    Different questions have one content only where both were cut at the same place.
    """
    group_R = asked_R
    while True:
        before_R = group_R
        for kind_R in (content_R, asked_R):
            least = np.full(int(kind_R.max()) + 1, len(kind_R), np.int64)
            np.minimum.at(least, kind_R, group_R)
            group_R = least[kind_R]
        if (group_R == before_R).all():
            return np.unique(group_R, return_inverse=True)[1].astype(np.int64)


def _row_text(record: Record) -> bytes:
    return json.dumps(record.values, sort_keys=True, default=str).encode("ascii")


def _key(seed: int, content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16, key=seed.to_bytes(8, "little")).digest()
