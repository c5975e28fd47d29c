"""The search against all plans one by one, and what is promised of a choice."""

from dataclasses import replace
from itertools import pairwise
from itertools import product as every

import pytest

from planner_cases import (
    INTERNLM_7B,
    PLAN,
    QKV,
    dataset,
    even_rates,
    example,
    examples,
    job,
    machine,
    recipe,
    spec,
)
from strop.errors import BudgetError
from strop.model.lora import parse_targets
from strop.plan import search
from strop.plan.budget import budget_for, parse_size, usable
from strop.plan.choose import choose, default_plan, forecast_for, leaner, packing_of
from strop.plan.duration import forecast_time
from strop.plan.memory import forecast_memory
from strop.plan.plan import LEVERS
from strop.plan.search import packed
from strop.plan.workload import pack_candidates

LEARNED, HELD_OUT = examples(40, 60, 9), examples(6, 40, 9)
CHUNKS = (32, 128, 1024)
BOX = machine(spec(), process_bytes=2_000_000, library_bytes=0)


def chosen(budget=None, *, model=None, box=BOX, levers=None, sections=None, **named):
    """A choice for the samples above."""
    return choose(
        model or spec(),
        lambda _: 2,
        dataset(LEARNED, HELD_OUT),
        recipe(**(sections or {})),
        steps=6,
        budget_bytes=budget,
        levers=levers,
        machine=box,
        **named,
    )


def all_plans(asked, box, prefixes):
    """(bytes, seconds) of every plan that shares beginnings or does not, one by one."""
    layers = range(asked.spec.layers + 1)
    sizes = pack_candidates(asked.learned, steps=asked.steps, samples_per_step=asked.samples_per_step, seed=asked.seed)
    found = []
    for size in sizes:
        base = replace(PLAN, pack_tokens=size, prefixes=prefixes, threads=box.cores)
        workload = packed(asked, base)
        for head, embedding, chunk in every(("dense", "stored"), ("memory", "file"), CHUNKS):
            for whole, some, dense in every(layers, layers, layers):
                if whole + some > asked.spec.layers:
                    continue
                plan = replace(
                    base,
                    head=head,
                    embedding=embedding,
                    loss_chunk=chunk,
                    recompute_layers=whole,
                    recompute_elementwise=some,
                    dense_layers=dense,
                )
                peak = sum(forecast_memory(asked, plan, workload, box).values())
                seconds = sum(forecast_time(asked, plan, workload, box)[1].values())
                found.append((peak, seconds))
    return found


def best_of(plans):
    """Those that nothing beats, the smallest memory first."""
    kept = []
    for peak, seconds in sorted(plans):
        if not kept or seconds < kept[-1][1] * (1 - 1e-9):
            kept.append((peak, seconds))
    return kept


@pytest.mark.parametrize(
    ("changes", "box"),
    [
        ({}, {}),
        ({"targets": parse_targets(QKV)}, {"rates": replace(even_rates(), dequantise=3e-7)}),
        ({"spec": spec(layers=3), "dropout": 0.1}, {"rates": replace(even_rates(), gate=1e-7, norm=1e-6)}),
        ({"spec": spec(layers=2, vocabulary=3000)}, {"flops": 1e7, "bandwidth": 1e7}),
    ],
)
def test_the_search_finds_what_looking_at_every_plan_finds(changes, box, monkeypatch):
    monkeypatch.setattr(search, "_CHUNKS", CHUNKS)
    asked = job(**{"spec": spec(layers=2), "samples_per_step": 9, "learned": LEARNED, **changes})
    small = machine(asked.spec, process_bytes=10_000, library_bytes=0, **box)
    points = search.front(asked, small, replace(PLAN, threads=small.cores), {"matmul": "torch"})
    # Whether beginnings are shared is settled before the search.
    (prefixes,) = {point.plan.prefixes for point in points}
    assert [(point.bytes, pytest.approx(point.seconds)) for point in points] == best_of(
        all_plans(asked, small, prefixes)
    )
    assert len(points) > 10


def test_the_curve_falls_strictly_and_holds_the_choice():
    found = chosen()
    curve = found.curve
    assert len(curve) > 5
    for lean, fast in pairwise(curve):
        assert lean.peak_bytes < fast.peak_bytes
        assert lean.seconds > fast.seconds
    assert found.forecast in curve
    assert found.budget_source == "share of free memory"
    assert found.budget_bytes == 9_000_000_000


