"""Plans for GPUs: a card by its published figures, and the search over what may lie in the machine's memory."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from io import StringIO
from itertools import pairwise
from itertools import product as every
from pathlib import Path

import numpy as np
import pytest
import torch

from planner_cases import INTERNLM_7B, PLAN, QKV, dataset, decoder, example, examples, h200, job, recipe, spec
from strop.data.packing import pack
from strop.data.records import Example
from strop.errors import BudgetError
from strop.model.batch import make_batch
from strop.model.lora import make_adapter, parse_targets
from strop.model.spec import ExpertsSpec
from strop.plan import choose as choose_module
from strop.plan import gpu_memory, search
from strop.plan.apply import make_engine
from strop.plan.budget import usable
from strop.plan.choose import choose, leaner
from strop.plan.duration import forecast_time, step_parts, totals
from strop.plan.job import Job
from strop.plan.layer_time import layer_times
from strop.plan.machine import Machine
from strop.plan.memory import COMPONENTS, forecast_memory, plan_work
from strop.plan.plan import Plan
from strop.plan.search import Levers, packed
from strop.plan.waiting import calls

GPU = replace(PLAN, device="cuda:0", dtype="bfloat16", attention="varlen")
GIB = 1 << 30


@pytest.fixture(autouse=True)
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's kernels are there, whatever this machine has."""
    monkeypatch.setattr(gpu_memory, "has_triton", lambda: True)


