"""Packs are full: on lengths like those of GSM8K and MATH at 4,096 tokens, with every sample in one pack, whole."""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.data.packing import fill, pack
from strop.data.records import Example, Place

PACK = 4096


def like(median: float, spread: float, samples: int = 7500) -> npt.NDArray[np.int64]:
    """Log-normal lengths, none beyond 1,024 tokens."""
    made = np.exp(np.random.default_rng(0).normal(np.log(median), spread, samples * 2)).astype(np.int64) + 30
    return made[made <= 1024][:samples]


DATA = {"GSM8K": like(180, 0.35), "MATH": like(240, 0.68)}


def fullness(lengths_S: npt.NDArray[np.int64]) -> float:
    return float(lengths_S.sum() / (len(fill(lengths_S.tolist(), PACK)) * PACK))


@pytest.mark.parametrize("name", sorted(DATA))
def test_packs_are_full(name: str) -> None:
    """A whole data set, and steps of 256 samples (14 to 20 packs each, of which the last one can be anything)."""
    lengths_S = DATA[name]
    assert fullness(lengths_S) > 0.995
    packs = fill(lengths_S.tolist(), PACK)
    assert sorted(number for one in packs for number in one) == list(range(len(lengths_S)))
    assert max(sum(int(lengths_S[number]) for number in one) for one in packs) <= PACK
    steps = lengths_S[: len(lengths_S) // 256 * 256].reshape(-1, 256)
    used = sum(len(fill(step.tolist(), PACK)) for step in steps)
    fewest = sum(-(-int(step.sum()) // PACK) for step in steps)
    assert used <= fewest * 1.005  # next to no step takes a pack more than its tokens need


def test_nothing_is_dropped_or_split() -> None:
    examples = [
        Example(np.full(length, number, np.int32), np.ones(length, np.bool_), number, Place("f"))
        for number, length in enumerate(DATA["MATH"][:300].tolist())
    ]
    packs = pack(examples, PACK)
    found = [document for one in packs for document in np.split(one.tokens_T, one.starts_D1[1:-1])]
    ids = [int(document[0]) for document in found]
    assert sorted(ids) == list(range(300))
    assert all(len(document) == len(examples[number]) for number, document in zip(ids, found, strict=True))
    assert all((document == number).all() for number, document in zip(ids, found, strict=True))


def plain(lengths: list[int], pack_tokens: int) -> list[list[int]]:
    """Best fit decreasing, all packs looked at."""
    room: list[tuple[int, int]] = []
    packs: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        best = bisect_left(room, (lengths[number], -1))
        left, place = room.pop(best) if best < len(room) else (max(pack_tokens, lengths[number]), len(packs))
        if place == len(packs):
            packs.append([])
        packs[place].append(number)
        insort(room, (left - lengths[number], place))
    return packs


@given(lengths=st.lists(st.integers(1, 30), max_size=60), pack_tokens=st.integers(1, 40))
def test_full_packs_are_left_out_of_the_search_and_nothing_changes(lengths: list[int], pack_tokens: int) -> None:
    assert fill(lengths, pack_tokens) == plain(lengths, pack_tokens)