def test_more_memory_is_never_slower_and_never_overdrawn():
    curve = chosen().curve
    last = float("inf")
    budgets = sorted(
        {budget_for(curve[0].peak_bytes) + step * 70_000 for step in range(25)}
        | {budget_for(p.peak_bytes) for p in curve}
    )
    for budget in budgets:
        found = chosen(budget)
        assert found.forecast.peak_bytes <= usable(budget) < budget
        assert found.forecast.seconds <= last * (1 + 1e-12)
        last = found.forecast.seconds
        # The fastest that fits, or one that is as fast to a hundredth and leaner.
        fitting = [point.seconds for point in curve if point.peak_bytes <= usable(budget)]
        assert found.forecast.seconds <= min(fitting) * 1.01 * (1 + 1e-9)
        assert found.budget_source == "--memory"


@pytest.mark.parametrize(
    "levers",
    [
        {"pack_tokens": 33},
        {"pack_tokens": 100_000},
        {"recompute_layers": 3},
        {"recompute_layers": 99, "recompute_elementwise": 2},
        {"recompute_elementwise": 1, "dense_layers": 2},
        {"dense_layers": 77},
        {"head": "stored", "embedding": "file"},
        {"loss_chunk": 17},
        {"loss_chunk": 5000, "prefixes": "repeated"},
        {"prefixes": "shared", "threads": 7},
        {"matmul": "torch", "device": "cpu", "dtype": "float32"},
    ],
)
def test_a_lever_set_by_hand_is_kept(levers):
    found = chosen(levers=levers)
    for point in (found.forecast, *found.curve):
        assert {name: getattr(point.plan, name) for name in levers} == levers
    fixed = {name: getattr(found.forecast.plan, name) for name in LEVERS}
    alone = chosen(levers=fixed)
    assert alone.forecast.plan == found.forecast.plan
    assert alone.forecast.peak_bytes == found.forecast.peak_bytes
    assert len(alone.curve) == 1


