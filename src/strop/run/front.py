"""The memory–time curve: what each budget of memory buys, and its drawing as SVG.

    [Option(memory, seconds), …] ──front_axes──▶ Axes ──┬─▶ front_chart: <svg>
                                                        └─▶ the terminal's plot (strop.cli.curve)

Between two options lies no third one, so the curve is a stair: a budget buys the fastest option that fits it.

    time │●
         │└──●          at a budget between the second and the third option
         │   └──┆──●    the second one is the best
         └──────┆─────
             budget     memory
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from strop.run.charts import Frame, add, add_text, add_title, canvas, draw_axes, tick_text, ticks, written_out
from strop.run.figures import byte_unit, size

_FAR = 0.5  # a budget beyond the curve by more than half the curve's width would press the curve together
_TIME_UNITS = ((7200.0, 3600.0, "h"), (120.0, 60.0, "min"))


@dataclass(frozen=True, slots=True)
class Option:
    """What one plan costs.

    Attributes:
        memory: bytes at the peak.
        seconds: of the whole run.
        text: what the pointer shows.
        chosen: whether it is the plan of the run.
    """

    memory: float
    seconds: float
    text: str = ""
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Axes:
    """Round ticks around a curve, in units that suit it.

    Attributes:
        memory_ticks: in `memory_unit`.
        memory_divisor: bytes in it.
        time_ticks: in `time_unit`.
        time_divisor: seconds in it.
        budget: in `memory_unit`; None where there is none, or it lies far beyond the curve.
        beyond: the budget in words where it lies far beyond the curve; else "".
    """

    memory_ticks: tuple[float, ...]
    memory_divisor: float
    memory_unit: str
    time_ticks: tuple[float, ...]
    time_divisor: float
    time_unit: str
    budget: float | None
    beyond: str


def stairs(options: Sequence[Option], end: float) -> list[tuple[float, float]]:
    """The corners of the curve as (memory, seconds), from the smallest option to memory `end`.

    Args:
        options: smallest memory first, the fastest last.
        end: bytes, at least those of the last option.
    """
    corners = [(options[0].memory, options[0].seconds)]
    for option in options[1:]:
        corners += [(option.memory, corners[-1][1]), (option.memory, option.seconds)]
    return [*corners, (end, corners[-1][1])]


def front_axes(options: Sequence[Option], budget: float | None, across: int = 5, up: int = 5) -> Axes:
    """Axes that hold all options, and the budget unless it lies far to the right of them.

    Args:
        options: at least one.
        budget: bytes.
        across: how many intervals the axis of memory may have.
        up: how many that of time may have.
    """
    low, high = min(option.memory for option in options), max(option.memory for option in options)
    near = budget is not None and budget <= high + _FAR * max(high - low, high / 4)
    if near and budget is not None:
        low, high = min(low, budget), max(high, budget)
    divisor, unit = byte_unit(high)
    longest = max(option.seconds for option in options)
    time_divisor, time_unit = next(((d, name) for least, d, name in _TIME_UNITS if longest >= least), (1.0, "s"))
    fastest = min(option.seconds for option in options)
    return Axes(
        tuple(_ticks_around(low / divisor, high / divisor, across)),
        divisor,
        unit,
        tuple(_ticks_around(fastest / time_divisor, longest / time_divisor, up)),
        time_divisor,
        time_unit,
        budget / divisor if budget is not None and near else None,
        size(budget) if budget is not None and not near else "",
    )


def _ticks_around(low: float, high: float, about: int) -> list[float]:
    """Ticks from below to above; from 0 where the values come near it."""
    if low < high / 2:
        low = 0.0
    if high - low < 1e-3 * abs(high):
        low, high = low - (abs(low) / 4 or 1.0), high + (abs(high) / 4 or 1.0)
    return ticks(low, high, about)


def front_chart(
    label: str, options: Sequence[Option], budget: float | None, *, width: int = 480, height: int = 300
) -> str:
    """Draws the curve.

    Args:
        label: what is shown, for those who cannot see it.
        options: at least one, smallest memory first, the fastest last.
        budget: bytes.
        width: of the drawing, in its own units; the page scales it.
        height: likewise.

    Returns:
        An ``<svg>`` element; the time's unit is `front_axes`' and stands in no axis.
    """
    axes = front_axes(options, budget, across=width // 100)
    across, up = axes.memory_ticks, axes.time_ticks
    frame = Frame((across[0], across[-1]), (up[0], up[-1]), width, height)
    svg = canvas(label, width, height)
    below = [(tick, tick_text(tick, across)) for tick in across]
    draw_axes(svg, frame, below, up, f"memory at the peak ({axes.memory_unit})")
    if axes.budget is not None:
        _draw_budget(svg, frame, axes.budget, f"budget {size(axes.budget * axes.memory_divisor)}")
    elif axes.beyond:
        text = f"budget {axes.beyond} →"
        add_text(svg, text, "value budget-text", frame.x(across[-1]), frame.y(up[-1]) + 14)
    corners = stairs(options, across[-1] * axes.memory_divisor)
    places = [(frame.x(m / axes.memory_divisor), frame.y(t / axes.time_divisor)) for m, t in corners]
    add(svg, "polyline", "stairs", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places))
    for option in sorted(options, key=lambda option: option.chosen):  # the chosen one is drawn over the others
        x, y = frame.x(option.memory / axes.memory_divisor), frame.y(option.seconds / axes.time_divisor)
        group = add(svg, "g", "option chosen" if option.chosen else "option")
        add_title(group, option.text)
        add(group, "circle", "dot", cx=x, cy=y, r=6.0 if option.chosen else 3.5)
        add(group, "circle", "hit", cx=x, cy=y, r=9.0)
    return written_out(svg)


def _draw_budget(svg: ElementTree.Element, frame: Frame, budget: float, text: str) -> None:
    x = frame.x(budget)
    add(svg, "line", "budget", x1=x, x2=x, y1=frame.y(frame.up[0]), y2=frame.y(frame.up[1]))
    left = x > frame.width / 2
    name = "value budget-text" if left else "start budget-text"
    add_text(svg, text, name, x - 7 if left else x + 7, frame.y(frame.up[1]) + 14)
