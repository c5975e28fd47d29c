"""Which dtype a CPU computes in: made-up machines on which bfloat16 is fast, slow, or has no native library."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from planner_cases import dataset, examples, machine, recipe, spec
from strop.errors import UsageError
from strop.kernels import blas, library
from strop.plan import choose as choose_module
from strop.plan import explain, precision, timing
from strop.plan.choose import choose, default_plan
from strop.plan.forecast import Choice
from strop.plan.machine import Machine, probe
from strop.plan.plan import read_levers
from strop.plan.precision import Speeds

FAST, SLIGHT, SLOW = Speeds(4e11, 2e12), Speeds(4e11, 5e11), Speeds(1e11, 5e9)
WEIGHTS = [(576, 960), (576, 3072), (1536, 576), (4096, 30000)]


def box(dtype: str, speeds: Speeds | None = None) -> Machine:
    """A machine that was timed in a dtype."""
    made = machine(spec(), process_bytes=2_000_000, library_bytes=0)
    assert made.matmul is not None
    return replace(made, matmul={"torch": {dtype: made.matmul["torch"]["float32"]}}, speeds=speeds)


def chosen(of: Machine | None, **named: Any) -> Choice:
    return choose(spec(), lambda _: 2, dataset(examples(40, 60, 9)), recipe(), steps=6, machine=of, **named)


class Processor:
    """Multiplies at one rate in float32, and so many times as fast in bfloat16, forward and backward."""

    def __init__(self, forward: float, backward: float) -> None:
        self.times = {True: forward, False: backward}
        self.asked: list[tuple[int, int, int, torch.dtype, bool]] = []

    def __call__(self, rows: int, inputs: int, outputs: int, dtype: torch.dtype, name: str, forward: bool) -> float:
        self.asked.append((rows, inputs, outputs, dtype, forward))
        seconds = 2.0 * rows * inputs * outputs / 3e11
        return seconds if dtype is torch.float32 else seconds / self.times[forward]


def compared(monkeypatch: pytest.MonkeyPatch, processor: Processor) -> Speeds:
    monkeypatch.setattr(precision, "_seconds", processor)
    monkeypatch.setattr(blas, "libraries", lambda dtype=torch.float32: ("torch",))
    monkeypatch.setattr(library, "native", object)
    speeds = precision.compare(WEIGHTS)
    assert speeds is not None
    return speeds


@pytest.mark.parametrize(
    ("speeds", "dtype"),
    [(FAST, "bfloat16"), (Speeds(2.0, 3.0), "bfloat16"), (SLIGHT, "float32"), (SLOW, "float32"), (None, "float32")],
)
def test_bfloat16_is_taken_where_its_products_are_half_as_fast_again(
    speeds: Speeds | None, dtype: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(blas, "libraries", lambda dtype=torch.float32: ("amx", "torch"))
    assert precision.taken(speeds) == dtype


def test_bfloat16_is_not_taken_where_torch_multiplies_it(monkeypatch: pytest.MonkeyPatch):
    """However fast: what it compiles for every shape would grow beyond any budget."""
    monkeypatch.setattr(blas, "libraries", lambda dtype=torch.float32: ("torch",))
    assert precision.taken(FAST) == "float32"


def test_both_directions_of_the_largest_products_are_compared(monkeypatch: pytest.MonkeyPatch):
    processor = Processor(6.0, 4.0)
    speeds = compared(monkeypatch, processor)
    # As much work forward as backward: 2 / (1/6 + 1/4).
    assert (speeds.float32, speeds.times) == (pytest.approx(3e11), pytest.approx(4.8))
    shapes = {(inputs, outputs, forward) for _, inputs, outputs, _, forward in processor.asked}
    assert shapes == {(i, o, way) for i, o in ((576, 2048), (2048, 2048)) for way in (True, False)}
    many = max(rows for rows, *_ in processor.asked)
    assert many >= 256, "a few rows tell nothing of many"


def test_slow_backward_products_undo_fast_forward_ones(monkeypatch: pytest.MonkeyPatch):
    assert not compared(monkeypatch, Processor(2.9, 1.0)).pays
    assert compared(monkeypatch, Processor(2.9, 1.1)).pays


def test_hopeless_products_are_given_up_after_few_rows(monkeypatch: pytest.MonkeyPatch):
    """As AVX2 has it: a fiftieth of float32's rate."""
    processor = Processor(0.2, 1 / 50)
    speeds = compared(monkeypatch, processor)
    assert not speeds.pays
    low = [(rows, forward) for rows, _, _, dtype, forward in processor.asked if dtype is torch.bfloat16]
    assert low[-1][0] <= 64, "nothing that takes long is run"
    assert not any(forward for _, forward in low), "the slowest way comes first, and is the end of it"


