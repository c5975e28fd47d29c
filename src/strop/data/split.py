"""Which rows are used and which samples are held out, by their content and the seed.

A choice by content does not depend on the order of files or rows, and sends equal samples the same way: a sample that
is held out is in no case trained as well under another line number. Every content gets a number, BLAKE2b of seed and
content (RFC 7693); the smallest are chosen.
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
    contents_S2: npt.NDArray[np.uint64], records_S: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.bool_]:
    """Choose samples to hold out; equal samples are chosen together, and so are those of one record.

    Args:
        contents_S2: the number of each sample's content (`content_key`), as 128 bits [S, 2].
        records_S: the number of each sample's record [S], ascending.
        count: how many; fewer are chosen where samples that belong together stand in the way.

    Returns:
        Whether each is chosen [S].
    """
    chosen_S = np.zeros(len(records_S), np.bool_)
    if not count:
        return chosen_S
    group_S = _groups(contents_S2.byteswap(), records_S)
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


def _groups(numbers_S2: npt.NDArray[np.uint64], records_S: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The group of each sample [S]: records of equal contents are one group, the smallest number of a content first."""
    is_first_S = np.diff(records_S, prepend=-1) != 0
    starts_R, record_S = np.flatnonzero(is_first_S), np.cumsum(is_first_S) - 1
    first, second = numbers_S2[:, 0], numbers_S2[:, 1]
    if len(starts_R) < len(records_S):
        # A record's number: a sum over its samples that tells their order.
        turn = scramble((np.arange(len(records_S)) - starts_R[record_S]).astype(np.uint64))
        first = np.add.reduceat(scramble(first ^ turn), starts_R)
        second = np.add.reduceat(scramble(second ^ turn), starts_R)
    order_R = np.lexsort((second, first))
    ordered = np.stack((first, second))[:, order_R]
    new_R = np.ones(len(order_R), np.bool_)
    new_R[1:] = (ordered[:, 1:] != ordered[:, :-1]).any(axis=0)
    group_R = np.empty(len(order_R), np.int64)
    group_R[order_R] = np.cumsum(new_R) - 1
    group_S: npt.NDArray[np.int64] = group_R[record_S]
    return group_S


def _row_text(record: Record) -> bytes:
    return json.dumps(record.values, sort_keys=True, default=str).encode("ascii")


def _key(seed: int, content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16, key=seed.to_bytes(8, "little")).digest()
