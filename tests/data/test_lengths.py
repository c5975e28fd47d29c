"""What limits cost and how full packs are, against counting by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from strop.data.lengths import LimitCost, fill, limit_costs, limits, quantiles
from strop.data.records import Example, Place


def of(length: int, first_learned: int) -> Example:
    learned = np.arange(length) >= first_learned
    return Example(np.zeros(length, np.int32), learned, 0, Place("f", 1))


def test_the_picture() -> None:
    costs = limit_costs([of(3, 1), of(5, 2), of(9, 4)], [0, 4, 9])
    assert costs == [
        LimitCost(0, 3, 17, 10, 17, 10),
        LimitCost(4, 2, 14, 8, 6, 6),
        LimitCost(9, 0, 0, 0, 0, 0),
    ]
    assert limit_costs([], [4]) == [LimitCost(4, 0, 0, 0, 0, 0)]


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60)), max_size=20), st.integers(0, 70))
def test_a_limit_costs_what_is_beyond_it(shapes: list[tuple[int, int]], limit: int) -> None:
    samples = [of(*shape) for shape in shapes]
    (cost,) = limit_costs(samples, [limit])
    longer = [sample for sample in samples if len(sample) > limit]
    assert cost.over == len(longer)
    assert cost.tokens == sum(len(sample) for sample in longer)
    assert cost.learned == sum(int(sample.learned.sum()) for sample in longer)
    assert cost.cut_tokens == sum(len(sample.tokens[limit:]) for sample in longer)
    assert cost.cut_learned == sum(int(sample.learned[limit:].sum()) for sample in longer)


@given(st.integers(1, 2**20), st.one_of(st.none(), st.integers(8, 2**20)))
def test_limits_end_where_all_samples_fit(longest: int, known: int | None) -> None:
    found = limits(longest, known, None)
    assert found == sorted(set(found))
    assert len(found) <= 10
    assert found[-1] >= longest
    assert known is None or known in found
    if longest > 16:
        assert found[0] < longest


def test_limits_of_common_data() -> None:
    assert limits(570, None) == [256, 512, 1024]
    assert limits(87, None) == [64, 128]
    assert limits(3000, 1000, 2048) == [256, 512, 1000, 1024, 2048, 4096]


def test_quantiles_are_lengths_that_occur() -> None:
    assert quantiles(np.array([], np.int64)) == {}
    found = quantiles(np.arange(1, 101))
    assert found == {
        "shortest": 1,
        "mean": 50.5,
        "median": 50,
        "percentile_95": 95,
        "percentile_99": 99,
        "longest": 100,
    }


def test_fill() -> None:
    found = fill([of(3, 1), of(5, 2), of(4, 2), of(4, 2)], 8, samples_per_step=2, seed=0)
    assert (found.packs, found.tokens, found.samples, found.share) == (2, 16, 4, 1.0)
    assert (found.steps, found.step_tokens) == (2, 8.0)
    assert fill([of(20, 1)], 8, samples_per_step=1, seed=0).share == 1.0
    assert set(found.as_dict()) >= {"pack_tokens", "packs", "share", "step_packs", "step_tokens"}
