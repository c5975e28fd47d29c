"""Looking at the machine, and timing it: what is timed, not how fast it is."""

from dataclasses import fields, replace
from pathlib import Path

import psutil
import pytest
import torch

from planner_cases import NOTHING, spec
from strop.kernels import blas, library
from strop.model.spec import ExpertsSpec, RopeSpec
from strop.plan import stopwatch, timing
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
        patch.setattr(stopwatch, "SECONDS", 0.0005)
        patch.setattr(stopwatch, "NUMBERS", 1 << 12)
        yield probe(spec(), device="cpu", rank=3, threads=1)


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
    monkeypatch.setattr(stopwatch, "SECONDS", 0.0003)
    monkeypatch.setattr(stopwatch, "NUMBERS", 1 << 12)
    kinds = [
        {"qk_norm": "head", "experts": ExpertsSpec(4, 2, 48), "windows": (8, 0, 8, 0)},
        {"alibi": True, "norm": "layer", "gated_mlp": False, "activation": "gelu", "qk_norm": "full"},
        {"attention_softcap": 5.0, "rope": RopeSpec(rotary_size=8, interleaved=True)},
    ]
    for changes in kinds:
        rates = probe(spec(**changes), device="cpu", rank=3, threads=1).rates
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
        "import sys; from strop.plan import stopwatch, timing; stopwatch.SECONDS = 0.0005;"
        "timing._optimise(stopwatch.Ring());"
        "print('torch._inductor' in sys.modules or 'torch._dynamo' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


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
