"""What a run is said to compute against all its packs, made one by one."""

from itertools import product as every

import numpy as np
import pytest

from planner_cases import example, examples
from strop.data.order import step_samples
from strop.data.packing import pack
from strop.plan import workload as workload_module
from strop.plan.workload import measure, pack_candidates


def whole_run(learned, steps, samples_per_step, seed, pack_tokens, share):
    """The packs of each step."""
    return [
        pack([learned[i] for i in step_samples(seed, step, len(learned), samples_per_step)], pack_tokens, share)
        for step in range(steps)
    ]


@pytest.mark.parametrize(("pack_tokens", "beginning"), [*every((20, 64, 150, 1000), (0, 12))])
def test_a_short_run_is_measured_whole(pack_tokens, beginning):
    learned, held_out = examples(23, 70, beginning), examples(5, 40, beginning)
    for prefixes, dropout in (("repeated", 0.0), ("shared", 0.0), ("shared", 0.1)):
        share = prefixes == "shared" and not dropout
        found = measure(
            learned,
            held_out,
            steps=4,
            samples_per_step=7,
            seed=3,
            pack_tokens=pack_tokens,
            prefixes=prefixes,
            dropout=dropout,
        )
        steps = whole_run(learned, 4, 7, 3, pack_tokens, share)
        looked = pack(held_out, pack_tokens, prefixes == "shared")
        packs = [one for step in steps for one in step]
        assert found.packs_per_step * 4 == len(packs)
        assert found.computed_tokens * 4 == sum(len(one) for one in packs)
        assert found.read_tokens * 4 == sum(one.read_tokens for one in packs)
        assert found.learned_tokens * 4 == sum(one.learned_tokens for one in packs)
        assert found.largest_pack == max(len(one) for one in (*packs, *looked))
        assert found.most_learned == max(one.learned_tokens for one in (*packs, *looked))
        assert found.longest_sample == max(len(one) for one in (*learned, *held_out))
        assert found.packs.pairs_P.sum() == sum(pairs(one) for one in packs)
        assert found.held_out.pairs_P.sum() == sum(pairs(one) for one in looked)
        assert found.packs.chunks(9) == sum(-(-one.learned_tokens // 9) for one in packs)
        assert (found.prefixes, found.steps, found.held_out_scale) == (prefixes, 4, 1.0)


def pairs(one) -> int:
    """What positions see, position by position."""
    seen = 0
    for start, end, first, last in one.spans:
        for position in range(start, end):
            seen += position - start + 1 + last - first
    return seen


@pytest.mark.parametrize(("pack_tokens", "beginning", "seed"), [*every((40, 100, 10_000), (0, 15), (0, 5))])
def test_bounds_hold_for_every_step_of_a_long_run(pack_tokens, beginning, seed, monkeypatch):
    """A few steps are packed, and no other one asks for more than is said."""
    monkeypatch.setattr(workload_module, "_PACKED_SAMPLES", 40)
    learned, held_out = examples(50, 60, beginning), examples(90, 50, beginning)
    for share in (False, True):
        found = measure(
            learned,
            held_out,
            steps=60,
            samples_per_step=6,
            seed=seed,
            pack_tokens=pack_tokens,
            prefixes="shared" if share else "repeated",
            dropout=0.0,
        )
        assert found.packed_steps == 6
        assert found.held_out_scale == pytest.approx(2.0)
        steps = whole_run(learned, 60, 6, seed, pack_tokens, share)
        packs = [one for step in steps for one in step] + pack(held_out, pack_tokens, share)
        assert found.largest_pack >= max(len(one) for one in packs)
        assert found.most_learned >= max(one.learned_tokens for one in packs)


def test_bounds_without_held_out_samples_are_near(monkeypatch):
    monkeypatch.setattr(workload_module, "_PACKED_SAMPLES", 24)
    learned = examples(64, 100)
    found = measure(
        learned, [], steps=80, samples_per_step=8, seed=1, pack_tokens=256, prefixes="repeated", dropout=0.0
    )
    packs = [one for step in whole_run(learned, 80, 8, 1, 256, False) for one in step]
    largest, most = max(len(one) for one in packs), max(one.learned_tokens for one in packs)
    assert largest <= found.largest_pack <= 1.02 * largest
    assert most <= found.most_learned <= 1.2 * most
    assert len(found.held_out.tokens_P) == 0


def test_a_very_long_run_is_bounded_by_its_samples(monkeypatch):
    """More samples in order than are looked at one by one: no step can be worse than the worst samples together."""
    learned = examples(40, 80)
    values = {"steps": 30, "samples_per_step": 5, "seed": 2, "prefixes": "repeated", "dropout": 0.0}
    monkeypatch.setattr(workload_module, "_PACKED_SAMPLES", 20)
    exact = {size: measure(learned, [], pack_tokens=size, **values) for size in (100, 100_000)}
    monkeypatch.setattr(workload_module, "_ORDERED_SAMPLES", 10)
    for size, near in exact.items():
        coarse = measure(learned, [], pack_tokens=size, **values)
        assert coarse.largest_pack >= near.largest_pack
        assert coarse.most_learned >= near.most_learned
        packs = [one for step in whole_run(learned, 30, 5, 2, size, False) for one in step]
        assert coarse.most_learned >= max(one.learned_tokens for one in packs)


def test_a_step_may_hold_samples_twice(monkeypatch):
    """A step larger than the data set."""
    monkeypatch.setattr(workload_module, "_PACKED_SAMPLES", 8)
    learned = examples(3, 20)
    values = {"steps": 9, "samples_per_step": 8, "seed": 2, "prefixes": "repeated", "dropout": 0.0}
    for ordered in (10**6, 1):
        monkeypatch.setattr(workload_module, "_ORDERED_SAMPLES", ordered)
        found = measure(learned, [], pack_tokens=1000, **values)
        packs = [one for step in whole_run(learned, 9, 8, 2, 1000, False) for one in step]
        assert found.largest_pack >= max(len(one) for one in packs)


def test_pack_lengths_that_are_tried():
    learned = [example(index, tokens, 3) for index, tokens in enumerate([300, 20, 20, 500, 20, 20])]
    # Each step holds three of six samples in a seeded order: at most 820 tokens, and 540 where the long ones part.
    whole = max(sum(len(learned[i]) for i in step_samples(0, step, 6, 3)) for step in range(2))
    assert pack_candidates(learned, steps=2, samples_per_step=3, seed=0) == sorted({500, min(512, whole), whole})
    assert pack_candidates(learned, steps=9, samples_per_step=1, seed=0) == [500]
    many = [example(index, 100, 3) for index in range(400)]
    assert pack_candidates(many, steps=1, samples_per_step=400, seed=0) == [
        *(100, 256, 512, 1024, 2048, 4096, 8192),
    ]
    longer = [example(0, 9000, 3), example(1, 10, 3)]
    assert pack_candidates(longer, steps=2, samples_per_step=2, seed=0) == [9000]


def test_the_figures_are_plain_numbers():
    found = measure(
        examples(9), [], steps=2, samples_per_step=3, seed=0, pack_tokens=64, prefixes="shared", dropout=0.0
    ).as_dict()
    assert all(isinstance(value, int | float | str) and not isinstance(value, np.generic) for value in found.values())
    assert found["steps"] == 2
