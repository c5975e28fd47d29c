"""Packs: whole documents, none lost, none split, none padded; common beginnings computed once."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.data.packing import NO_TARGET, Pack, pack
from strop.data.prefixes import Prefix, shared_prefixes
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
    assert one.prefix_of_D.tolist() == [-1, -1]
    assert one.spans == ((0, 4, 0, 0), (4, 7, 4, 4))
    assert one.learned_tokens == 4
    assert len(one) == one.read_tokens == 7
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


def best_fit(examples: list[Example], pack_tokens: int, prefixes: list[Prefix]) -> list[list[int]]:
    """Best fit decreasing by its definition, looking at every pack for every sample."""
    home = {number: prefix for prefix in prefixes for number in prefix.members}
    bringing = [max(prefix.members, key=lambda n: (len(examples[n]), -n)) for prefix in prefixes]
    rest = [len(one) - (home[n].tokens if n in home else 0) for n, one in enumerate(examples)]
    by = [len(one) if n in bringing else rest[n] for n, one in enumerate(examples)]
    packs: list[tuple[int, list[int]]] = []
    for n in sorted(range(len(examples)), key=lambda n: (-by[n], n)):
        there = {at for at, (_, members) in enumerate(packs) if n in home and set(home[n].members) & set(members)}
        options = [(left, at, rest[n]) for at, (left, _) in enumerate(packs) if at in there and left >= rest[n]]
        cost = len(examples[n])
        options = options or [(left, at, cost) for at, (left, _) in enumerate(packs) if left >= cost]
        if not options:
            packs.append((max(pack_tokens, cost), []))
            options = [(packs[-1][0], len(packs) - 1, cost)]
        left, at, cost = min(options)
        packs[at] = (left - cost, [*packs[at][1], n])
    return sorted((sorted(members) for _, members in packs), key=min)


def test_the_worked_example_of_sharing() -> None:
    system = [9] * 30
    a = example([*system, 5, 6, 7], [False] * 31 + [True, True], 4)
    b = example([*system, 8, 9], [False] * 31 + [True], 2)
    (one,) = pack([a, b], 36, share_prefixes=True)
    assert one.tokens_T[27:].tolist() == [9, 9, 9, 5, 6, 7, 8, 9]
    assert one.targets_T[27:].tolist() == [-100, -100, -100, 6, 7, -100, 9, -100]
    assert one.positions_T[27:].tolist() == [27, 28, 29, 30, 31, 32, 30, 31]
    assert one.starts_D1.tolist() == [0, 30, 33, 35]
    assert one.prefix_of_D.tolist() == [-1, 0, 0]
    assert one.sample_ids_D.tolist() == [4, 4, 2]
    assert one.spans == ((0, 30, 0, 0), (30, 33, 0, 30), (33, 35, 0, 30))
    assert (len(one), one.read_tokens, one.learned_tokens) == (35, 65, 3)
    assert one.prefix_of_D.dtype == np.int32


def test_samples_with_a_common_beginning_go_together_behind_it() -> None:
    system, other = [1] * 20, [2] * 20
    beginnings = [system, other, system, [3], other, system]
    examples = [example([*tokens, 50 + n, 60, 70], number=n) for n, tokens in enumerate(beginnings)]
    (one,) = pack(examples, 1000, share_prefixes=True)
    assert one.sample_ids_D.tolist() == [0, 0, 2, 5, 1, 1, 4, 3]
    assert one.prefix_of_D.tolist() == [-1, 0, 0, 0, -1, 4, 4, -1]


def test_a_beginning_is_brought_along_once_a_pack_and_only_where_it_is_shared() -> None:
    examples = [example([1] * 20 + [50 + n] * 10, number=n) for n in range(5)]
    # 20 + 10 + 10 fill a pack; the fifth sample has nobody to share with.
    packs = pack(examples, 40, share_prefixes=True)
    assert [len(one) for one in packs] == [40, 40, 30]
    assert ids(packs) == [[0, 0, 1], [2, 2, 3], [4]]
    assert [one.prefix_of_D.tolist() for one in packs] == [[-1, 0, 0], [-1, 0, 0], [-1]]


def test_a_beginning_goes_where_the_longest_of_its_samples_goes() -> None:
    """A long beginning with short ends is not left until the packs are full of shorter samples."""
    shared = [example([1] * 60 + [50 + n] * 2, number=n) for n in range(3)]
    alone = [example([100 + n] * 20, number=3 + n) for n in range(4)]
    assert ids(pack([*shared, *alone], 86, share_prefixes=True)) == [[0, 0, 1, 2, 3], [4, 5, 6]]
    assert [len(one) for one in pack([*shared, *alone], 86, share_prefixes=True)] == [86, 60]


beginnings = st.lists(st.sampled_from([[1] * 12, [2] * 9, [3, 4]]), max_size=3)
pieces = st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=8)
alike = st.lists(st.tuples(beginnings, pieces), max_size=14)


def alike_examples(drawn: list[tuple[list[list[int]], list[tuple[int, bool]]]]) -> list[Example]:
    found = []
    for number, (parts, rest) in enumerate(drawn):
        begin = [token for part in parts for token in part]
        tokens, learned = zip(*rest, strict=True)
        found.append(example([*begin, *tokens], [False] * len(begin) + list(learned), number))
    return found


@given(drawn=alike, pack_tokens=st.integers(1, 90), shared=st.booleans())
def test_packs_are_those_of_the_definition(drawn: list, pack_tokens: int, shared: bool) -> None:
    examples = alike_examples(drawn)
    packs = pack(examples, pack_tokens, share_prefixes=shared)
    expected = best_fit(examples, pack_tokens, shared_prefixes(examples, pack_tokens) if shared else [])
    assert [sorted(set(one.sample_ids_D.tolist())) for one in packs] == expected
    if not shared:
        assert ids(packs) == expected
        assert all((one.prefix_of_D == -1).all() and len(one) == one.read_tokens for one in packs)


@given(drawn=alike, pack_tokens=st.integers(1, 90))
def test_every_sample_is_whole_in_a_shared_pack(drawn: list, pack_tokens: int) -> None:
    """What every position sees, predicts and is called is what it is in the sample alone; nothing is learned twice."""
    examples = alike_examples(drawn)
    packs = pack(examples, pack_tokens, share_prefixes=True)
    found: list[int] = []
    for one in packs:
        computed = 0
        continued = {prefix for prefix in one.prefix_of_D.tolist() if prefix >= 0}
        members = [document for document in range(len(one.spans)) if document not in continued]
        for document, (start, end, prefix_start, prefix_end) in enumerate(one.spans):
            computed += end - start
            if document in continued:
                assert (one.targets_T[start:end] == NO_TARGET).all()
                assert prefix_start == prefix_end
                assert one.sample_ids_D[document] == one.sample_ids_D[document + 1]
                assert sum(one.prefix_of_D == document) > 1
                continue
            original = examples[one.sample_ids_D[document]]
            found.append(original.id)
            rows = [*range(prefix_start, prefix_end), *range(start, end)]
            assert end > start >= prefix_end
            assert one.tokens_T[rows].tolist() == original.tokens.tolist()
            assert one.positions_T[rows].tolist() == list(range(len(original)))
            taught = np.append(original.learned[1:], False)
            following = np.append(original.tokens[1:], 0)
            assert one.targets_T[rows].tolist() == np.where(taught, following, NO_TARGET).tolist()
        assert computed == len(one) == one.starts_D1[-1]
        assert one.read_tokens == sum(len(examples[number]) for number in one.sample_ids_D[members])
        assert len(one) <= min(pack_tokens, one.read_tokens) or len(members) == 1
    assert sorted(found) == list(range(len(examples)))
    assert sum(one.learned_tokens for one in packs) == sum(int(one.learned[1:].sum()) for one in examples)


def test_nothing_in_common_gives_the_packs_of_no_sharing() -> None:
    drawn = random.Random(3)
    examples = [
        example([drawn.randrange(1000) for _ in range(drawn.randrange(1, 60))], number=number) for number in range(60)
    ]
    for one, other in zip(pack(examples, 128), pack(examples, 128, share_prefixes=True), strict=True):
        for name in ("tokens_T", "targets_T", "positions_T", "starts_D1", "sample_ids_D", "prefix_of_D"):
            assert getattr(one, name).tolist() == getattr(other, name).tolist(), name


@pytest.mark.parametrize("system", [60, 200])
def test_a_system_prompt_is_computed_once_a_pack(system: int) -> None:
    """Questions and answers of the lengths of school problems, under one system prompt."""
    drawn = random.Random(system)
    examples = []
    for number in range(32):
        question, answer = (
            [drawn.randrange(5000) for _ in range(drawn.randint(*limits))] for limits in ((30, 90), (50, 200))
        )
        tokens = [*range(system), *question, *answer]
        examples.append(example(tokens, [False] * (system + len(question)) + [True] * len(answer), number))
    plain, shared = (pack(examples, 2048, share_prefixes=share) for share in (False, True))
    computed = sum(len(one) for one in shared)
    assert sum(one.read_tokens for one in shared) == sum(len(one) for one in plain)
    assert computed == sum(len(one) for one in plain) - (len(examples) - len(shared)) * system
    assert len(shared) <= len(plain)


@given(samples=samples, pack_tokens=st.integers(1, 40), share=st.booleans())
def test_weights_stand_beside_their_targets(
    samples: list[list[tuple[int, bool]]], pack_tokens: int, share: bool
) -> None:
    """A token's weight is a function of the token here, so that it is known wherever the token lands."""
    examples = []
    for number, pairs in enumerate(samples):
        plain = example([token for token, _ in pairs], [learned for _, learned in pairs], number)
        weights = np.where(plain.learned, plain.tokens % 7 + 1, 0).astype(np.float32)
        examples.append(replace(plain, weights=weights if number % 2 else None))
    for one in pack(examples, pack_tokens, share):
        wanted = np.where(one.targets_T == NO_TARGET, 0, one.targets_T % 7 + 1)
        odd = np.repeat(one.sample_ids_D % 2 == 1, np.diff(one.starts_D1))
        wanted = np.where(odd, wanted, one.targets_T != NO_TARGET)
        weights = one.weights_T if one.weights_T is not None else (one.targets_T != NO_TARGET).astype(np.float32)
        assert weights.tolist() == wanted.tolist()
        assert one.weight == wanted.sum()
        assert (one.weights_T is None) == (not (one.sample_ids_D % 2).any())