def test_a_point_of_the_curve_costs_what_its_plan_costs_alone():
    found = chosen()
    for point in found.curve[:: max(1, len(found.curve) // 4)]:
        alone = forecast_for(
            point.plan,
            spec(),
            lambda _: 2,
            dataset(LEARNED, HELD_OUT),
            recipe(),
            steps=6,
            machine=BOX,
        )
        assert alone.as_dict() == point.as_dict()


def test_too_little_memory_names_what_would_do():
    with pytest.raises(BudgetError) as caught:
        chosen(1000)
    error = caught.value
    assert error.exit_code == 4
    needed = int(error.expected.split()[2].replace(",", ""))
    assert budget_for(chosen(needed).forecast.peak_bytes) == needed
    with pytest.raises(BudgetError):
        chosen(needed - 1)
    command = error.do.removeprefix("give it ")
    name, size = command.split()
    assert name == "--memory"
    assert chosen(parse_size(size)).forecast.peak_bytes <= parse_size(size)
    assert "runtime 2" in error.expected
    assert "1,000 bytes (--memory)" in error.found


def test_too_little_memory_may_be_a_lever_s_fault():
    lean = budget_for(chosen().curve[0].peak_bytes)
    with pytest.raises(BudgetError) as caught:
        chosen(lean, levers={"dense_layers": 4, "threads": 2})
    assert caught.value.do.endswith("or leave out --plan.dense_layers")


def test_too_little_free_memory_says_so():
    with pytest.raises(BudgetError) as caught:
        chosen(box=replace(BOX, free_bytes=1_000_000))
    assert "750,000 bytes (share of free memory)" in caught.value.found
    assert caught.value.do.startswith("free memory, or take more than 75% of what is free: --memory ")


def test_the_reason_says_what_is_given_up_and_what_more_would_buy():
    curve = chosen().curve
    middle = curve[len(curve) // 2]
    found = chosen(budget_for(middle.peak_bytes))
    assert "computed twice" in found.reason or "made twice" in found.reason
    assert "next faster plan needs" in found.reason
    assert "% less time" in found.reason
    assert len(found.reason) < 300


def test_leaner_goes_down_the_curve_to_its_end():
    found = chosen()
    point, seen = found.forecast, [found.forecast]
    while (point := leaner(found, point.plan)) is not None:
        assert point.peak_bytes <= 0.98 * seen[-1].peak_bytes
        assert point in found.curve
        seen.append(point)
    assert seen[-1].peak_bytes <= found.curve[0].peak_bytes / 0.98
    assert len(seen) > 2
    for point in seen:
        assert packing_of(found, point.plan).pack_tokens == point.plan.pack_tokens


def test_a_run_that_goes_on_keeps_its_plan():
    """Whatever the budget: what it holds is known to fit, or the next leaner plan takes over."""
    first = chosen()
    plan = replace(first.curve[2].plan, pack_tokens=61, loss_chunk=50)
    found = chosen(1000, plan=plan)
    assert found.forecast.plan == plan
    assert found.workload.pack_tokens == 61
    assert packing_of(found, plan) is found.workload
    assert leaner(found, plan) in found.curve
    assert len(found.curve) > 5
    gone = replace(plan, matmul="openblas")  # was there when the run began
    assert chosen(1000, plan=gone).forecast.plan == gone


def test_prefixes_are_shared_where_that_saves_positions():
    assert chosen().forecast.plan.prefixes == "shared"
    alone = choose(*(spec(), lambda _: 2, dataset(examples(40)), recipe()), steps=6, machine=BOX)
    assert alone.forecast.plan.prefixes == "repeated"
    # With dropout steps share nothing; looking at the held-out samples does, and they are many here.
    dropped = chosen(sections={"adapter": {"dropout": 0.1}, "watch": {"every": 1}})
    assert dropped.forecast.plan.prefixes == "shared"
    assert dropped.workload.computed_tokens == dropped.workload.read_tokens
    assert dropped.workload.held_out.tokens_P.sum() < dropped.workload.held_out.read_tokens


def test_the_faster_library_multiplies():
    shapes = BOX.matmul["torch"]["float32"]
    for faster, expected in ((2e9, "openblas"), (5e8, "torch")):
        both = {"torch": {"float32": shapes}, "openblas": {"float32": dict.fromkeys(shapes, faster)}}
        box = replace(BOX, matmul=both)
        assert chosen(box=box).forecast.plan.matmul == expected
        assert chosen(box=box, levers={"matmul": "torch"}).forecast.plan.matmul == "torch"


def test_a_tied_embedding_and_a_float32_file_leave_less_to_choose():
    # So many rows that what widens a block of a stored head is worth its memory.
    large = spec(tied_head=True, vocabulary=600_000)
    tied = chosen(model=large, box=machine(large, process_bytes=2_000_000))
    assert {point.plan.embedding for point in tied.curve} == {"memory"}
    assert {point.plan.head for point in tied.curve} == {"dense", "stored"}
    wide = choose(*(spec(), lambda _: 4, dataset(LEARNED), recipe()), steps=6, machine=BOX)
    assert {point.plan.head for point in wide.curve} == {"dense"}
    assert {point.plan.embedding for point in wide.curve} == {"file", "memory"}


def test_deep_models_are_searched_in_strides():
    deep = spec(layers=80, hidden=32, intermediate=48)
    found = chosen(model=deep, box=machine(deep, process_bytes=2_000_000))
    assert all(point.plan.recompute_layers % 2 == 0 for point in found.curve)
    assert found.curve[0].plan.recompute_layers + found.curve[0].plan.recompute_elementwise == 80
    assert found.curve[-1].plan.dense_layers == 80


def test_seven_billion_weights_train_within_six_gigabytes():
    """InternLM-7B, rank 8 on q, k and v, 16 samples of up to 512 tokens a step, 2,048 tokens a pack."""
    learned = [example(index, 512 if index == 5 else 60 + index * 37 % 300, 40) for index in range(64)]
    lean = recipe(adapter={"rank": 8, "targets": QKV}, train={"samples_per_step": 10}, watch={"answer_tokens": 64})
    box = machine(INTERNLM_7B, flops=1.5e11, process_bytes=330_000_000, library_bytes=80_000_000)
    found = choose(*(INTERNLM_7B, lambda _: 2, dataset(learned), lean), steps=20, budget_bytes=6 * 10**9, machine=box)
    plan, parts = found.forecast.plan, found.forecast.components
    assert found.forecast.peak_bytes <= 0.97 * 6 * 10**9
    assert plan.recompute_layers > 0
    assert (plan.head, plan.dense_layers) == ("stored", 0)
    assert parts["base in NF4"] == pytest.approx(3.34e9, rel=0.01)
    assert parts["head"] == 103168 * 4096 * 2
    assert "computed twice" in found.reason


def test_a_plan_for_asking_needs_no_timing():
    look = replace(BOX, rates=None, matmul=None)
    plan = default_plan(spec(), look)
    assert (plan.device, plan.dtype, plan.threads, plan.recompute_layers) == ("cpu", "float32", 2, 0)
    assert (plan.dense_layers, plan.head) == (4, "dense")
    # A quarter of what is free for copies: 1.6 layers' worth here.
    layer = spec().linear_weights // 4 * 4
    small = default_plan(spec(), replace(look, free_bytes=int(4 * 1.6 * layer)))
    assert small.dense_layers == 1
    assert default_plan(INTERNLM_7B, replace(look, free_bytes=5 * 10**9)).head == "stored"
    gpu = default_plan(spec(), replace(look, device="cuda:0"))
    assert (gpu.device, gpu.dtype, gpu.matmul) == ("cuda:0", "bfloat16", "torch")
    assert default_plan(spec(), look, {"threads": 1}).threads == 1
