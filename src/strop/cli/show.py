"""Tables for people: the resolved recipe with the source of every value, and plain lists of facts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strop.cli.console import printable

if TYPE_CHECKING:
    from rich.console import Console

    from strop.recipe import Resolved


def show_recipe(resolved: Resolved, console: Console) -> None:
    """Print every field with its value and the source of the value; what differs from the default stands out.

    On a terminal what differs is bold; without one (no colours) it is marked with a star.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("recipe", "value", "from"):
        table.add_column(heading, overflow="fold")
    mark = "" if console.is_terminal and not console.no_color else "* "
    for path, value, source in resolved.rows():
        changed = resolved.changed(path)
        table.add_row(
            Text(path, "bold" if changed else "dim"),
            Text((mark if changed else "") + value_text(value), "bold" if changed else "dim"),
            Text(printable(source), "cyan" if changed else "dim"),
        )
    console.print(table)


def value_text(value: Any) -> str:
    """A recipe's value as a person writes it: ``none``, ``0.0002``, one question a line."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return "\n".join(printable(str(item)) for item in value) or "none"
    return printable(str(value))


def show_facts(title: str, facts: Mapping[str, Any], console: Console) -> None:
    """Print a title, if there is one, and names and values in two columns below it."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(Text(printable(name)), Text(value_text(value)))
    if title:
        console.print(Text(printable(title), "bold"))
    console.print(table)


def show_run(summary: Mapping[str, Any], console: Console) -> None:
    """Print the forecast beside the fact, where a run's results are, and how to talk to its model.

    Args:
        summary: what training gives back; ``run`` is the run's folder.
        console: where to print.
    """
    if summary.get("forecast"):
        show_outcome(summary, console)
    run = Path(summary["run"])
    show_facts("", {"run": run, "report": run / "report.html", "talk to it": f"strop chat {run}"}, console)


def show_outcome(summary: Mapping[str, Any], console: Console) -> None:
    """Print what the run was said to cost beside what it cost.

    Args:
        summary: with its ``forecast``; measures that either side lacks are left out.
        console: where to print.
    """
    from rich.table import Table
    from rich.text import Text

    from strop.run.outcome import Facts, compare

    facts = Facts(
        summary["peak_bytes"],
        summary["steps"],
        summary["seconds"],
        summary["watch_seconds"],
        summary["state"] == "finished",
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("", "forecast", "fact", "difference"):
        table.add_column(heading, justify="right" if heading else "left")
    rows = compare(summary["forecast"], facts)
    for row in rows:
        difference = row.difference.replace("\u2212", "-") if console.options.ascii_only else row.difference
        cells = (row.name, row.written(row.forecast), row.written(row.fact), difference)
        table.add_row(*(Text(cell, style) for cell, style in zip(cells, ("dim", "", "bold", "dim"), strict=True)))
    if rows:
        console.print(table)
        console.print()


def recipe_flags(width: int) -> str:
    """Every field of the recipe as a flag, with its default, for the end of a help page.

    Args:
        width: columns to fill.

    Returns:
        Lines such as ``--train.lr 0.0002    peak learning rate (a number above 0)``.
    """
    import textwrap

    from strop.recipe import FIELDS

    lines = ["The recipe, every field a flag (or a line of RECIPE.yaml), with its default:"]
    indent = " " * 36
    for field in FIELDS:
        if field.path in ("model", "data.train"):
            continue  # the two arguments
        default = "" if field.default is None or field.default == () else value_text(field.default)
        head = f"  --{field.path} {default}".rstrip()
        body = textwrap.wrap(field.description, max(width - len(indent), 30))
        lines.append(f"{head:<{len(indent) - 1}} {body[0]}")
        lines += [indent + line for line in body[1:]]
    return "\n".join(lines)
