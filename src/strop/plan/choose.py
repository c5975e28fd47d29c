"""The plan of a run: the fastest that fits a memory budget, and the whole curve of memory against time.

Job, Machine ──search──▶ the plans that nothing beats ──budget──▶ Choice, or BudgetError before any weight is read
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from strop.errors import BudgetError
from strop.kernels import blas
from strop.model.general.spec import GeneralSpec
from strop.model.paths import AnySpec
from strop.model.spec import DecoderSpec
from strop.plan import gpu, precision
from strop.plan.budget import budget_for, usable, write_size
from strop.plan.duration import forecast_time
from strop.plan.forecast import Choice, Forecast
from strop.plan.job import Job, read_job
from strop.plan.machine import Machine, probe
from strop.plan.memory import forecast_memory
from strop.plan.plan import GENERAL, Plan
from strop.plan.search import Levers, Point, front, packed
from strop.plan.workload import Workload
from strop.run.levers import savings

if TYPE_CHECKING:
    from strop.data.examples import Dataset
    from strop.recipe import Recipe

# The share of the free memory that a run may take where nobody names a budget; of a GPU's, which little else uses.
FREE_SHARE = 0.75
GPU_SHARE = 0.9
# Of plans whose times differ by less, the one with less memory is taken: forecasts are no better than that.
_EQUAL = 0.01
# Points of the curve that are kept: neighbours closer than this in memory and time tell nothing.
_CURVE_STEP = 0.01


def choose(
    spec: DecoderSpec,
    item_bytes: Callable[[str], int],
    dataset: Dataset,
    recipe: Recipe,
    *,
    steps: int,
    budget_bytes: int | None = None,
    levers: Levers | None = None,
    machine: Machine | None = None,
    plan: Plan | None = None,
) -> Choice:
    """The fastest plan that fits.

    Args:
        spec: the model.
        item_bytes: bytes of a number of a tensor in the model's files (`WeightReader.item_bytes`).
        dataset: what is learned and held out.
        recipe: the recipe.
        steps: optimiser steps of the run.
        budget_bytes: the most resident memory that the process may hold; by default a share of what is free.
        levers: levers set by hand, which are taken as given.
        machine: what to plan for; by default this one, timed for some seconds.
        plan: the plan of a run that goes on: it is kept, whatever else would be faster, and the rest of the curve is
            what is left to go over to.

    Raises:
        BudgetError: no plan fits the budget.
    """
    job = read_job(spec, item_bytes, dataset, recipe, steps=steps)
    levers = dict(levers or {})
    if plan is not None:
        levers = {name: getattr(plan, name) for name in ("device", "dtype", "matmul", "threads", "attention")}
    machine = machine or _timed(job, levers)
    budget, source = budget_bytes, "--memory"
    if budget is None:
        budget, source = int(machine.free_bytes * free_share(machine)), "share of free memory"
    given: Levers = {name: levers[name] for name in ("device", "dtype", "threads") if name in levers}
    start = replace(default_plan(spec, machine, given), dense_layers=0)
    points = front(job, machine, start, levers)
    return _choice(job, machine, points, budget, source, levers, plan)


def free_share(machine: Machine) -> float:
    """The share of the free memory that is a run's where nobody names a budget."""
    return GPU_SHARE if machine.on_gpu else FREE_SHARE


def forecast_for(
    plan: Plan,
    spec: DecoderSpec,
    item_bytes: Callable[[str], int],
    dataset: Dataset,
    recipe: Recipe,
    *,
    steps: int,
    machine: Machine | None = None,
) -> Forecast:
    """What one plan costs; the arguments are those of `choose`."""
    job = read_job(spec, item_bytes, dataset, recipe, steps=steps)
    machine = machine or _timed(job, {"device": plan.device, "dtype": plan.dtype, "threads": plan.threads})
    return _forecast(job, plan, packed(job, plan), machine)


def leaner(choice: Choice, than: Plan) -> Forecast | None:
    """The next plan on the curve that needs clearly less memory than one of its plans, or None."""
    known = [point for point in (choice.forecast, *choice.curve) if point.plan == than]
    limit = known[0].peak_bytes if known else choice.forecast.peak_bytes
    less = [point for point in choice.curve if point.peak_bytes <= limit * (1 - 2 * _CURVE_STEP)]
    return less[-1] if less else None


def packing_of(choice: Choice, plan: Plan) -> Workload:
    """The packs under a plan of a choice's curve."""
    found = [one for one in choice.packings if one.pack_tokens == plan.pack_tokens and one.prefixes == plan.prefixes]
    return found[0]


