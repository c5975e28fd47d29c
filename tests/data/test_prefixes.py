"""Common beginnings: the choice that saves the most, and nothing that is learned in them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import chain, takewhile

import numpy as np
import pytest
from hypothesis import example as instance
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.data.prefixes import LEAST_TOKENS, Prefix, shared_prefixes
from strop.data.records import Example, Place

S, P, Q = [1] * 20, [2] * 9, [3] * 11


def sample(prompt: Sequence[int], answer: Sequence[int], number: int = 0) -> Example:
    """An answer is learned, all of it."""
    learned = [False] * len(prompt) + [True] * len(answer)
    return Example(np.array([*prompt, *answer], np.int32), np.array(learned), number, Place("f", number + 1))


def samples(*pairs: tuple[Sequence[int], Sequence[int]]) -> list[Example]:
    return [sample(prompt, answer, number) for number, (prompt, answer) in enumerate(pairs)]


def chosen_for_one_pack(examples: Sequence[Example]) -> list[Prefix]:
    return shared_prefixes(examples, sum(map(len, examples)))


def common_beginning(examples: Sequence[Example]) -> int:
    """By its definition: equal in all, no position of it teaches anything, a token left."""
    equal = takewhile(
        lambda column: len(set(column)) == 1, zip(*(one.tokens.tolist() for one in examples), strict=False)
    )
    limits = [len(list(equal))]
    for one in examples:
        taught = [position for position in range(len(one) - 1) if one.learned[position + 1]]
        limits.append(min([*taught, len(one) - 1]))
    return min(limits)


def partitions(numbers: Sequence[int]) -> Iterator[list[list[int]]]:
    if not numbers:
        yield []
        return
    for parts in partitions(numbers[1:]):
        yield [[numbers[0]], *parts]
        for at, part in enumerate(parts):
            yield [*parts[:at], [numbers[0], *part], *parts[at + 1 :]]


def saving(examples: Sequence[Example], parts: Sequence[Sequence[int]]) -> int:
    total = 0
    for part in parts:
        length = common_beginning([examples[number] for number in part])
        total += (len(part) - 1) * length if length >= LEAST_TOKENS else 0
    return total


def test_the_worked_example_of_the_module() -> None:
    # Everything ten times as long; the question's last token predicts the answer and so is not in the beginning.
    system, p, q = [0] * 40, [1] * 20, [2] * 20
    pairs = [([*system, *p, n, 9], [9]) for n in (3, 4, 5)] + [([*system, *q, n, 9], [9]) for n in (6, 7)]
    assert chosen_for_one_pack(samples(*pairs)) == [Prefix(60, (0, 1, 2)), Prefix(60, (3, 4))]
    # 4 × 40 < 2 × 60 + 60; without c and e 2 × 40 > 60.
    assert chosen_for_one_pack(samples(*pairs[:2], pairs[3])) == [Prefix(40, (0, 1, 2))]


def test_some_share_a_long_beginning_and_the_rest_its_start() -> None:
    system, passage = [0] * 40, [1] * 25
    asked = [([*system, *passage, n, 9], [9]) for n in (3, 4, 5)]
    others = [([*system, n, 9], [9]) for n in (6, 7, 8)]
    # 2 × 65 + 2 × 40 = 210 > 5 × 40 > 2 × 65.
    assert chosen_for_one_pack(samples(*others, *asked)) == [Prefix(40, (0, 1, 2)), Prefix(65, (3, 4, 5))]


def test_no_position_of_a_beginning_teaches_anything() -> None:
    alike = [5] * 30
    # Token 12 is learned in one of them, so position 11 has a target there.
    learned = np.array([False] * 12 + [True] * 18)
    one = Example(np.array(alike, np.int32), learned, 0, Place("f"))
    other = Example(np.array(alike, np.int32), np.zeros(30, np.bool_), 1, Place("f"))
    assert chosen_for_one_pack([one, other]) == [Prefix(11, (0, 1))]
    assert chosen_for_one_pack([other, other]) == [Prefix(29, (0, 1))]


def test_nobody_predicts_the_first_token_so_it_may_be_learned() -> None:
    first = np.array([True] + [False] * 19)
    one = Example(np.arange(20, dtype=np.int32), first, 0, Place("f"))
    assert chosen_for_one_pack([one, one]) == [Prefix(19, (0, 1))]


@pytest.mark.parametrize(("length", "shared"), [(LEAST_TOKENS - 1, False), (LEAST_TOKENS, True)])
def test_short_beginnings_are_left_alone(length: int, shared: bool) -> None:
    pair = samples(([1] * length + [2, 9], [3]), ([1] * length + [4, 9], [3]))
    assert bool(chosen_for_one_pack(pair)) == shared


def test_nothing_in_common() -> None:
    assert chosen_for_one_pack([]) == []
    assert chosen_for_one_pack([sample(S, P)]) == []
    assert chosen_for_one_pack(samples((S, P), (Q, P), ([4], [5]), ([], [5]))) == []


blocks = st.lists(st.sampled_from([S, P, Q, [4], [5, 4, 4, 4]]), max_size=4).map(
    lambda parts: [*chain.from_iterable(parts)]
)
few = st.lists(st.tuples(blocks, st.lists(st.integers(1, 4), min_size=1, max_size=3)), max_size=6)


@settings(max_examples=250)
@given(pairs=few)
@instance([(S + P, [7]), (S + P, [8]), (S + Q, [7]), (S + Q, [8]), (S + S + P, [8]), (S + S + P + P, [9])])
@instance([(S, [7]), (S + S, [7]), (S + S + S, [7]), (S + S + S + S, [7]), (S + S + S + S, [7])])
def test_no_choice_saves_more(pairs: list[tuple[list[int], list[int]]]) -> None:
    """Against all ways to put the samples into groups."""
    examples = samples(*pairs)
    chosen = chosen_for_one_pack(examples)
    for prefix in chosen:
        assert len(prefix.members) > 1
        assert LEAST_TOKENS <= prefix.tokens <= common_beginning([examples[number] for number in prefix.members])
    taken = [number for prefix in chosen for number in prefix.members]
    assert len(taken) == len(set(taken))
    saved = sum((len(prefix.members) - 1) * prefix.tokens for prefix in chosen)
    assert saved == max(saving(examples, parts) for parts in partitions(range(len(examples))))


@given(pairs=few, seed=st.integers(0, 99))
def test_the_order_of_samples_does_not_change_what_is_saved(
    pairs: list[tuple[list[int], list[int]]], seed: int
) -> None:
    examples = samples(*pairs)
    chosen = chosen_for_one_pack(examples)
    shuffled = chosen_for_one_pack(random.Random(seed).sample(examples, len(examples)))
    one, other = (sum((len(prefix.members) - 1) * prefix.tokens for prefix in found) for found in (chosen, shuffled))
    assert one == other
    assert [prefix.members for prefix in chosen] == sorted(prefix.members for prefix in chosen)
    assert all(list(prefix.members) == sorted(prefix.members) for prefix in chosen)


def test_many_samples_deep_in_one_another() -> None:
    """A chain of beginnings, each a token longer than the last, is deeper than Python's stack."""
    examples = [sample([1] * (LEAST_TOKENS + number) + [2, 2], [3]) for number in range(1500)]
    chosen = chosen_for_one_pack(examples)
    saved = sum((len(prefix.members) - 1) * prefix.tokens for prefix in chosen)
    assert saved > 1499 * (LEAST_TOKENS + 700)


def test_what_every_pack_computes_anew_is_paid_for_in_every_pack() -> None:
    """Two thirds go on alike for two tokens: worth it in one pack, and not in many."""
    system = [0] * 20
    examples = samples(*(([*system, *([1, 1] if n % 3 else [n + 2]), *[1000 + n] * 20], [9]) for n in range(90)))
    alike = tuple(n for n in range(90) if n % 3)
    assert chosen_for_one_pack(examples) == [
        Prefix(20, tuple(n for n in range(90) if n % 3 == 0)),
        Prefix(22, alike),
    ]
    assert shared_prefixes(examples, 220) == [Prefix(20, tuple(range(90)))]
    # A pack that holds one sample shares nothing.
    assert shared_prefixes(examples, 30) == []
