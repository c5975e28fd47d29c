"""The memory–time curve in a terminal: dots of braille, or plain ASCII where those cannot be shown.

    whole run (min)
      8 ┤⣿●⠒⢲            ┆          ● this plan   • another plan   ┆ the budget
      4 ┤   ⠸⠤⠤•⠤⠤⠤⠤⠤⠤⠤⠤⠤┆⠤
        └┬───────┬───────┬─
         1       2       3
          memory at the peak (GB)

A character holds 2 × 4 dots of braille, so a plot of 60 × 12 characters has 120 × 48 places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.text import Text

    from strop.run.front import Axes, Option

_BRAILLE: Final = 0x2800
_DOT_BITS: Final = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bit of a dot by its row and column inside a character, as Unicode numbers them."""

_LEAST_WIDTH, _MOST_WIDTH = 20, 100


@dataclass(frozen=True, slots=True)
class _Signs:
    """What the parts of a plot are drawn with, and their styles."""

    chosen: str
    other: str
    budget: str
    up: str
    corner: str
    below: str
    tick: str
    beyond: str


_UNICODE: Final = _Signs("●", "•", "┆", "┤", "└", "─", "┬", "→")
_ASCII: Final = _Signs("@", "o", ":", "|", "+", "-", "+", "->")
_STYLES: Final = {"chosen": "bold green", "other": "cyan", "stairs": "cyan", "budget": "yellow", "axis": "dim"}


