"""Charts as inline SVG: no library, no script, no network; colours come from the page's style sheet.

    Curve(values, steps) ──thinned──▶ Marks ──line_chart──▶ <svg viewBox="0 0 480 260" class="chart">…</svg>

The elements are built as a tree and written by the XML library, so every text is escaped and every chart is
well-formed. Every mark carries a <title>: the exact value shows when the pointer rests on it. The classes that the
style sheet has to know: `grid`, `axis`, `tick`, `label`, `line`, `faint`, `dots`, `bar`, `hit`, and the curve's own.
Charts of other kinds are drawn with the same canvas, frame and axes (`strop.run.front`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean
from typing import Literal
from xml.etree import ElementTree

from strop.run.figures import significant, whole

_MARGIN_LEFT, _MARGIN_RIGHT, _MARGIN_TOP, _MARGIN_BOTTOM = 58, 14, 12, 44
_MOST_MARKS = 240
_HIT_RADIUS = 7


@dataclass(frozen=True)
class Mark:
    """One point of a curve: the value of one step, or of several that were put together.

    Attributes:
        first: the first step it stands for.
        last: the last step it stands for.
        value: in the chart's unit.
        text: what the pointer shows.
    """

    first: int
    last: int
    value: float
    text: str

    @property
    def step(self) -> float:
        """Where it stands on the step axis."""
        return (self.first + self.last) / 2


@dataclass(frozen=True)
class Curve:
    """Marks drawn in one way.

    Attributes:
        name: its class in the style sheet, such as "training" or "held-out".
        form: "line" (strong), "faint" (a thin line with places to point at), or "dots" (joined by a thin line).
        marks: in the order of their steps; at least one.
    """

    name: str
    form: Literal["line", "faint", "dots"]
    marks: Sequence[Mark]


def thinned(
    values: Sequence[tuple[int, float]],
    what: str,
    written: Callable[[float], str] = significant,
    together: Callable[[Sequence[float]], float] = fmean,
) -> list[Mark]:
    """Returns at most 240 marks for any number of steps, each the mean (or the largest) of the steps it stands for.

    Args:
        values: (step, value), in the order of the steps.
        what: what is measured, for the text: "loss" gives "step 12: loss 0.532".
        written: how a value is written.
        together: makes one value of several, `statistics.fmean` or `max`.
    """
    group = math.ceil(len(values) / _MOST_MARKS) or 1
    marks = []
    for start in range(0, len(values), group):
        part = values[start : start + group]
        value = together([value for _, value in part])
        first, last = part[0][0], part[-1][0]
        place = f"step {whole(first)}" if len(part) == 1 else f"steps {whole(first)} to {whole(last)}"
        kind = "" if len(part) == 1 else "largest " if together is max else "mean "
        marks.append(Mark(first, last, value, f"{place}: {kind}{what} {written(value)}"))
    return marks


def smoothed(values: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Returns the mean of each value and its neighbours, a tenth of the steps wide in all.

    The window is centred, so that a falling loss is not shown later than it fell, and gets narrower towards the ends
    (value i reaches over min(i, n - 1 - i) neighbours on either side at most), so that it stays centred there.
    """
    sums = [0.0, *accumulate(value for _, value in values)]
    widest, final = len(values) // 20, len(values) - 1
    averages = []
    for place, (step, _) in enumerate(values):
        half = min(widest, place, final - place)
        start, end = place - half, place + half + 1
        averages.append((step, (sums[end] - sums[start]) / (end - start)))
    return averages


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Returns round numbers from at most `low` to at least `high`, a step of 1, 2 or 5 times a power of ten apart.

    Args:
        low: the smallest value.
        high: the largest value, above `low`.
        about: how many intervals there may be; down to about a third as many come.
    """
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [place * step for place in range(first, last + 1)]


def line_chart(
    label: str, curves: Sequence[Curve], *, from_zero: bool, width: int = 480, height: int = 260, about: int = 5
) -> str:
    """Draws curves over steps.

    Args:
        label: what is shown, for those who cannot see it.
        curves: at least one, each with at least one mark.
        from_zero: whether the value axis starts at 0 (it does anyway where the values come near it).
        width: of the drawing, in its own units; the page scales it.
        height: likewise.
        about: how many intervals each axis may have.

    Returns:
        An ``<svg>`` element.
    """
    marks = [mark for curve in curves for mark in curve.marks]
    low, high = min(mark.value for mark in marks), max(mark.value for mark in marks)
    if from_zero or 0 <= low < high / 2:
        low = min(low, 0.0)
    if low == high:
        low, high = low - (abs(low) / 2 or 1.0), high + (abs(high) / 2 or 1.0)
    first, last = min(mark.step for mark in marks), max(mark.step for mark in marks)
    if 0 < first <= last / 4:
        first = 0.0
    if first == last:
        first, last = first - 1, last + 1
    value_ticks = ticks(low, high, about)
    step_ticks = [tick for tick in ticks(first, last, about + 1) if first <= tick <= last and tick == int(tick)]
    frame = Frame((first, last), (value_ticks[0], value_ticks[-1]), width, height)
    svg = canvas(label, width, height)
    draw_axes(svg, frame, [(tick, whole(tick)) for tick in step_ticks], value_ticks, "step")
    for curve in curves:
        _draw_curve(svg, frame, curve)
    return written_out(svg)


def bar_chart(
    label: str, edges: Sequence[float], counts: Sequence[float], axis: str, *, width: int = 480, height: int = 260
) -> str:
    """Draws a histogram.

    Args:
        label: what is shown, for those who cannot see it.
        edges: ascending, one more than counts; bar i goes from edge i to edge i + 1.
        counts: how many lie in each bar, at least 0.
        axis: what the edges measure.
        width: of the drawing, in its own units.
        height: likewise.

    Returns:
        An ``<svg>`` element.
    """
    value_ticks = ticks(0.0, max(*counts, 1.0))
    edge_ticks = [tick for tick in ticks(edges[0], edges[-1]) if edges[0] <= tick <= edges[-1]]
    frame = Frame((edges[0], edges[-1]), (0.0, value_ticks[-1]), width, height)
    svg = canvas(label, width, height)
    draw_axes(svg, frame, [(tick, tick_text(tick, edge_ticks)) for tick in edge_ticks], value_ticks, axis)
    for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True):
        top = frame.y(count)
        bar = add(
            svg,
            "rect",
            "bar",
            x=frame.x(left) + 0.5,
            y=top,
            width=max(0.5, frame.x(right) - frame.x(left) - 1),
            height=max(0.0, frame.y(0) - top),
        )
        add_title(bar, f"{significant(left)} to {significant(right)}: {whole(count)}")
    return written_out(svg)


@dataclass(frozen=True)
class Frame:
    """Where values lie in the drawing.

    Attributes:
        across: lowest and highest value of the axis below.
        up: lowest and highest value of the axis at the left.
        width: of the drawing.
        height: of the drawing.
    """

    across: tuple[float, float]
    up: tuple[float, float]
    width: int
    height: int

    def x(self, value: float) -> float:
        """Where a value of the axis below lies."""
        share = (value - self.across[0]) / (self.across[1] - self.across[0])
        return _MARGIN_LEFT + share * (self.width - _MARGIN_LEFT - _MARGIN_RIGHT)

    def y(self, value: float) -> float:
        """Where a value of the axis at the left lies."""
        share = (value - self.up[0]) / (self.up[1] - self.up[0])
        return self.height - _MARGIN_BOTTOM - share * (self.height - _MARGIN_TOP - _MARGIN_BOTTOM)


def draw_axes(
    svg: ElementTree.Element,
    frame: Frame,
    across: Sequence[tuple[float, str]],
    up: Sequence[float],
    axis: str,
) -> None:
    """Draws a grid with its numbers.

    Args:
        svg: the drawing.
        frame: its measures.
        across: (value, text) of the ticks below.
        up: values of the ticks at the left.
        axis: what the axis below measures.
    """
    left, right, bottom = _MARGIN_LEFT, frame.width - _MARGIN_RIGHT, frame.height - _MARGIN_BOTTOM
    for value in up:
        y = frame.y(value)
        add(svg, "line", "grid" if value != up[0] else "axis", x1=left, x2=right, y1=y, y2=y)
        add_text(svg, tick_text(value, up), "tick value", left - 8, y + 4)
    for step, text in across:
        x = frame.x(step)
        add(svg, "line", "axis", x1=x, x2=x, y1=bottom, y2=bottom + 4)
        add_text(svg, text, "tick", x, bottom + 19)
    add_text(svg, axis, "label", (left + right) / 2, frame.height - 6)


def _draw_curve(svg: ElementTree.Element, frame: Frame, curve: Curve) -> None:
    group = add(svg, "g", f"{curve.form} {curve.name}")
    places = [(frame.x(mark.step), frame.y(mark.value)) for mark in curve.marks]
    if len(places) > 1:
        add(group, "polyline", "", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places))
    if curve.form == "line" and len(places) > 1:
        return  # the faint curve below it is the one to point at
    for (x, y), mark in zip(places, curve.marks, strict=True):
        if curve.form == "dots" or len(places) == 1:
            add(group, "circle", "dot", cx=x, cy=y, r=3.5)
        add_title(add(group, "circle", "hit", cx=x, cy=y, r=_HIT_RADIUS), mark.text)


def tick_text(value: float, all_ticks: Sequence[float]) -> str:
    """Writes a tick with as many decimals as tell it from the next one, and thousands as k, M or G."""
    largest = max(abs(tick) for tick in all_ticks)
    divisor, suffix = next(((10.0**e, s) for e, s in ((9, "G"), (6, "M"), (4, "k")) if largest >= 10.0**e), (1.0, ""))
    if suffix == "k":
        divisor = 1000.0
    apart = (all_ticks[1] - all_ticks[0]) / divisor if len(all_ticks) > 1 else 1.0
    decimals = max(0, -math.floor(math.log10(apart) + 1e-9))
    return f"{value / divisor:.{min(decimals, 9)}f}{suffix if value else ''}"


def canvas(label: str, width: int, height: int) -> ElementTree.Element:
    """An empty drawing; `label` is for those who cannot see it."""
    return ElementTree.Element(
        "svg", {"viewBox": f"0 0 {width} {height}", "class": "chart", "role": "img", "aria-label": label}
    )


def add(parent: ElementTree.Element, tag: str, name: str, **attributes: float | str) -> ElementTree.Element:
    """Adds an element of class `name` ("" for none)."""
    written = {key: value if isinstance(value, str) else f"{value:.1f}" for key, value in attributes.items()}
    return ElementTree.SubElement(parent, tag, {"class": name, **written} if name else written)


def add_text(parent: ElementTree.Element, text: str, name: str, x: float, y: float) -> None:
    """Adds a text at a place."""
    add(parent, "text", name, x=x, y=y).text = text


def add_title(parent: ElementTree.Element, text: str) -> None:
    """Adds what the pointer shows when it rests on an element."""
    ElementTree.SubElement(parent, "title").text = text


def written_out(svg: ElementTree.Element) -> str:
    """The drawing as text."""
    return ElementTree.tostring(svg, encoding="unicode", short_empty_elements=False)
