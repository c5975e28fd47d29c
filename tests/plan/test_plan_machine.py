"""Looking at the machine, and timing it: what is timed, not how fast it is."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import psutil
import pytest
import torch

from planner_cases import NOTHING, spec
from strop.kernels import blas, library
from strop.kernels.attention import PLAIN
from strop.model.spec import ExpertsSpec, RopeSpec
from strop.plan import gpu, timing, timing_layer
from strop.plan.bench import Bench, Ring
from strop.plan.clocks import EventClock
from strop.plan.machine import Machine, Rates, Shape, _container_limit, _line, block_rows, probe

MACHINE = Machine("cpu", "A processor", 2, 100, 50, 10)


def test_a_look_is_enough_for_a_default():
    found = probe(device="cpu")
    assert found.device == "cpu"
    assert 1 <= found.cores <= (psutil.cpu_count() or 1)
    assert 1 << 20 < found.process_bytes < found.free_bytes <= found.total_bytes
    assert found.name
    assert (found.rates, found.matmul, found.bandwidth) == (None, None, 0.0)


@pytest.fixture(scope="module")
def timed():
    """A small model timed in a moment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "_PRODUCTS_SECONDS", 0.05)
        patch.setattr(timing, "_SECONDS", 0.0005)
        patch.setattr(timing, "_NUMBERS", 1 << 12)
        yield probe(spec(), device="cpu", rank=3, dtypes=("float32",), threads=1)


def test_every_rate_is_timed(timed: Machine):
    rates = {item.name: getattr(timed.rates, item.name) for item in fields(Rates)}
    # A position's own share of attention may be lost in the noise; the rest is what other models have.
    none = {"head_norm", "head_norm_backward", "expert", *(name for name in rates if name.startswith("scored"))}
    assert {name for name, seconds in rates.items() if seconds <= 0} - {"attend", "attend_backward"} == none
    assert all(seconds < 1e-3 for seconds in rates.values())
    assert timed.bandwidth > 1e6
    assert timed.library_bytes >= 0


def test_what_a_kind_of_model_does_is_timed_as_it_does_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timing, "_PRODUCTS_SECONDS", 0.02)
    monkeypatch.setattr(timing, "_SECONDS", 0.0003)
    monkeypatch.setattr(timing, "_NUMBERS", 1 << 12)
    kinds = [
        {"qk_norm": "head", "experts": ExpertsSpec(4, 2, 48), "windows": (8, 0, 8, 0)},
        {"alibi": True, "norm": "layer", "gated_mlp": False, "activation": "gelu", "qk_norm": "full"},
        {"attention_softcap": 5.0, "rope": RopeSpec(rotary_size=8, interleaved=True)},
    ]
    for changes in kinds:
        rates = probe(spec(**changes), device="cpu", rank=3, dtypes=("float32",), threads=1).rates
        assert rates.scored_pair > 0
        assert rates.scored_backward_pair > 0
        assert (rates.head_norm > 0) == (rates.head_norm_backward > 0) == ("qk_norm" in changes)
        assert (rates.expert > 0) == ("experts" in changes)


def test_every_product_of_the_model_is_timed_by_every_library(timed: Machine):
    assert set(timed.matmul) == set(blas.libraries())
    for name in blas.libraries():
        # q, k, v; o; gate and up; down; the head.
        for outputs, inputs in ((160, 64), (64, 96), (320, 64), (64, 160), (200, 64)):
            for forward in (True, False):
                line = timed.product_seconds(name, "float32", inputs, outputs, forward=forward)
                assert line.each > 0
                assert line.fixed >= 0


def test_threads_are_as_before(timed: Machine, restore_threads):
    torch.set_num_threads(2)
    before = torch.get_num_threads(), library.threads(), blas.uses_openblas()
    with timing._threads(1):
        assert torch.get_num_threads() == 1
    assert (torch.get_num_threads(), library.threads(), blas.uses_openblas()) == before