def draw_curve(
    options: Sequence[Option], budget: float | None, *, width: int, height: int = 12, ascii_only: bool = False
) -> list[Text]:
    """Draws the curve with its axes and a legend.

    Args:
        options: at least one, smallest memory first, the fastest last.
        budget: bytes; None for no line.
        width: columns for all of it.
        height: rows of the plot alone.
        ascii_only: whether the terminal can show ASCII alone.

    Returns:
        Lines, none wider than `width` where that is 40 or more.
    """
    from rich.text import Text

    from strop.run.charts import tick_text
    from strop.run.front import front_axes

    signs = _ASCII if ascii_only else _UNICODE
    axes = front_axes(options, budget, across=max(2, width // 12))
    labels = [tick_text(tick, axes.time_ticks) for tick in axes.time_ticks]
    margin = max(len(label) for label in labels)
    columns = min(max(width - margin - 3, _LEAST_WIDTH), _MOST_WIDTH)
    plot = _Plot(columns, height, axes)
    plot.stairs(options, ascii_only)
    if axes.budget is not None:
        plot.line(axes.budget, signs.budget)
    for option in sorted(options, key=lambda option: option.chosen):
        plot.mark(option, signs.chosen if option.chosen else signs.other)
    by_row = {plot.row(tick): label for tick, label in zip(axes.time_ticks, labels, strict=True)}
    lines = [Text(f"whole run ({axes.time_unit})", _STYLES["axis"])]
    for row in range(height):
        edge = signs.up if row in by_row else ("|" if ascii_only else "│")
        lines.append(Text(f"{by_row.get(row, ''):>{margin}} {edge}", _STYLES["axis"]) + plot.text(row))
    lines += _axis_below(plot, axes, margin, signs)
    return [*lines, *_legend(options, axes, signs, width)]


class _Plot:
    """Characters of a plot, each with the name of its style."""

    def __init__(self, columns: int, rows: int, axes: Axes) -> None:
        self.columns, self.rows, self._axes = columns, rows, axes
        self._cells = [[(" ", "") for _ in range(columns)] for _ in range(rows)]
        self._dots = [[0] * columns for _ in range(rows)]

    def across(self, memory: float) -> float:
        """Where a memory in the axis' unit lies, from 0 to 1."""
        first, last = self._axes.memory_ticks[0], self._axes.memory_ticks[-1]
        return (memory - first) / (last - first)

    def column(self, memory: float) -> int:
        """The column of a memory in the axis' unit."""
        return round(self.across(memory) * (2 * self.columns - 1)) // 2

    def row(self, time: float) -> int:
        """The row, from the top, of a time in the axis' unit."""
        return self._dot_row(time) // 4

    def _dot_row(self, time: float) -> int:
        first, last = self._axes.time_ticks[0], self._axes.time_ticks[-1]
        return round((1 - (time - first) / (last - first)) * (4 * self.rows - 1))

    def stairs(self, options: Sequence[Option], ascii_only: bool) -> None:
        """Draws the curve's line."""
        from strop.run.front import stairs

        axes = self._axes
        corners = [
            (
                round(self.across(memory / axes.memory_divisor) * (2 * self.columns - 1)),
                self._dot_row(seconds / axes.time_divisor),
            )
            for memory, seconds in stairs(options, axes.memory_ticks[-1] * axes.memory_divisor)
        ]
        for (x0, y0), (x1, y1) in pairwise(corners):
            for x in range(min(x0, x1), max(x0, x1) + 1):
                for y in range(min(y0, y1), max(y0, y1) + 1):
                    self._dots[y // 4][x // 2] |= _DOT_BITS[y % 4][x % 2]
                    sign = "-" if y0 == y1 else "|"
                    self._cells[y // 4][x // 2] = (sign if ascii_only else "", "stairs")
        for row, dots in enumerate(self._dots):
            for column, bits in enumerate(dots):
                if bits and not ascii_only:
                    self._cells[row][column] = (chr(_BRAILLE + bits), "stairs")

    def line(self, memory: float, sign: str) -> None:
        """Draws the budget from top to bottom, behind the curve."""
        column = self.column(memory)
        for row in range(self.rows):
            if not self._dots[row][column]:
                self._cells[row][column] = (sign, "budget")

    def mark(self, option: Option, sign: str) -> None:
        """Draws an option."""
        column, row = (
            self.column(option.memory / self._axes.memory_divisor),
            self.row(option.seconds / self._axes.time_divisor),
        )
        self._cells[row][column] = (sign, "chosen" if option.chosen else "other")

    def text(self, row: int) -> Text:
        """A row of the plot."""
        from rich.text import Text

        return Text.assemble(*((sign, _STYLES.get(name, "")) for sign, name in self._cells[row]))


def _axis_below(plot: _Plot, axes: Axes, margin: int, signs: _Signs) -> list[Text]:
    """The axis of memory: its line, its numbers and its name."""
    from rich.text import Text

    from strop.run.charts import tick_text

    line, numbers = [signs.below] * plot.columns, [" "] * (plot.columns + margin + 2)
    end = -1
    for tick in axes.memory_ticks:
        column, label = plot.column(tick), tick_text(tick, axes.memory_ticks)
        line[column] = signs.tick
        start = min(max(column + margin + 2 - len(label) // 2, 0), len(numbers) - len(label))
        if start > end:  # a number that would touch the one before it is left out
            numbers[start : start + len(label)] = label
            end = start + len(label)
    name = f"memory at the peak ({axes.memory_unit})"
    rows = [" " * (margin + 1) + signs.corner + "".join(line), "".join(numbers).rstrip()]
    rows.append(" " * (margin + 2 + max((plot.columns - len(name)) // 2, 0)) + name)
    return [Text(row, _STYLES["axis"]) for row in rows]


def _legend(options: Sequence[Option], axes: Axes, signs: _Signs, width: int) -> list[Text]:
    """What the signs mean, as far as they are in the plot."""
    from rich.text import Text

    from strop.run.figures import size

    parts = [(signs.chosen, "this plan", "chosen")] if any(option.chosen for option in options) else []
    if not all(option.chosen for option in options):
        parts.append((signs.other, "another plan", "other"))
    if axes.budget is not None:
        parts.append((signs.budget, f"budget {size(axes.budget * axes.memory_divisor)}", "budget"))
    elif axes.beyond:
        parts.append((signs.beyond, f"budget {axes.beyond}", "budget"))
    lines = [Text()]
    for sign, words, name in parts:
        if lines[-1] and len(lines[-1]) + len(sign) + len(words) + 4 > width:
            lines.append(Text())
        lines[-1].append("   " if lines[-1] else "").append(sign, _STYLES[name]).append(f" {words}", "dim")
    return lines