def maths(count: int = 256) -> list[Example]:
    """Samples as long as MATH's: most of 242 tokens, a mean of 270, none over 512; half of each is learned."""
    lengths = np.random.default_rng(5).lognormal(np.log(242), 0.47, count).clip(60, 512).astype(int)
    lengths[0] = 512
    return [example(number, int(length), int(length) // 2) for number, length in enumerate(lengths)]


_FRONTS: dict[object, list[search.Point]] = {}


def front_once(asked: Job, box: Machine, start: Plan, levers: Levers) -> list[search.Point]:
    """The search of `seed_job`, which is the same whatever the budget."""
    pack_tokens = levers.get("pack_tokens")
    if pack_tokens not in _FRONTS:
        _FRONTS[pack_tokens] = search.front(asked, box, start, levers)
    return _FRONTS[pack_tokens]


@cache
def seed_job(budget: int | None = None, pack_tokens: int | None = None):
    """InternLM-7B's sizes, rank 8 on q, k and v, steps of 64 samples of up to 512 tokens."""
    asked = recipe(
        adapter={"rank": 8, "targets": QKV},
        train={"samples_per_step": 64},
        watch={"every": 1000, "answer_tokens": 1},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose_module, "front", front_once)
        return choose(
            *(INTERNLM_7B, lambda _: 2, dataset(maths()), asked),
            steps=12,
            budget_bytes=budget,
            levers={} if pack_tokens is None else {"pack_tokens": pack_tokens},
            machine=h200(INTERNLM_7B),
        )


def test_the_whole_card_computes_nothing_twice_but_norms():
    found = seed_job()
    plan = found.forecast.plan
    assert (plan.recompute_layers, plan.base, plan.checkpoints) == (0, "device", "device")
    assert plan.pack_tokens >= 8192
    assert (plan.dtype, plan.attention) == ("bfloat16", "varlen")
    assert found.forecast.tokens_per_s > 15_000
    # What it gives up, a hundredth of the time would buy.
    assert found.forecast.seconds <= found.curve[-1].seconds * 1.01


def test_copies_are_kept_where_packs_are_short_and_memory_is_there():
    """Dequantising is a quarter of a step of 512 tokens, and a hundredth of one of 16,384."""
    plans = [seed_job(budget, 512).forecast.plan for budget in (6 * GIB, 12 * GIB, None)]
    counts = [plan.dense_layers for plan in plans]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert 0 < counts[1] < counts[2]
    assert counts[2] >= 29, "the last ones are worth less than a hundredth"
    assert seed_job().forecast.plan.dense_layers == 0


def test_five_gibibytes_are_enough_for_seven_billion_weights():
    found = seed_job(5 * GIB)
    plan, parts = found.forecast.plan, found.forecast.components
    assert found.forecast.peak_bytes <= usable(5 * GIB)
    assert plan.recompute_layers > 0
    assert (plan.embedding, plan.dense_layers) == ("host", 0)
    assert parts["embedding"] < 0.1 * GIB
    assert parts["runtime"] == 480 << 20
    assert parts["data"] == 0
    # At least half as fast as with all the card: a layer is computed a second time, and no more.
    assert found.forecast.seconds < 2 * seed_job().forecast.seconds


def test_the_smallest_plan_leaves_all_that_it_can_outside():
    found = seed_job()
    smallest = found.curve[0]
    assert smallest.peak_bytes < 2.2 * GIB
    assert (smallest.plan.base, smallest.plan.embedding) == ("host", "host")
    assert smallest.components["base in NF4"] < 0.3 * GIB
    with pytest.raises(BudgetError):
        seed_job(GIB)


def test_more_memory_is_never_slower():
    curve = seed_job().curve
    assert len(curve) > 20
    for lean, fast in pairwise(curve):
        assert lean.peak_bytes < fast.peak_bytes
        assert lean.seconds > fast.seconds
    last = 0.0
    for budget in (3 * GIB, 5 * GIB, 7_800_000_000, 14_500_000_000):
        speed = seed_job(budget).forecast.tokens_per_s
        assert speed >= last * 0.99
        last = speed


def test_the_search_finds_the_plans_that_looking_at_every_one_finds(monkeypatch: pytest.MonkeyPatch):
    """Of a small model on a slow link, by forecasts of single plans: nothing that they find is missed."""
    monkeypatch.setattr(search, "_CHUNKS", (32,))
    model = spec(layers=3)
    asked = job(spec=model, learned=examples(20, 60), samples_per_step=6)
    box = h200(model, process_bytes=0, library_bytes=0, upload=2e9, download=1e9, launch=1e-7)
    points = search.front(asked, box, replace(GPU, threads=box.cores), {"matmul": "torch", "prefixes": "repeated"})
    best: dict[int, float] = {}
    for pack_tokens in {point.plan.pack_tokens for point in points}:
        base_plan = replace(GPU, pack_tokens=pack_tokens, threads=box.cores)
        workload = packed(asked, base_plan)
        for base, checkpoints, embedding, whole, some, dense in every(
            *(("device", "host"), ("device", "host"), ("memory", "host"), range(4), range(4), range(4))
        ):
            if whole + some > 3:
                continue
            plan = replace(
                base_plan,
                base=base,
                checkpoints=checkpoints,
                embedding=embedding,
                recompute_layers=whole,
                recompute_elementwise=some,
                dense_layers=dense,
            )
            peak = sum(forecast_memory(asked, plan, workload, box).values())
            best[peak] = min(best.get(peak, 9e9), sum(forecast_time(asked, plan, workload, box)[1].values()))
    for point in points:
        beaten = [seconds for peak, seconds in best.items() if peak <= point.bytes and seconds < point.seconds * 0.98]
        assert not beaten, point


def test_a_plan_that_the_machines_memory_cannot_hold_is_none():
    little = h200(INTERNLM_7B, host_free_bytes=1_000_000_000)
    asked = job(spec=INTERNLM_7B, learned=maths(64), targets=parse_targets(QKV), samples_per_step=16)
    points = search.front(asked, little, GPU, {})
    assert {point.plan.base for point in points} == {"device"}
    assert {point.plan.base for point in search.front(asked, h200(INTERNLM_7B), GPU, {})} == {"device", "host"}


@pytest.mark.parametrize(
    "levers",
    [
        {"base": "host"},
        {"checkpoints": "host", "recompute_layers": 2},
        {"embedding": "host", "attention": "sdpa"},
        {"base": "host", "dense_layers": 2, "checkpoints": "device"},
    ],
)
def test_a_lever_set_by_hand_is_kept(levers: dict[str, object]):
    found = choose(
        *(spec(), lambda _: 2, dataset(examples(40)), recipe()), steps=6, levers=levers, machine=h200(spec())
    )
    for point in (found.forecast, *found.curve):
        assert {name: getattr(point.plan, name) for name in levers} == levers


def test_where_memory_falls_short_the_next_plan_leaves_more_outside():
    found = seed_job(7_800_000_000)
    point, seen = found.forecast, []
    while (point := leaner(found, point.plan)) is not None:
        seen.append(point)
    assert seen[-1].plan.base == "host"


PLACES = {
    "all on the device": GPU,
    "base outside": replace(GPU, base="host"),
    "inputs outside": replace(GPU, checkpoints="host", recompute_layers=4),
    "some inputs outside": replace(GPU, checkpoints="host", recompute_layers=3, recompute_elementwise=1),
    "all outside": replace(GPU, base="host", checkpoints="host", recompute_layers=4, embedding="host"),
}


@pytest.mark.parametrize("plan", PLACES.values(), ids=PLACES)
def test_every_component_is_what_is_allocated(plan):
    """With tensors of a CPU in the place of the card's: what lies outside is not counted, what comes in is."""
    asked = job()
    workload = packed(asked, plan)
    said = forecast_memory(asked, plan, workload, h200(spec()))
    model = decoder(asked.spec, plan)
    model.dtype = model.head.dtype = torch.bfloat16
    model.keep_head(dense=True)
    adapter = make_adapter(asked.spec, rank=asked.rank, alpha=8, dropout=0.0, targets=asked.targets, seed=0)
    engine = make_engine(model, plan, plan_work(asked, plan, workload))
    adapter.zero_gradients()
    for one in pack(asked.learned[:5], plan.pack_tokens):
        engine.gradients(make_batch(one), adapter, 1, None)
    found = dict.fromkeys(("saved activations", "working memory"), 0)
    for name, slot in engine.workspace.layout.items():
        if slot.component in found:
            found[slot.component] += engine.workspace.all(name).nbytes
    found["weight buffer"] = model.buffer._memory.nbytes
    norms = sum(norm.nbytes for layer in model.layers for norm in layer.norms.values()) + model.final_norm.nbytes
    if model.stream is None:
        weights = [weight for layer in model.layers for group in layer.groups for weight in group.weights]
        found["base in NF4"] = norms + sum(weight.nbytes for weight in weights)
    else:
        found["base in NF4"] = norms + model.stream.device_bytes
    copies = sum(copy.nbytes for copy in engine._narrow._copies)
    found["adapters and optimiser"] = copies + 4 * sum(matrix.nbytes for matrix in adapter.parameters())
    assert {name: said[name] for name in found} == found
    assert tuple(said) == COMPONENTS
    outside = gpu_memory.host_bytes(asked, plan, plan_work(asked, plan, workload))
    held = 0 if model.stream is None else model.stream.host_bytes
    held += 0 if engine.workspace.host_inputs is None else engine.workspace.host_inputs.bytes
    assert held <= outside <= 4 * max(held, 1 << 20)


def test_a_gpu_waits_for_what_takes_longer_than_computing():
    """7 billion weights over a link of 55 GB/s take 60 ms a direction: hidden by long packs, not by short ones."""
    asked = job(spec=INTERNLM_7B, targets=parse_targets(QKV), rank=8, learned=maths(64), samples_per_step=32)
    box = h200(INTERNLM_7B, launch=0.0)
    outside = replace(GPU, base="host", recompute_layers=32)
    for pack_tokens, hidden in ((8192, True), (512, False)):
        plan = replace(outside, pack_tokens=pack_tokens)
        workload = packed(asked, plan)
        parts = step_parts(asked, plan, box, workload)
        inside = step_parts(asked, replace(plan, base="device"), box, workload)
        assert inside["waiting"] == 0
        if hidden:
            assert parts["waiting"] == 0
            continue
        copied = workload.packs_per_step * 2 * 32 * gpu_memory.layer_stream_bytes(INTERNLM_7B, 0) / 55e9
        computing = sum(inside.values()) - inside["head and loss"] - inside["optimiser"]
        assert copied - computing <= parts["waiting"] <= copied


@pytest.mark.parametrize("slow", ["upload", "download"])
def test_inputs_outside_wait_for_a_slow_link(slow: str):
    """Either way: down while a layer computes, up again before its backward pass; of layers computed again alone."""
    asked = job(spec=INTERNLM_7B, targets=parse_targets(QKV), rank=8, learned=maths(64), samples_per_step=32)
    box = h200(INTERNLM_7B, launch=0.0, **{slow: 1e8})
    plan = replace(GPU, checkpoints="host", recompute_layers=5, pack_tokens=8192)
    workload = packed(asked, plan)
    parts = step_parts(asked, plan, box, workload)
    moved = workload.computed_tokens * 4096 * 2 / 1e8
    computing = sum(parts.values()) - parts["waiting"]
    assert 5 * moved - computing < parts["waiting"] < 5 * moved
    assert step_parts(asked, replace(plan, checkpoints="device"), box, workload)["waiting"] == 0


def test_launches_count_where_a_model_is_small():
    asked = job(learned=examples(20, 60))
    workload = packed(asked, GPU)
    box = h200(spec(), launch=1e-5)
    times = layer_times(asked, GPU, box, totals(asked.spec, workload.packs, GPU, workload.packed_steps))
    expected = 1e-5 * workload.packs_per_step * calls(asked, "none")
    for layer in times:
        computing = layer.products + layer.attention + layer.elementwise + layer.dequantise
        assert layer.waiting["none"] + computing == pytest.approx(expected)
    assert calls(asked, "layer") > calls(asked, "none")


def test_layers_of_several_kinds_come_with_bytes_and_launches_of_their_own():
    """Experts in two of four layers, over a link so slow that nothing else counts, and by a host as slow."""
    asked = job(
        spec=spec(experts=ExpertsSpec(4, 2, 200, layers=(False, True, False, True))), targets=parse_targets(QKV)
    )
    plan = replace(GPU, base="host")
    workload = packed(asked, plan)
    stream = make_engine(decoder(asked.spec, plan), plan, plan_work(asked, plan, workload)).decoder.stream
    each = [gpu_memory.layer_stream_bytes(asked.spec, layer) for layer in range(4)]
    assert each[0] == each[2] < each[1] == each[3]
    assert (stream.host_bytes, stream.device_bytes) == (sum(each), 2 * max(each))
    moved = 2 * workload.packs_per_step / 1e6
    counts = [calls(asked, "none", layer) for layer in range(4)]
    # A gated product there; here three matrices made and two products of each of four experts, and what goes with them.
    assert counts[1] - counts[0] == 2 * (4 * 12 - 1) - (3 + 2) * 2
    for changes, expected in (
        ({"upload": 1e6, "launch": 0.0}, [moved * count for count in each]),
        ({"launch": 1.0}, [workload.packs_per_step * count for count in counts]),
    ):
        box = h200(asked.spec, **changes)
        times = layer_times(asked, plan, box, totals(asked.spec, workload.packs, plan, workload.packed_steps))
        for layer, all_of_it in zip(times, expected, strict=True):
            computing = layer.products + layer.attention + layer.elementwise + layer.dequantise
            assert layer.waiting["none"] + computing == pytest.approx(all_of_it)


def test_operations_are_counted_as_the_engine_launches_them(monkeypatch: pytest.MonkeyPatch):
    """By the calls of kernels of a middle layer; copies and sums that torch does between them are not seen here."""
    from strop.kernels import qlora_linear, rms_norm, swiglu
    from strop.model import attention_block

    seen = [0]

    def counted(module: object, name: str) -> None:
        real = getattr(module, name)

        def call(*args: object, **named: object) -> object:
            seen[0] += 1
            return real(*args, **named)

        monkeypatch.setattr(module, name, call)

    for module, names in (
        (qlora_linear, ("product",)),
        (qlora_linear.nf4, ("dequantize",)),
        (rms_norm, ("normalize", "normalize_backward")),
        (swiglu, ("gate", "gate_backward_")),
        (attention_block, ("attend", "attend_backward", "rotate_")),
    ):
        for name in names:
            counted(module, name)
    asked = job()
    plan = replace(PLAN, pack_tokens=10_000)
    totals_of = {}
    for layers in (4, 8):
        deep = replace(asked, spec=spec(layers=layers))
        workload = packed(deep, plan)
        engine = make_engine(decoder(deep.spec, plan), plan, plan_work(deep, plan, workload))
        adapter = make_adapter(deep.spec, rank=4, alpha=8, dropout=0.0, targets=deep.targets, seed=0)
        adapter.zero_gradients()
        (one,) = pack(deep.learned[:5], 10_000)
        seen[0] = 0
        engine.gradients(make_batch(one), adapter, 1)
        totals_of[layers] = seen[0]
    a_layer = (totals_of[8] - totals_of[4]) / 4
    assert 0.6 * calls(asked, "none") < a_layer <= calls(asked, "none")


def test_a_plan_for_a_gpu_is_shown(tmp_path: Path):
    from rich.console import Console

    from strop.cli.plan import show_choice
    from strop.plan.page import write_plan

    out, found = StringIO(), seed_job(5 * GIB)
    show_choice(found, Console(file=out, width=110), command="strop train x", subject={"model": "x"})
    said = " ".join(out.getvalue().split())
    for words in ("NVIDIA H200, as published, 140 GB of 141 GB free", "TFLOP/s by torch", "a launch: 8 µs"):
        assert words in said
    assert "attention by varlen" in said
    assert "brought layer by layer" in said
    write_plan(found, tmp_path / "plan.html", model="x", data="y", command="strop train x")
    assert "in the machine&#39;s memory" in (tmp_path / "plan.html").read_text(encoding="utf-8")


def test_flash_attention_adds_up_gradients_in_one_order():
    """By hand, from its source: 148 multiprocessors, 32 heads of 128, 4,096 tokens; 8 key-value heads need more."""
    work = GPU.work(tokens=4096, learned=10, targets=("q_proj",), rank=8, dropout=0.0)

    def bytes_of(longest: int, documents: int, kv_heads: int = 32) -> int:
        return gpu_memory.kernel_bytes(replace(INTERNLM_7B, kv_heads=kv_heads), GPU, work, longest, documents)

    def dq(splits: int, documents: int) -> int:
        return splits * (4096 + 128 * documents) * 4096 * 4

    rest = 4096 * 4 * 4096 * 2 + 2 * 4 * 4096 * 32
    assert bytes_of(4096, 1) == dq(5, 1) + rest
    assert bytes_of(512, 16) == dq(1, 16) + rest
    assert bytes_of(512, 16, 8) - bytes_of(512, 16) == 2 * 4096 * 4096 * 2 - 2 * 4096 * 24 * 128 * 2


def test_triton_makes_kernels_work_in_place(monkeypatch: pytest.MonkeyPatch):
    asked = job(spec=INTERNLM_7B, targets=parse_targets(QKV), dropout=0.1)
    workload = packed(asked, GPU)
    work = plan_work(asked, GPU, workload)
    sizes, longest = {}, work.tokens
    for name in ("triton", "varlen", "sdpa"):
        sizes[name] = gpu_memory.kernel_bytes(INTERNLM_7B, replace(GPU, attention=name), work, longest)
    assert sizes["triton"] < min(sizes["varlen"], sizes["sdpa"])
    monkeypatch.setattr(gpu_memory, "has_triton", lambda: False)
    assert gpu_memory.kernel_bytes(INTERNLM_7B, GPU, work, 60) >= 3 * 8 * work.tokens * 11008
