"""``strop plan``: what a run will take, in memory and time, and what other budgets would buy; nothing is loaded."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from strop.cli.app import verb
from strop.cli.overrides import Overrides, TakesOverrides, read_budget, read_recipe
from strop.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from strop.plan.forecast import Choice

_MOST_ROWS = 9
_LEAST_BAR, _MOST_BAR = 8, 40


def plan(
    model: str,
    data: str | None = None,
    /,
    *,
    model_flag: Annotated[str | None, Parameter(name="--model")] = None,
    memory: str | None = None,
    html: Path | None = None,
    json: bool = False,
    overrides: TakesOverrides = (),
) -> None:
    """Say what a run will take, in memory and time, before it starts.

    Takes what strop train takes. Reads the data and the model's shape, measures this machine for a moment, and shows
    the fastest plan within the memory, why it is that one, and what more or less memory would buy. No weight is loaded
    and no run is made.

    Args:
        model: a model folder, a .gguf file, an id on a hub (owner/name, ms:owner/name), the name
            smollm2-135m-instruct, or a recipe (RECIPE.yaml).
        data: what to learn from: a file, a folder or glob of files, or an id on a hub; several with commas between.
        model_flag: the model, in place of the one that the recipe names.
        memory: the most memory that the run may take, such as 8GB (default: a share of what is free).
        html: a file to write the same to, as a web page.
        json: print the plan as one JSON object.

    Examples:
        strop plan ./my-model ./data.jsonl
        strop plan ./my-model ./data.jsonl --memory 8GB --html plan.html
        strop plan recipe.yaml --plan.pack_tokens 2048 --json
    """
    from strop.cli.console import error_console, output_console, print_json
    from strop.cli.progress import TerminalListener

    budget = read_budget(memory)
    resolved, levers = read_recipe(model, data, model_flag, overrides)
    if html is not None and not html.parent.is_dir():
        raise UsageError(
            f"--html {html}: there is no folder {html.parent}",
            expected="a file in a folder that exists",
            found="nothing",
            do="make the folder first, or write --html plan.html",
        )
    from strop.training.session import plan_run

    with TerminalListener(error_console()) as listener:
        choice = plan_run(resolved, budget_bytes=budget, plan_overrides=levers, listener=listener)
    command = train_command([part for part in (model, data) if part is not None], model_flag, overrides, memory)
    subject = {"model": resolved.recipe.model, "data": resolved.recipe.data.named}
    if html is not None:
        from strop.plan.page import write_plan

        write_plan(choice, html, command=command, **subject)
    if json:
        print_json({**subject, **as_json(choice), "command": command})
    else:
        show_choice(choice, output_console(), command=command, subject=subject)


def train_command(arguments: list[str], model_flag: str | None, overrides: Overrides, memory: str | None) -> str:
    """The command line that trains under the plan that is shown."""
    words = ["strop", "train", *arguments]
    if model_flag is not None:
        words += ["--model", model_flag]
    for path, value in overrides:
        words += [f"--{path}={value}"] if value.startswith("-") else [f"--{path}", value]
    if memory is not None:
        words += ["--memory", memory]
    return shlex.join(words)


def as_json(choice: Choice) -> dict[str, Any]:
    """The object of ``--json``: the forecast's figures, the plan, the budget, the curve, the machine, the work."""
    whole = choice.as_dict()
    return {**whole.pop("forecast"), **whole}


