"""Which rows are used and which samples are held out, by their content and the seed.

A choice by content does not depend on the order of files or rows, and sends equal samples the same way: a sample that
is held out is in no case trained as well under another line number. Every content gets a number from the seed, and
the smallest are chosen: BLAKE2b of seed and row (RFC 7693) for rows, and for samples the BLAKE2b of their tokens,
which the store keeps, mixed with the seed (`strop.data.order`): so a million samples are split in a second, unread.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from strop.data.order import mix, scramble
from strop.data.records import Record
from strop.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy.typing as npt

_HELD_OUT = 2
"""What a key is for (`strop.data.order.mix`); 1 is the order of the samples."""


def choose_rows(records: Iterable[Record], rows: int, seed: int) -> list[int]:
    """Choose rows of a data set; of each one 16 bytes are held.

    Args:
        records: all rows.
        rows: how many; more than there are, for all.
        seed: the recipe's seed.

    Returns:
        The numbers of the chosen rows, ascending.
    """
    key = seed.to_bytes(8, "little")
    keys = b"".join(hashlib.blake2b(_row_text(record), digest_size=16, key=key).digest() for record in records)
    numbers = np.frombuffer(keys, ">u8").reshape(-1, 2)
    order = np.lexsort((numbers[:, 1], numbers[:, 0]))
    chosen: list[int] = np.sort(order[:rows]).tolist()
    return chosen


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
    contents_S2: npt.NDArray[np.uint64], records_S: npt.NDArray[np.int64], count: int, seed: int
) -> npt.NDArray[np.bool_]:
    """Choose samples to hold out; equal samples are chosen together, and so are those of one record.

    Args:
        contents_S2: what each sample's tokens are, as 128 bits [S, 2].
        records_S: the number of each sample's record [S], ascending.
        count: how many; fewer are chosen where samples that belong together stand in the way.
        seed: the recipe's seed.

    Returns:
        Whether each is chosen [S].
    """
    chosen_S = np.zeros(len(records_S), np.bool_)
    if not count:
        return chosen_S
    group_S = _groups(contents_S2, records_S, seed)
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


def _groups(contents_S2: npt.NDArray[np.uint64], records_S: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """The group of each sample [S]: records of equal contents are one group, the smallest number of a content first."""
    starts_R = np.flatnonzero(np.diff(records_S, prepend=-1))
    record_S = np.cumsum(np.diff(records_S, prepend=-1) != 0) - 1
    first, second = contents_S2[:, 0], contents_S2[:, 1]
    if len(starts_R) < len(records_S):
        # A record's content: a sum over its samples that tells their order.
        turn = scramble((np.arange(len(records_S)) - starts_R[record_S]).astype(np.uint64))
        first = np.add.reduceat(scramble(first ^ turn), starts_R)
        second = np.add.reduceat(scramble(second ^ turn), starts_R)
    number_R = scramble(scramble(first ^ np.uint64(mix(seed, _HELD_OUT))) ^ second)
    order_R = np.lexsort((second, first, number_R))
    ordered = np.stack((number_R, first, second))[:, order_R]
    new_R = np.ones(len(order_R), np.bool_)
    new_R[1:] = (ordered[:, 1:] != ordered[:, :-1]).any(axis=0)
    group_R = np.empty(len(order_R), np.int64)
    group_R[order_R] = np.cumsum(new_R) - 1
    group_S: npt.NDArray[np.int64] = group_R[record_S]
    return group_S


def _row_text(record: Record) -> bytes:
    return json.dumps(record.values, sort_keys=True, default=str).encode("ascii")
