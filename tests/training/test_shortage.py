"""Memory that falls short: the step is done again under a leaner plan, with the same samples and the same result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from planner_cases import machine
from strop.errors import BudgetError
from strop.model.engine import Engine
from strop.model.families import read_spec
from strop.plan import choose as choose_module
from strop.plan import memory as memory_module
from strop.run.folder import RunFolder
from strop.training import shortage
from tiny_run import Tiny, adapter_bytes, events, values

FIXED = {"device": "cpu", "dtype": "float32", "matmul": "torch", "threads": "1", "prefixes": "repeated"}
"""What is not up to the budget; the rest is the search's, so that there is something to fall back to."""

Gradients = Callable[..., float]


@pytest.fixture
def empty_machine(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine on which nothing but the run takes memory: plans of a tiny model are then far apart."""
    made = machine(read_spec(tiny.model), process_bytes=0, library_bytes=0, free_bytes=10**12)
    monkeypatch.setattr(choose_module, "probe", lambda *_, **__: made)
    monkeypatch.setattr(memory_module, "_TORCH_PRODUCT_BYTES", 0)
    yield


def train(tiny: Tiny, folder: Path) -> RunFolder:
    """A run of six steps whose plan is searched for."""
    from strop.training.session import train_run

    train_run(tiny.recipe(), folder=folder, plan_overrides=FIXED)
    return RunFolder(folder)


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException, calls: Callable[[int], bool]) -> list[int]:
    """Has the engine fail on some of its calls, after it has added some of a gradient."""
    seen: list[int] = []
    whole: Gradients = Engine.gradients

    def gradients(self: Engine, batch: Any, adapter: Any, *rest: Any) -> float:
        seen.append(len(seen))
        if calls(seen[-1]):
            for matrix in adapter.parameters():
                if matrix.grad is not None:
                    matrix.grad.add_(1.0)
            raise error
        return whole(self, batch, adapter, *rest)

    monkeypatch.setattr(Engine, "gradients", gradients)
    return seen


@pytest.mark.usefixtures("empty_machine")
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
    ],
    ids=["python", "cuda", "cpu"],
)
def test_a_step_is_done_again_under_a_leaner_plan(error, tiny: Tiny, tmp_path: Path, monkeypatch):
    untouched = train(tiny, tmp_path / "untouched")
    seen = failing(monkeypatch, error, lambda call: call == 4)
    run = train(tiny, tmp_path / "short")
    (replan,) = events(run, "replan")
    before, after = events(run, "start")[0]["forecast"], replan["forecast"]
    assert after["peak_bytes"] < before["peak_bytes"]
    assert replan["reason"] == (str(error).splitlines()[0] if str(error) else "out of memory")
    assert run.read_json("plan.json")["forecast"]["peak_bytes"] == after["peak_bytes"]
    assert run.read_json("plan.json")["recompute_layers"] == replan["plan"]["recompute_layers"]
    # No step twice, none missing, the same samples, and what was added to a gradient before the failure is gone.
    for name in ("step", "tokens", "learned_tokens", "lr"):
        assert values(run, "step", name) == values(untouched, "step", name)
    assert values(run, "step", "loss") == pytest.approx(values(untouched, "step", "loss"), rel=1e-4)
    assert values(run, "watch", "held_out_loss") == pytest.approx(values(untouched, "watch", "held_out_loss"), rel=1e-3)
    assert len(seen) > 6


@pytest.mark.usefixtures("empty_machine")
def test_it_goes_down_the_curve_as_far_as_it_must(tiny: Tiny, tmp_path: Path, monkeypatch):
    failing(monkeypatch, MemoryError(), lambda call: call in (4, 5, 6))
    run = train(tiny, tmp_path / "run")
    peaks = [event["forecast"]["peak_bytes"] for event in events(run, "replan")]
    assert len(peaks) == 3
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == 3
    assert values(run, "step", "step") == [1, 2, 3, 4, 5, 6]


@pytest.mark.usefixtures("empty_machine")
def test_where_no_plan_is_leaner_it_says_so(tiny: Tiny, tmp_path: Path, monkeypatch):
    failing(monkeypatch, MemoryError(), lambda call: call >= 4)
    with pytest.raises(BudgetError) as caught:
        train(tiny, tmp_path / "run")
    assert caught.value.exit_code == 4
    assert "no plan needs less" in caught.value.what
    assert f"strop resume {tmp_path / 'run'}" in caught.value.do


@pytest.mark.usefixtures("empty_machine")
def test_another_failure_is_not_taken_for_a_shortage(tiny: Tiny, tmp_path: Path, monkeypatch):
    failing(monkeypatch, RuntimeError("mat1 and mat2 shapes cannot be multiplied"), lambda call: call == 4)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        train(tiny, tmp_path / "run")
    assert events(RunFolder(tmp_path / "run"), "replan") == []


@pytest.mark.usefixtures("empty_machine")
def test_a_forecast_that_was_too_low_is_found_before_the_first_step(tiny: Tiny, tmp_path: Path, monkeypatch):
    untouched = train(tiny, tmp_path / "untouched")
    used = iter([2 * 10**12, 10**6])
    real = shortage.memory_bytes
    monkeypatch.setattr(shortage, "memory_bytes", lambda device: next(used, None) or real(device))
    run = train(tiny, tmp_path / "run")
    order = [event["kind"] for event in run.lines(run.events) if event["kind"] in ("dry_run", "replan", "step")]
    assert order[:4] == ["dry_run", "replan", "dry_run", "step"]
    (replan,) = events(run, "replan")
    assert replan["reason"].startswith("the longest pack took 2,000,000,000,000 bytes, the budget is ")
    assert values(run, "step", "loss") == pytest.approx(values(untouched, "step", "loss"), rel=1e-4)


@pytest.mark.usefixtures("empty_machine")
def test_the_dry_run_computes_the_largest_pack_and_leaves_nothing_behind(tiny: Tiny, tmp_path: Path, monkeypatch):
    untouched = train(tiny, tmp_path / "untouched")
    tokens = events(untouched, "dry_run")[0]["tokens"]
    sizes: list[int] = []
    whole: Gradients = Engine.gradients

    def gradients(self: Engine, batch: Any, *rest: Any) -> float:
        sizes.append(len(batch.tokens_T))
        return whole(self, batch, *rest)

    monkeypatch.setattr(Engine, "gradients", gradients)
    train(tiny, tmp_path / "again")
    assert sizes[0] == tokens == max(sizes)
    monkeypatch.setattr("strop.training.loop.dry_run", lambda *_: None)
    without = train(tiny, tmp_path / "without")
    assert adapter_bytes(without) == adapter_bytes(untouched)


@pytest.mark.usefixtures("empty_machine")
def test_a_run_that_was_replanned_goes_on_under_the_leaner_plan(tiny: Tiny, tmp_path: Path, monkeypatch):
    from strop.errors import Stopped
    from strop.training import loop
    from strop.training.session import resume_run

    with monkeypatch.context() as patch:
        failing(patch, MemoryError(), lambda call: call == 4)
        save = loop._save

        def save_and_stop(training: Any, step: int) -> None:
            save(training, step)
            if step == 4:
                raise Stopped("cut here")

        patch.setattr(loop, "_save", save_and_stop)
        with pytest.raises(Stopped):
            train(tiny, tmp_path / "run")
    leaner = events(RunFolder(tmp_path / "run"), "replan")[0]["plan"]
    resume_run(tmp_path / "run")
    assert events(RunFolder(tmp_path / "run"), "start")[-1]["plan"] == leaner
    assert values(RunFolder(tmp_path / "run"), "step", "step") == [1, 2, 3, 4, 5, 6]
