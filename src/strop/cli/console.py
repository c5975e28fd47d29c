"""What is printed, and where.

    standard error     progress, tables of the plan and the recipe, notes, errors: for people
    standard output    results: text for people, or with --json exactly one JSON object on one line, the last

Both honour NO_COLOR and COLUMNS, and print plain text when they are no terminal. Text that comes from data or a model
is never read as markup, and its control characters are made visible, so that no answer can steer the terminal.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from strop.errors import Stopped, StropError

if TYPE_CHECKING:
    from rich.console import Console

_JOINERS: Final = "\u200c\u200d"
"""Zero-width (non-)joiners: invisible by themselves, needed to write Persian, Hindi and many emoji."""

PLAIN_WIDTH: Final = 120
"""Columns when the output is no terminal and COLUMNS is not set."""


def error_console() -> Console:
    """The console for people, on standard error."""
    return _console(stderr=True)


def output_console() -> Console:
    """The console for results, on standard output."""
    return _console(stderr=False)


def _console(stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character gets an escape, not a crash
        stream.reconfigure(errors="backslashreplace")
    console = Console(stderr=stderr, highlight=False, emoji=False, markup=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PLAIN_WIDTH
    return console


def printable(text: str) -> str:
    """Make control characters visible, as escapes, except line breaks and tabs.

    ``"a\\x1b[2Jb"`` becomes ``"a\\\\x1b[2Jb"``: seen, not obeyed.
    """
    return "".join(
        char if char.isprintable() or char in "\n\t" or char in _JOINERS else char.encode("unicode_escape").decode()
        for char in text
    )


def note(text: str) -> None:
    """Say on standard error what takes long, in a sentence."""
    error_console().print(printable(text), soft_wrap=True)


def print_json(value: Mapping[str, Any]) -> None:
    """Print the result of a command that was called with ``--json``: one object, one line, on standard output.

    Characters beyond ASCII are escaped, so the line survives any encoding; numbers that JSON has no word for (NaN and
    the infinities) become null; paths become texts.
    """
    sys.stdout.write(json.dumps(_plain(value), allow_nan=False, default=str) + "\n")
    sys.stdout.flush()


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, PurePath) else value


def print_error(error: StropError) -> None:
    """Print an error's four parts on standard error."""
    from rich.text import Text

    stopped = isinstance(error, Stopped)
    text = Text()
    text.append("stopped: " if stopped else "error: ", "bold yellow" if stopped else "bold red")
    text.append(printable(error.what), "bold")
    for name, part in (("expected", error.expected), ("found", error.found), ("do", error.do)):
        if part:
            lines = printable(part).splitlines()
            text.append(f"\n{name:>10}: ", "dim")
            text.append(("\n" + " " * 12).join(lines), "green" if name == "do" else "")
    error_console().print(text, soft_wrap=True)
