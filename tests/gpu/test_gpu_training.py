"""Whole runs of `strop train` on the device: they learn, follow the CPU's losses, repeat to the bit and can be resumed.

A tiny model with a tokenizer of its own stands in every test; the starter model as well, where it can be had (without a
network: STROP_STARTER_WHEEL).
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from on_card import DEVICE, ON_CARD, on_device

from strop.data.problems import write_problems
from strop.errors import ModelError
from strop.kernels.attention_choice import available
from strop.model.starter import starter_folder
from strop.plan.plan import CHOICES, Plan
from strop.recipe import resolve
from strop.run.folder import RunFolder
from strop.training.session import resume_run, train_run
from tiny_run import PLAN, Tiny, adapter_bytes, course, events, values

pytestmark = on_device

BFLOAT16 = {"device": DEVICE, "dtype": "bfloat16"}
FLOAT32 = {"device": DEVICE, "dtype": "float32"}
# Levers that a card's plan turns, beside those of every plan: each with the values that are tried.
LEVERS: dict[str, dict[str, Any]] = {
    "a pack a sample": {"pack_tokens": 1},
    "one pack a step": {"pack_tokens": 100_000},
    "all layers again": {"recompute_layers": 2},
    "element-wise parts again": {"recompute_elementwise": 2},
    "all dense": {"dense_layers": 2},
    "nothing dense": {"dense_layers": 0},
    "one logit row": {"loss_chunk": 1},
    "inputs in the machine's memory": {"recompute_layers": 2, "checkpoints": "host"},
    "base in the machine's memory": {"base": "host", "dense_layers": 0},
    **{f"embedding: {place}": {"embedding": place} for place in CHOICES["embedding"]},
    **{f"attention: {name}": {"attention": name} for name in CHOICES["attention"]},
}
# These decide what is kept and where it lies, never in what order numbers are added.
SAME_BITS = {"recompute_layers", "recompute_elementwise", "dense_layers", "embedding", "checkpoints", "base"}


class Killed(BaseException):
    """The process is gone."""


class KillAt:
    """A listener that ends the run at the n-th step, as a kill would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_event(self, event: dict[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] == self.step:
            raise Killed


@pytest.fixture(scope="module")
def plain(tiny: Tiny, tmp_path_factory) -> RunFolder:
    """A run of the tiny model on the device in float32, so that what levers change is seen."""
    return tiny.train(tmp_path_factory.mktemp("plain") / "run", plan=FLOAT32)


def test_it_learns_in_bfloat16(tiny: Tiny, tmp_path: Path):
    run = tiny.train(tmp_path / "run", plan=BFLOAT16)
    losses = values(run, "step", "loss")
    assert losses[-1] < losses[0] - 1
    assert run.read_json("plan.json")["device"] == DEVICE
    assert values(run, "watch", "held_out_loss")[-1] < values(run, "watch", "held_out_loss")[0]


def test_float32_follows_the_cpu(plain: RunFolder, finished: RunFolder):
    assert values(plain, "step", "loss") == pytest.approx(values(finished, "step", "loss"), rel=1e-3)
    assert values(plain, "step", "tokens") == values(finished, "step", "tokens")


@pytest.mark.parametrize("plan", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_the_same_plan_gives_the_same_bits(plan, tiny: Tiny, tmp_path: Path):
    first, second = (tiny.train(tmp_path / name, plan=plan) for name in ("first", "second"))
    assert course(first) == course(second)


@pytest.mark.parametrize("step", [1, 3, 5])
def test_killed_and_resumed_it_ends_with_the_same_bytes(step, tiny: Tiny, tmp_path: Path):
    whole = tiny.train(tmp_path / "whole", plan=BFLOAT16)
    with pytest.raises(Killed):
        tiny.train(tmp_path / "cut", plan=BFLOAT16, listener=KillAt(step))
    resume_run(tmp_path / "cut")
    assert course(RunFolder(tmp_path / "cut")) == course(whole)


@pytest.mark.parametrize("levers", LEVERS.values(), ids=LEVERS)
def test_no_lever_changes_the_result(levers, plain: RunFolder, tiny: Tiny, tmp_path: Path):
    name = levers.get("attention")
    if name and name not in available(torch.device(DEVICE), dtype=torch.float32, width=16):
        pytest.skip(f"{name} does not compute attention in float32 here")
    run = tiny.train(tmp_path / "run", plan={**FLOAT32, **levers})
    assert {name: run.read_json("plan.json")[name] for name in levers} == levers
    for name in ("loss", "grad_norm"):
        assert values(run, "step", name) == pytest.approx(values(plain, "step", name), rel=1e-4), name
    assert values(run, "watch", "held_out_loss") == pytest.approx(values(plain, "watch", "held_out_loss"), rel=1e-4)
    if set(levers) <= SAME_BITS:
        assert adapter_bytes(run) == adapter_bytes(plain), "the same numbers, kept or made again"


def test_every_lever_of_a_card_is_turned():
    known = {lever.name for lever in fields(Plan)}
    turned = {name for levers in LEVERS.values() for name in levers}
    assert known - turned <= {"device", "dtype", "head", "prefixes", "matmul", "threads"}
    assert set(PLAN) <= known


# ── the real model ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def starter() -> Path:
    try:
        return starter_folder()
    except ModelError as error:
        pytest.skip(f"the starter model cannot be had: {error.what}")


def real_run(folder: Path, model: Path, data: str, steps: int, **plan: str) -> RunFolder:
    """Some steps of the starter model on the demo's problems."""
    overrides = {"data.eval": 8, "train.steps": steps, "train.samples_per_step": 4, "train.lr": 1e-3}
    overrides |= {"adapter.dropout": 0.1, "watch.answer_tokens": 8, "watch.every": steps, "train.save_every": 2}
    resolved = resolve(model=str(model), data=data, overrides=[(name, str(value)) for name, value in overrides.items()])
    train_run(resolved, folder=folder, plan_overrides=plan)
    return RunFolder(folder)


@pytest.mark.slow
def test_the_real_models_curve_is_that_of_the_cpu(starter: Path, tmp_path: Path):
    steps = 8 if ON_CARD else 3
    data = str(write_problems(tmp_path / "problems", learn=80, held_out=0) / "train")
    exact = real_run(tmp_path / "cpu", starter, data, steps, device="cpu", dtype="float32")
    float32 = real_run(tmp_path / "32", starter, data, steps, device=DEVICE, dtype="float32")
    assert values(float32, "step", "loss") == pytest.approx(values(exact, "step", "loss"), rel=1e-3)
    bfloat16 = real_run(tmp_path / "16", starter, data, steps, device=DEVICE, dtype="bfloat16")
    losses, wanted = values(bfloat16, "step", "loss"), values(exact, "step", "loss")
    # The first step is one pass of the same weights; what follows are moves by gradients that were rounded.
    assert losses[0] == pytest.approx(wanted[0], rel=1e-2)
    assert losses == pytest.approx(wanted, rel=5e-2)
    assert losses[-1] < losses[0]
    before, after = (event["held_out_loss"] for event in events(bfloat16, "watch"))
    assert after < before
