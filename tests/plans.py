"""Plans and their forecasts made by hand: no machine is probed, no data read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from strop.plan.forecast import Choice, Forecast
from strop.plan.machine import Machine, Shape
from strop.plan.plan import Plan
from strop.plan.workload import Packs, Workload

PLAN = Plan(
    device="cpu",
    dtype="float32",
    pack_tokens=2048,
    recompute_layers=0,
    recompute_elementwise=0,
    dense_layers=0,
    head="dense",
    embedding="memory",
    loss_chunk=256,
    prefixes="shared",
    matmul="openblas",
    threads=2,
)


def forecast(plan: Plan = PLAN, *, base: int = 420_000_000, kept: int = 600_000_000, step: float = 2.4) -> Forecast:
    """A forecast that adds up: ``base`` and 48 MB of other things, and what is kept for the backward pass."""
    components = {"Python and its libraries": base, "base in NF4": 76_000_000, "adapter and optimiser": 48_000_000}
    return Forecast(
        plan=plan,
        components={**components, "kept for the backward pass": kept, "never needed": 0},
        step_seconds=step,
        parts={"loading": 3.0, "steps": 120 * step, "watching": 24.0},
        step_parts={"matrix products": step * 0.8, "attention": step * 0.15, "optimiser": step * 0.05},
        tokens_per_s=1390 / step,
    )


def packs(tokens: int = 1280, read: int = 1390) -> Packs:
    """One pack."""
    return Packs(np.array([tokens]), np.array([830]), np.array([tokens * 50]), np.array([tokens]), read)


WORK = Workload(
    pack_tokens=2048,
    prefixes="shared",
    steps=120,
    packed_steps=1,
    packs=packs(),
    held_out=packs(),
    held_out_scale=1.0,
    largest_pack=1310,
    most_learned=850,
    longest_sample=128,
)
MACHINE = Machine(
    device="cpu",
    name="A processor",
    cores=2,
    total_bytes=25_000_000_000,
    free_bytes=12_300_000_000,
    process_bytes=400_000_000,
    bandwidth=21e9,
    matmul={
        "openblas": {"float32": {Shape(256, 576, 576, True): 9e10, Shape(1024, 576, 1536, True): 1.4e11}},
        "torch": {"float32": {Shape(1024, 576, 1536, True): 9.5e10}},
    },
)


def curve() -> tuple[Forecast, ...]:
    """Six plans, from the leanest to the fastest."""
    lean = replace(PLAN, recompute_layers=30, head="stored", embedding="file", loss_chunk=64)
    return (
        forecast(lean, kept=40_000_000, step=4.1),
        forecast(replace(PLAN, recompute_layers=30), kept=90_000_000, step=3.6),
        forecast(replace(PLAN, recompute_layers=20, recompute_elementwise=10), kept=210_000_000, step=3.2),
        forecast(replace(PLAN, recompute_elementwise=30), kept=420_000_000, step=2.7),
        forecast(kept=600_000_000, step=2.4),
        forecast(replace(PLAN, dense_layers=30), kept=1_020_000_000, step=2.1),
    )


def choice(chosen: int = 4, **changes: Any) -> Choice:
    """A choice from the curve."""
    values = {
        "forecast": curve()[chosen],
        "curve": curve(),
        "budget_bytes": 1_300_000_000,
        "budget_source": "--memory",
        "reason": "The fastest plan within 1.3 GB; the next faster one takes 1.56 GB and saves 36 s.",
        "machine": MACHINE,
        "workload": WORK,
        **changes,
    }
    return Choice(**values)