def test_without_the_native_library_nothing_is_compared(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(library, "native", lambda: None)
    monkeypatch.setattr(precision, "_seconds", lambda *_: pytest.fail("was timed"))
    assert precision.compare(WEIGHTS) is None


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Timing takes a moment."""
    monkeypatch.setattr(timing, "_PRODUCTS_SECONDS", 0.02)
    monkeypatch.setattr(timing, "_SECONDS", 0.0003)
    monkeypatch.setattr(timing, "_NUMBERS", 1 << 12)
    return monkeypatch


@pytest.mark.parametrize(("speeds", "dtype"), [(FAST, "bfloat16"), (SLOW, "float32"), (None, "float32")])
def test_everything_is_timed_in_the_dtype_that_is_taken(speeds: Speeds | None, dtype: str, short: pytest.MonkeyPatch):
    benches, rates = [], timing.rates
    short.setattr(precision, "compare", lambda _: speeds)
    short.setattr(precision, "taken", lambda found: dtype if found is speeds else "")
    short.setattr(timing, "rates", lambda spec, rank, bench: benches.append(bench) or rates(spec, rank, bench))
    found = probe(spec(), device="cpu", rank=3, threads=1)
    assert (found.dtype, found.speeds) == (dtype, speeds)
    assert [bench.dtype for bench in benches] == [getattr(torch, dtype)]
    assert {one for by_dtype in found.matmul.values() for one in by_dtype} == {dtype}


def test_a_dtype_that_is_named_is_timed(short: pytest.MonkeyPatch):
    short.setattr(precision, "compare", lambda _: pytest.fail("float32 asks for no comparison"))
    assert probe(spec(), device="cpu", rank=3, dtypes=("float32",), threads=1).dtype == "float32"
    short.setattr(precision, "compare", lambda _: SLOW)
    forced = probe(spec(), device="cpu", rank=3, dtypes=("bfloat16",), threads=1)
    assert (forced.dtype, forced.speeds) == ("bfloat16", SLOW)


def test_the_plan_computes_in_what_was_timed():
    fast, exact = chosen(box("bfloat16", FAST)), chosen(box("float32", SLOW))
    plan = fast.forecast.plan
    assert (plan.dtype, plan.matmul, plan.head) == ("bfloat16", "torch", "dense")
    assert fast.reason.endswith(
        "Bfloat16: its products are 5 times as fast here as float32's; --plan.dtype float32 computes in full precision."
    )
    assert fast.as_dict()["machine"]["dtypes"] == {"float32": 4e11, "bfloat16": 2e12}
    assert exact.forecast.plan.dtype == "float32"
    assert "bfloat16" not in exact.reason
    kept = fast.curve[-1].components["saved activations"] / exact.curve[-1].components["saved activations"]
    assert 0.5 <= kept < 0.6, "row sums of attention stay in float32"
    assert {point.plan.dtype for point in fast.curve} == {"bfloat16"}


@pytest.mark.parametrize(
    ("speeds", "dtype", "words"),
    [
        (FAST, "bfloat16", "bfloat16: its products are 5 times as fast here as float32's; --plan.dtype float32"),
        (SLOW, "bfloat16", "bfloat16, though its products take 20 times as long here as float32's; --plan.dtype"),
        (SLIGHT, "float32", "float32; of bfloat16 its products are no more than 1.2 times as fast here"),
        (SLOW, "float32", "float32; of bfloat16 its products take 20 times as long here"),
    ],
)
def test_the_dtype_and_why_are_told(speeds: Speeds, dtype: str, words: str):
    told = dict(explain.circumstances(chosen(box(dtype, speeds), levers={"dtype": dtype})))
    assert told["dtype"].startswith(words)


def test_where_nothing_was_compared_nothing_is_told():
    assert "dtype" not in dict(explain.circumstances(chosen(box("float32"))))


def test_a_run_that_goes_on_keeps_its_dtype_and_says_where_that_is_slow(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(library, "native", object)
    plan = chosen(box("bfloat16", FAST)).forecast.plan
    slow = chosen(box("bfloat16", SLOW), plan=plan)
    assert slow.forecast.plan == plan
    assert slow.reason.endswith("that is slow here: its products take 20 times as long here as float32's.")
    assert chosen(box("bfloat16", FAST), plan=plan).reason == "The plan that the run began with."
    exact = chosen(box("float32")).forecast.plan
    assert chosen(box("float32", SLOW), plan=exact).reason == "The plan that the run began with."
    monkeypatch.setattr(library, "native", lambda: None)
    assert "without the native library" in chosen(box("bfloat16"), plan=plan).reason


@pytest.mark.parametrize(
    ("levers", "dtypes"),
    [
        ({}, ()),
        ({"dtype": "bfloat16"}, ("bfloat16",)),
        ({"dtype": "float32"}, ("float32",)),
        ({"device": "cpu", "matmul": "openblas"}, ("float32",)),
        ({"device": "cpu", "matmul": "torch"}, ()),
    ],
)
def test_levers_decide_what_is_timed(levers: dict[str, str], dtypes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    asked = []

    def look(*_: Any, **named: Any) -> Machine:
        asked.append(named["dtypes"])
        return box(dtypes[0] if dtypes else "bfloat16", FAST)

    monkeypatch.setattr(choose_module, "probe", look)
    plan = chosen(None, levers=levers).forecast.plan
    assert asked == [dtypes]
    assert plan.dtype == (dtypes[0] if dtypes else "bfloat16")


def test_a_library_of_float32_is_refused_in_bfloat16():
    with pytest.raises(UsageError) as caught:
        read_levers({"dtype": "bfloat16", "matmul": "openblas"})
    assert "does nothing in bfloat16" in caught.value.what
    with pytest.raises(UsageError, match="does nothing in float32"):
        read_levers({"dtype": "float32", "matmul": "amx"})
    assert read_levers({"dtype": "bfloat16", "matmul": "torch"}) == {"dtype": "bfloat16", "matmul": "torch"}


def test_answering_is_planned_in_the_dtype_that_is_named():
    look = replace(box("float32"), rates=None, matmul=None)
    assert default_plan(spec(), look).dtype == "float32"
    low = default_plan(spec(), look, {"dtype": "bfloat16"})
    assert (low.dtype, low.matmul) == ("bfloat16", blas.libraries(torch.bfloat16)[0])
    assert default_plan(spec(), replace(look, free_bytes=8 * spec().linear_weights // 3)).dense_layers < 4