def default_plan(spec: AnySpec, machine: Machine, levers: Levers | None = None) -> Plan:
    """A plan for answering and evaluating, which keep nothing: no search, no timing.

    Args:
        spec: the model.
        machine: what `probe` says.
        levers: levers set by hand.
    """
    on_gpu, levers = machine.on_gpu, levers or {}
    dtype = str(levers.get("dtype", _dtype(machine)))
    item = getattr(torch, dtype).itemsize
    layer_bytes = max(spec.weights_below(1), spec.linear_weights // spec.layers) * item
    plan = Plan(
        device=machine.device,
        dtype=dtype,
        pack_tokens=8192 if on_gpu else 2048,
        recompute_layers=0,
        recompute_elementwise=0,
        # A quarter of what is free; the cache of keys and values and what else runs here take the rest.
        dense_layers=min(spec.layers, machine.free_bytes // 4 // layer_bytes),
        head="dense" if spec.vocabulary * spec.hidden * item < machine.free_bytes // 4 else "stored",
        embedding="memory",
        loss_chunk=256,
        prefixes="shared",
        matmul="torch" if on_gpu else blas.libraries(getattr(torch, dtype))[0],
        threads=machine.cores,
    )
    fixed = GENERAL if isinstance(spec, GeneralSpec) else {}
    return replace(plan, **{**fixed, **levers})  # type: ignore[arg-type]


def _dtype(machine: Machine) -> str:
    """What is computed in: what was timed; else float32, or what a GPU is good at."""
    if machine.dtype:
        return machine.dtype
    if not machine.on_gpu:
        return "float32"
    return gpu.default_dtype(machine.device) if torch.cuda.is_available() else "bfloat16"


def _timed(job: Job, levers: Levers) -> Machine:
    device, dtype, threads = levers.get("device"), levers.get("dtype"), levers.get("threads")
    if dtype is None and levers.get("matmul") == "openblas" and (device == "cpu" or not torch.cuda.is_available()):
        dtype = "float32"  # OpenBLAS knows no other
    return probe(
        job.spec,
        device=str(device) if device else None,
        rank=job.rank,
        dtypes=(str(dtype),) if dtype else (),
        threads=int(threads) if threads else None,
    )


def _choice(
    job: Job,
    machine: Machine,
    points: Sequence[Point],
    budget: int,
    source: str,
    levers: Levers,
    kept: Plan | None,
) -> Choice:
    forecasts = _Forecasts(job, machine)
    if kept is not None:
        workload = packed(job, kept)
        forecast = _forecast(job, kept, workload, machine)
        reason = "The plan that the run began with."
        if slow := precision.slow(machine.speeds, kept):
            reason += f" It goes on in bfloat16, since another dtype rounds otherwise, but that is slow here: {slow}."
        curve = forecasts.curve(points, None)
    else:
        fitting = [point for point in points if point.bytes <= usable(budget)]
        if not fitting:
            raise too_small(forecasts.of(points[0]), budget, source, levers, free_share(machine))
        limit = fitting[-1].seconds * (1 + _EQUAL)
        chosen = next(point for point in fitting if point.seconds <= limit)
        workload, forecast = chosen.workload, forecasts.of(chosen)
        curve = forecasts.curve(points, chosen)
        reason = reason_of(forecast, curve, budget, source)
        if chosen.plan.dtype == "bfloat16" and machine.speeds is not None:
            words = precision.in_words(machine.speeds, chosen.plan.dtype)
            reason += f" {words[0].upper()}{words[1:]}."
    packings = tuple({id(point.workload): point.workload for point in points}.values())
    return Choice(forecast, curve, budget, source, reason, machine, workload, (workload, *packings))


class _Forecasts:
    """Forecasts of points, each made once."""

    def __init__(self, job: Job, machine: Machine) -> None:
        self._job, self._machine = job, machine
        self._made: dict[Plan, Forecast] = {}

    def of(self, point: Point) -> Forecast:
        if point.plan not in self._made:
            self._made[point.plan] = _forecast(self._job, point.plan, point.workload, self._machine)
        return self._made[point.plan]

    def curve(self, points: Sequence[Point], chosen: Point | None) -> tuple[Forecast, ...]:
        """The points that are worth telling: both ends, the chosen one, and what lies apart from its neighbours."""
        kept = [points[0]]
        for point in points[1:]:
            apart = point.bytes > kept[-1].bytes * (1 + _CURVE_STEP) and point.seconds < kept[-1].seconds * (
                1 - _EQUAL / 2
            )
            if apart or point is chosen or point is points[-1]:
                kept.append(point)
        return tuple(self.of(point) for point in kept)


def _forecast(job: Job, plan: Plan, workload: Workload, machine: Machine) -> Forecast:
    by_kind, parts = forecast_time(job, plan, workload, machine)
    step_seconds = sum(by_kind.values())
    components = forecast_memory(job, plan, workload, machine)
    return Forecast(plan, components, step_seconds, parts, by_kind, workload.read_tokens / step_seconds)


def reason_of(forecast: Forecast, curve: Sequence[Forecast], budget: int, source: str) -> str:
    """Why this plan: what the budget allows, what is given up, what the next faster one would need."""
    allowed = f"{write_size(budget)} ({source})"
    gives_up = savings(forecast.plan.as_dict())
    faster = curve[curve.index(forecast) + 1 :]
    if not faster:
        return f"The fastest plan of all fits into {allowed}: {gives_up}."
    following = faster[0]
    gain = 1 - following.seconds / forecast.seconds
    needs = f"The next faster plan needs {write_size(budget_for(following.peak_bytes))} and takes {gain:.1%} less time"
    if following.peak_bytes <= usable(budget):
        return f"The leanest of the fastest plans inside {allowed}: {gives_up}. {needs}."
    return f"The fastest plan inside {allowed}: {gives_up}. {needs}."


def too_small(smallest: Forecast, budget: int, source: str, levers: Levers, share: float) -> BudgetError:
    """What the smallest plan needs, and how to ask for it."""
    least = budget_for(smallest.peak_bytes)
    needed = write_size(least)
    largest = sorted(smallest.components.items(), key=lambda item: -item[1])[:4]
    parts = ", ".join(f"{name} {write_size(count)}" for name, count in largest)
    by_hand = " or ".join(f"--plan.{name}" for name in levers if name not in ("device", "threads", "matmul"))
    do = f"give it --memory {needed}" + (f", or leave out {by_hand}" if by_hand else "")
    if source != "--memory":
        do = f"free memory, or take more than {share:.0%} of what is free: --memory {needed}"
    return BudgetError(
        f"no plan fits into {write_size(budget)} of memory",
        expected=f"at least {least:,} bytes ({parts})",
        found=f"a budget of {budget:,} bytes ({source})",
        do=do,
    )
