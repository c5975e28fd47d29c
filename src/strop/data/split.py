"""Which rows are used and which samples are held out, by their content and the seed.

A choice by content does not depend on the order of files or rows, and sends equal samples the same way: a sample that
is held out is in no case trained as well under another line number. Every content gets a number, BLAKE2b of seed and
content (RFC 7693); the smallest are chosen.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from strop.data.records import Example, Record
from strop.errors import DataError, UsageError

if TYPE_CHECKING:
    from strop.data.records import Tokens


def content_key(seed: int, tokens: Tokens) -> bytes:
    """The number of a content: 16 bytes, compared as they stand."""
    return _key(seed, tokens.astype("<i4").tobytes())


def choose_rows(records: Sequence[Record], rows: int | None, seed: int) -> list[int]:
    """Choose rows of a data set.

    Args:
        records: all rows.
        rows: how many; None, or more than there are, for all.
        seed: the recipe's seed.

    Returns:
        The numbers of the chosen rows, ascending.
    """
    if rows is None or rows >= len(records):
        return list(range(len(records)))
    keys = [_row_key(seed, record) for record in records]
    return sorted(sorted(range(len(records)), key=keys.__getitem__)[:rows])


def row_key(record: Record, seed: int) -> int:
    """The first 64 bits of the number of a row's content, for choosing among rows that are not held."""
    return int.from_bytes(_row_key(seed, record)[:8], "big")


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


def hold_out(examples: Sequence[Example], count: int, seed: int) -> set[int]:
    """Choose samples to hold out; equal samples are chosen together.

    Args:
        examples: all samples.
        count: how many; fewer are chosen where equal samples stand in the way.
        seed: the recipe's seed.

    Returns:
        The ids of the chosen samples.
    """
    groups: defaultdict[bytes, list[int]] = defaultdict(list)
    for example in examples:
        groups[content_key(seed, example.tokens)].append(example.id)
    chosen: set[int] = set()
    for key in sorted(groups):
        if len(chosen) + len(groups[key]) <= count:
            chosen.update(groups[key])
    return chosen


def _row_key(seed: int, record: Record) -> bytes:
    return _key(seed, json.dumps(record.values, sort_keys=True).encode("ascii"))


def _key(seed: int, content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16, key=seed.to_bytes(8, "little")).digest()
