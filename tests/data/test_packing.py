"""Packs: whole documents, none lost, none split, none padded."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from strop.data.packing import NO_TARGET, Pack, pack
from strop.data.records import Example, Place


def example(tokens: list[int], learned: list[bool] | None = None, number: int = 0) -> Example:
    mask = learned if learned is not None else [False] * len(tokens)
    return Example(np.array(tokens, np.int32), np.array(mask, np.bool_), number, Place("f", number + 1))


def of_lengths(*lengths: int) -> list[Example]:
    return [example([number] * length, number=number) for number, length in enumerate(lengths)]


def ids(packs: list[Pack]) -> list[list[int]]:
    return [one.sample_ids_D.tolist() for one in packs]


def test_the_worked_example_of_the_module() -> None:
    a = example([5, 6, 7, 8], [False, False, True, True], 0)
    b = example([1, 2, 3], [False, True, True], 1)
    (one,) = pack([a, b], 8)
    assert one.tokens_T.tolist() == [5, 6, 7, 8, 1, 2, 3]
    assert one.targets_T.tolist() == [-100, 7, 8, -100, 2, 3, -100]
    assert one.positions_T.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert one.starts_D1.tolist() == [0, 4, 7]
    assert one.sample_ids_D.tolist() == [0, 1]
    assert one.learned_tokens == 4
    assert len(one) == 7
    assert {array.dtype for array in (one.tokens_T, one.targets_T, one.positions_T, one.starts_D1)} == {
        np.dtype(np.int32)
    }


def test_the_worked_example_of_the_function() -> None:
    assert [[len(d) for d in one] for one in documents(pack(of_lengths(5, 3, 4, 2), 8))] == [[5, 3], [4, 2]]


def test_the_fullest_pack_that_has_room_is_taken() -> None:
    # First fit would put the 2 into the pack of the 5.
    assert ids(pack(of_lengths(5, 6, 2), 8)) == [[0], [1, 2]]


def test_a_document_longer_than_a_pack_has_its_own() -> None:
    assert ids(pack(of_lengths(3, 20, 4), 8)) == [[0, 2], [1]]
    assert [len(one) for one in pack(of_lengths(3, 20, 4), 8)] == [7, 20]


def test_nothing_gives_no_packs() -> None:
    assert pack([], 8) == []


def documents(packs: list[Pack]) -> list[list[list[int]]]:
    return [
        [one.tokens_T[start:end].tolist() for start, end in zip(one.starts_D1, one.starts_D1[1:], strict=False)]
        for one in packs
    ]


samples = st.lists(st.lists(st.tuples(st.integers(0, 999), st.booleans()), min_size=1, max_size=20), max_size=25)


@given(samples=samples, pack_tokens=st.integers(1, 40))
def test_invariants(samples: list[list[tuple[int, bool]]], pack_tokens: int) -> None:
    examples = [
        example([token for token, _ in pairs], [learned for _, learned in pairs], number)
        for number, pairs in enumerate(samples)
    ]
    packs = pack(examples, pack_tokens)
    assert sorted(number for one in packs for number in one.sample_ids_D) == list(range(len(examples)))
    assert sum(one.learned_tokens for one in packs) == sum(int(one.learned[1:].sum()) for one in examples)
    assert [one.sample_ids_D[0] for one in packs] == sorted(one.sample_ids_D[0] for one in packs)
    for one, found in zip(packs, documents(packs), strict=True):
        assert len(one) <= pack_tokens or len(found) == 1
        assert one.starts_D1[0] == 0
        assert one.starts_D1[-1] == len(one)
        for number, tokens, start in zip(one.sample_ids_D, found, one.starts_D1, strict=False):
            original = examples[number]
            assert tokens == original.tokens.tolist()
            targets = one.targets_T[start : start + len(tokens)]
            for position, target in enumerate(targets[:-1].tolist()):
                assert target == (tokens[position + 1] if original.learned[position + 1] else NO_TARGET)
            assert targets[-1] == NO_TARGET
            assert one.positions_T[start : start + len(tokens)].tolist() == list(range(len(tokens)))
    # Best fit leaves at most one pack half empty or less.
    assert sum(2 * len(one) <= pack_tokens for one in packs) <= 1
    assert ids(pack(examples, pack_tokens)) == ids(packs)