def test_timing_leaves_no_compiler_behind(timed: Machine):
    """torch's own AdamW would import it on its first step: 130 MB that no run needs."""
    import subprocess
    import sys

    words = (
        "import sys, torch; from strop.plan import bench, clocks, timing_rates;"
        "made = bench.Bench(torch.device('cpu'), torch.float32, 1 << 12, 0.0005, clocks.wall_clock);"
        "timing_rates._optimise(bench.Ring(made));"
        "print('torch._inductor' in sys.modules or 'torch._dynamo' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


class FakeDevice:
    """A device whose time is counted: a microsecond a launch, and what is written at a rate."""

    def __init__(self) -> None:
        self.now = 0.0

    def event(self) -> FakeDevice.Event:
        return FakeDevice.Event(self)

    class Event:
        def __init__(self, device: FakeDevice) -> None:
            self.device, self.at = device, 0.0

        def record(self) -> None:
            self.at = self.device.now

        def synchronize(self) -> None:
            assert self.at <= self.device.now

        def elapsed_time(self, end_event: FakeDevice.Event) -> float:
            return (end_event.at - self.at) * 1e3


def test_events_time_a_run_whatever_the_host_does():
    device = FakeDevice()
    runs = []

    def run() -> None:
        runs.append(1)
        device.now += 5.0 if len(runs) == 1 else 0.002  # the first compiles

    assert EventClock(device.event)(run, 0.02) == pytest.approx(0.002)
    # One that compiles, one to see how long it takes, three rounds of a third of the time.
    assert len(runs) == 2 + 3 * 3
    slow = EventClock(device.event)(lambda: setattr(device, "now", device.now + 60), 0.02)
    assert slow == pytest.approx(60)


def test_a_gpu_is_timed_by_the_same_operations():
    """Here with tensors of the CPU in 16 bits: every rate, every product in both layouts, copies and launches."""
    ticks = iter(range(1, 1_000_000))
    told: list[float] = []

    def clock(run: object, seconds: float) -> float:
        run()
        told.append(seconds)
        return 1e-3 * next(ticks)

    bench = Bench(torch.device("cpu"), torch.bfloat16, 1 << 12, 0.5, clock)
    look = replace(MACHINE, device="cuda:0", process_bytes=500)
    found = timing.time_gpu(look, spec(), 3, ("bfloat16",), bench, lambda: 560)
    words = ("attend", "scored", "head_norm", "expert")
    others = [item.name for item in fields(Rates) if not item.name.startswith(words)]
    assert all(getattr(found.rates, name) > 0 for name in others)
    experts = ExpertsSpec(4, 2, 48, layers=(True, False, True, False))
    other = spec(qk_norm="head", experts=experts, attention_softcap=5.0, activation="gelu_tanh")
    richer = timing.time_gpu(look, other, 3, ("bfloat16",), bench, lambda: 560).rates
    assert all(getattr(richer, name) > 0 for name in (*others, "head_norm", "scored_pair", "expert"))
    for inputs, outputs in ((64, 160), (96, 64), (64, 320), (160, 64), (64, 200)):
        for forward in (True, False):
            line = found.product_seconds("torch", "bfloat16", inputs, outputs, forward=forward)
            assert line.each > 0
    assert {shape.m for shape in found.matmul["torch"]["bfloat16"]} == {1024, 8192}
    assert min(found.bandwidth, found.upload, found.download, found.launch) > 0
    assert found.library_bytes == 60
    assert found.attention in ("sdpa", "plain"), "what a CPU has for 16 bits"
    assert set(told) == {0.5}


def test_the_fastest_attention_is_taken(monkeypatch: pytest.MonkeyPatch):
    bench = Bench(torch.device("cpu"), torch.bfloat16, 1 << 12, 0.5, lambda run, seconds: 1.0)
    seconds = {"triton": 1e-6, "varlen": 5e-7, "sdpa": 1e-9}
    monkeypatch.setattr(timing_layer, "available", lambda *_, **__: ("native", *seconds))
    taken: list[str] = []

    @contextmanager
    def using(name: str):
        taken.append(name)
        yield

    monkeypatch.setattr(timing_layer, "using", using)
    pair = lambda *_: ((seconds[taken[-1]], 1e-12), (seconds[taken[-1]], 1e-12))  # noqa: E731
    monkeypatch.setattr(timing_layer, "_attention", pair)
    name, found = timing_layer.fastest_attention(spec(), bench)
    assert (name, found["attend"]) == ("varlen", 5e-7)
    assert taken == ["triton", "varlen"], "what takes a pack document by document is not tried"


def test_the_first_run_is_not_timed():
    """It pays for memory and threads: a clock that counts every run it sees does not see it."""
    runs: list[int] = []

    def clock(run: object, seconds: float) -> float:
        before = len(runs)
        run()
        return float(before)

    ring = Ring(Bench(torch.device("cpu"), torch.float32, 1 << 6, 0.5, clock))
    assert ring.time(lambda: runs.append(1)) == 1.0


def test_attention_is_chosen_by_the_scores_that_most_layers_have(monkeypatch: pytest.MonkeyPatch):
    """varlen is faster where scores are plain, triton where they are not: one layer of four, and three."""
    bench = Bench(torch.device("cpu"), torch.bfloat16, 1 << 12, 0.5, lambda run, seconds: 1.0)
    seconds = {("triton", True): 3e-6, ("varlen", True): 1e-6, ("triton", False): 1e-6, ("varlen", False): 3e-6}
    monkeypatch.setattr(timing_layer, "available", lambda *_, **__: ("triton", "varlen"))
    taken: list[str] = []

    @contextmanager
    def using(name: str):
        taken.append(name)
        yield

    monkeypatch.setattr(timing_layer, "using", using)
    pair = lambda _, __, scoring: ((seconds[taken[-1], scoring is PLAIN], 0.0),) * 2  # noqa: E731
    monkeypatch.setattr(timing_layer, "_attention", pair)
    assert timing_layer.fastest_attention(spec(windows=(8, 0, 0, 0)), bench)[0] == "varlen"
    assert timing_layer.fastest_attention(spec(windows=(8, 8, 0, 8)), bench)[0] == "triton"


def test_launches_are_timed_on_the_host():
    times = iter((10.0, 12.56))
    bench = Bench(torch.device("cpu"), torch.bfloat16, 1 << 12, 0.5, lambda run, seconds: 0.0)
    assert timing.launch_seconds(bench, lambda: next(times)) == pytest.approx(0.01)


def test_a_card_of_its_own_holds_a_context_and_nothing_else():
    assert gpu.split_use(0) == (0, 0)
    assert gpu.split_use(530 << 20) == (530 << 20, 0)
    assert gpu.split_use(9 << 30) == (gpu.COMMON_CONTEXT, (9 << 30) - gpu.COMMON_CONTEXT)


def test_a_product_takes_time_along_a_line():
    """100 rows in 1.2 s and 400 in 4.2 s: 0.2 s, and 10 ms a row."""
    shapes = {Shape(rows, 8, 6, True): 2 * rows * 8 * 6 / seconds for rows, seconds in ((100, 1.2), (400, 4.2))}
    box = replace(MACHINE, matmul={"torch": {"float32": shapes}})
    line = box.product_seconds("torch", "float32", 8, 6, forward=True)
    assert (line.fixed, line.each) == (pytest.approx(0.2), pytest.approx(0.01))
    with pytest.raises(KeyError):
        box.product_seconds("torch", "float32", 8, 6, forward=False)
    with pytest.raises(KeyError):
        box.product_seconds("torch", "bfloat16", 8, 6, forward=True)


def test_a_library_that_is_not_here_is_torch():
    shapes = {Shape(64, 8, 6, True): 1e9}
    box = replace(MACHINE, matmul={"torch": {"float32": shapes, "bfloat16": shapes}, "openblas": {"float32": shapes}})
    torch_line = box.product_seconds("torch", "bfloat16", 8, 6, forward=True)
    assert box.product_seconds("openblas", "bfloat16", 8, 6, forward=True) == torch_line
    assert box.product_seconds("mkl", "float32", 8, 6, forward=True) == torch_line


def test_large_weights_are_timed_in_blocks():
    """Gate and up of a 7B model: 22,016 rows of 4,096 weights, 4,096 rows at a time."""
    assert block_rows(4096) == 4096
    shapes = {Shape(64, 4096, 4096, True): 1e9}
    box = replace(MACHINE, matmul={"torch": {"float32": shapes}})
    line = box.product_seconds("torch", "float32", 4096, 22016, forward=True)
    assert line.seconds(1, 64) == pytest.approx(2 * 64 * 4096 * 22016 / 1e9)


@pytest.mark.parametrize(
    ("points", "fixed", "each"),
    [
        ([(10, 1.0), (20, 2.0)], 0.0, 0.1),
        ([(10, 3.0), (20, 2.0)], 1.0, 0.05),  # noise: more rows took less time; half of it at least is the rows'
        ([(10, 0.5), (20, 2.0)], 0.0, 0.1),  # noise: no product takes less than no time without rows
        ([(10, 2.0)], 0.0, 0.2),
    ],
)
def test_a_line_never_falls_nor_begins_below_zero(points, fixed, each):
    line = _line(points)
    assert (line.fixed, line.each) == (pytest.approx(fixed), pytest.approx(each))


def container(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_container_has_less_than_the_machine(tmp_path: Path):
    second = {"memory.max": "4000\n", "memory.current": "1500\n", "memory.stat": "anon 900\ninactive_file 200\n"}
    assert _container_limit(container(tmp_path / "two", second)) == (4000, 2700)
    first = {
        "memory/memory.limit_in_bytes": "4000\n",
        "memory/memory.usage_in_bytes": "5000\n",
        "memory/memory.stat": "cache 3\n",
    }
    assert _container_limit(container(tmp_path / "one", first)) == (4000, 0)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"memory.max": "max\n", "memory.current": "1\n", "memory.stat": ""},
        {"memory.max": f"{1 << 62}\n", "memory.current": "1\n", "memory.stat": ""},
    ],
)
def test_no_container_no_limit(files: dict[str, str], tmp_path: Path):
    assert _container_limit(container(tmp_path, files)) is None


def test_the_record_is_plain(timed: Machine):
    import json

    record = json.loads(json.dumps(timed.as_dict()))
    assert {"library", "dtype", "m", "k", "n", "transposed", "flops_per_s"} == set(record["matmul"][0])
    assert set(record["rates"]) == {item.name for item in fields(Rates)}
    assert MACHINE.as_dict()["rates"] == {}
    assert replace(MACHINE, rates=NOTHING).as_dict()["rates"]["norm"] == 0.0
