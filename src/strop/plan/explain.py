"""A choice in words and rows: what the terminal and the page both show of it.

Choice ──▶ options (the curve) · rows (the curve as a table) · memory and time by part · machine and work in words
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from strop.plan import precision
from strop.plan.budget import budget_for, write_size
from strop.plan.forecast import Choice, Forecast
from strop.plan.plan import Plan
from strop.run.figures import duration, significant, size, whole
from strop.run.front import Option
from strop.run.levers import savings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from strop.plan.machine import Machine, Shape
    from strop.plan.workload import Workload

_SHARED: Final = 0.995  # below it, what samples have in common is worth a word


@dataclass(frozen=True, slots=True)
class Row:
    """A plan of the curve.

    Attributes:
        forecast: its cost.
        flag: the budget that buys it: ``--memory 1.24GB``.
        words: its packs, and what it keeps and gives up.
        chosen: whether it is the plan that was chosen.
    """

    forecast: Forecast
    flag: str
    words: str
    chosen: bool


def points(choice: Choice) -> list[Forecast]:
    """The curve with the chosen plan on it, smallest memory first."""
    curve = [*choice.curve]
    if all(point.plan != choice.forecast.plan for point in curve):
        curve.append(choice.forecast)
    return sorted(curve, key=lambda point: (point.peak_bytes, -point.seconds))


def rows(choice: Choice, most: int = 1_000) -> list[Row]:
    """The curve as a table.

    Args:
        choice: the choice.
        most: how many rows, at least 3; the first, the chosen and the last one are always among them.
    """
    found = [
        Row(point, f"--memory {write_size(budget_for(point.peak_bytes))}", _how(point.plan), _chosen(choice, point))
        for point in points(choice)
    ]
    if len(found) <= most:
        return found
    kept = {round(place * (len(found) - 1) / (most - 2)) for place in range(most - 1)}
    return [row for place, row in enumerate(found) if place in kept or row.chosen]


def options(choice: Choice) -> list[Option]:
    """The curve as it is drawn, each point with its plan in words."""
    return [
        Option(
            point.peak_bytes,
            point.seconds,
            f"{size(point.peak_bytes)}, {duration(point.seconds)}, {duration(point.step_seconds)} a step: "
            f"{_how(point.plan)}",
            _chosen(choice, point),
        )
        for point in points(choice)
    ]


def time_rows(forecast: Forecast) -> list[tuple[str, str]]:
    """Times in words: the whole run and its parts, a step, the speed."""
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in forecast.parts.items() if seconds)
    return [
        ("whole run", duration(forecast.seconds) + (f" ({parts})" if parts else "")),
        ("a step", duration(forecast.step_seconds)),
        ("speed", f"{significant(forecast.tokens_per_s, 3)} tokens/s"),
    ]


def circumstances(choice: Choice) -> list[tuple[str, str]]:
    """What has to be computed, and what on."""
    path = [("path", choice.path)] if choice.path else []
    machine, plan = choice.machine, choice.forecast.plan
    words = precision.in_words(machine.speeds, plan.dtype)
    dtype = [("dtype", words)] if words else []
    return [*path, ("work", _work(choice.workload)), ("machine", _machine(machine, plan)), *dtype]


def _work(work: Workload) -> str:
    computed = work.computed_tokens
    counts = f"{whole(work.learned_tokens)} learned"
    if computed < work.read_tokens * _SHARED:
        counts += f", {whole(computed)} computed since common beginnings are computed once"
    steps, packs = work.steps, work.packs_per_step
    return (
        f"{whole(steps)} {'step' if steps == 1 else 'steps'} of {whole(work.read_tokens)} tokens ({counts}) "
        f"in {significant(packs, 2)} {'pack' if packs == 1 else 'packs'}; "
        f"longest sample {whole(work.longest_sample)} tokens"
    )


def _how(plan: Plan) -> str:
    return f"packs of {whole(plan.pack_tokens)} tokens, {savings(plan.as_dict())}"


def _machine(machine: Machine, plan: Plan) -> str:
    cores = f"{machine.cores} {'core' if machine.cores == 1 else 'cores'}, " if machine.device == "cpu" else ""
    words = f"{machine.name}, {cores}{size(machine.free_bytes)} of {size(machine.total_bytes)} free"
    rates = [
        f"{_speed(_mean_rate(by_shape))} by {library}"
        for library, by_dtype in (machine.matmul or {}).items()
        if (by_shape := by_dtype.get(plan.dtype))
    ]
    if rates:
        words += f"; products of {plan.dtype}: {', '.join(rates)}"
    if machine.bandwidth:
        words += f"; copying: {significant(machine.bandwidth / 1e9, 3)} GB/s"
    if machine.upload:
        words += f", from the machine's memory {significant(machine.upload / 1e9, 3)} GB/s"
    if machine.on_gpu and machine.launch:
        words += f"; a launch: {significant(machine.launch * 1e6, 2)} µs"
    return words


def _speed(rate: float) -> str:
    """Operations per second: a CPU's in GFLOP/s, a GPU's in TFLOP/s."""
    if rate < 1e13:
        return f"{significant(rate / 1e9, 3)} GFLOP/s"
    return f"{significant(rate / 1e12, 3)} TFLOP/s"


def _mean_rate(by_shape: Mapping[Shape, float]) -> float:
    """Operations over seconds of all timed products, each once."""
    operations = {shape: 2.0 * shape.m * shape.k * shape.n for shape in by_shape}
    return sum(operations.values()) / sum(operations[shape] / rate for shape, rate in by_shape.items())


def _chosen(choice: Choice, point: Forecast) -> bool:
    return point.plan == choice.forecast.plan