def show_choice(choice: Choice, console: Console, *, command: str, subject: Mapping[str, str]) -> None:
    """Print a choice: what was looked at, memory, time, the plan, why, the curve, and what to do next.

    Args:
        choice: the choice.
        console: where to print; its width and whether it shows more than ASCII decide the form.
        command: the command line that trains under it.
        subject: what is trained on what, by name.
    """
    from rich.text import Text

    from strop.cli.console import printable
    from strop.cli.curve import draw_curve
    from strop.cli.show import show_facts
    from strop.plan import explain
    from strop.run.figures import size
    from strop.run.levers import in_words

    forecast, narrow = choice.forecast, console.options.ascii_only
    show_facts("", {**subject, **dict(explain.circumstances(choice))}, console)
    budget = f"{size(choice.budget_bytes)} ({choice.budget_source})"
    _heading(f"memory at the peak: {size(forecast.peak_bytes)} of a budget of {budget}", console)
    _show_parts({name: float(part) for name, part in forecast.components.items()}, size, console)
    _heading("time", console)
    show_facts("", dict(explain.time_rows(forecast)), console)
    _heading("a step by kind of work", console)
    _show_parts(forecast.step_parts, _seconds, console)
    _heading("plan", console)
    show_facts("", {**dict(in_words(forecast.plan.as_dict())), "why": choice.reason}, console)
    _heading("what memory buys", console)
    for line in draw_curve(
        explain.options(choice), float(choice.budget_bytes), width=min(console.width, 100) - 1, ascii_only=narrow
    ):
        console.print(line, no_wrap=True)
    console.print()
    _show_rows(explain.rows(choice, _MOST_ROWS), console)
    _heading("to train under this plan", console)
    console.print(Text("  " + printable(command), "bold green"), soft_wrap=True)


def _heading(text: str, console: Console) -> None:
    from rich.text import Text

    console.print()
    console.print(Text(text, "bold"))


def _show_parts(values: Mapping[str, float], written: Any, console: Console) -> None:
    """A table of the parts of a whole: name, size, bar, share."""
    from rich.table import Table
    from rich.text import Text

    from strop.run.page import shares

    parts = shares(values, {name: written(value) for name, value in values.items()})
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", style="dim", no_wrap=True)
    room = min(max(console.width - 48, _LEAST_BAR), _MOST_BAR)
    largest = max((part.percent for part in parts), default=1.0)
    for part in parts:
        length = part.percent / largest * room
        table.add_row(
            part.name, part.value.shown, Text(bar(length, console.options.ascii_only), "cyan"), f"{part.percent:.0f} %"
        )
    console.print(table)


def bar(length: float, ascii_only: bool) -> str:
    """A bar of a length in columns, in eighths of a column where the terminal can show them."""
    if ascii_only:
        return "#" * max(round(length), 1)
    eighths = max(round(length * 8), 1)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def _show_rows(rows: list[Any], console: Console) -> None:
    """The curve as a table: what each budget buys."""
    from rich.table import Table
    from rich.text import Text

    from strop.run.figures import duration

    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("budget", "whole run", "a step"):
        table.add_column(heading, no_wrap=True, justify="left" if heading == "budget" else "right")
    table.add_column("how", overflow="fold")
    for row in rows:
        cells = (
            row.flag,
            duration(row.forecast.seconds),
            duration(row.forecast.step_seconds),
            row.words + (" (this plan)" if row.chosen else ""),
        )
        table.add_row(*(Text(cell, "bold" if row.chosen else "") for cell in cells))
    console.print(table)


def _seconds(value: float) -> str:
    from strop.run.figures import duration

    return duration(max(value, 0.0))


def lever_flags(width: int) -> str:
    """Every lever of the plan as a flag, for the end of a help page; the text is that of the plan's own docstring.

    Args:
        width: columns to fill.
    """
    import inspect
    import textwrap

    from strop.plan.plan import LEVERS, Plan

    lines = ["The plan, every lever a flag (the recipe's fields, which strop train --help lists, are flags here too):"]
    described = inspect.cleandoc(Plan.__doc__ or "").partition("Attributes:\n")[2]
    indent = " " * 32
    for name, _, text in (line.strip().partition(": ") for line in described.splitlines()):
        if name in LEVERS:
            body = textwrap.wrap(text, max(width - len(indent), 30))
            lines.append(f"{f'  --plan.{name}':<{len(indent) - 1}} {body[0]}")
            lines += [indent + line for line in body[1:]]
    return "\n".join(lines)


app = verb(plan, more=lever_flags(shutil.get_terminal_size((80, 24)).columns - 1))
