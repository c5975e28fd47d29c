"""The verbs, and how each one's help page is made.

`strop --help` lists the verbs from the table below without importing any of them; only the verb that is asked for is
imported. A help page is the verb's docstring: its text, its arguments, and at the end its section "Examples".
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Final

from cyclopts import App, Parameter

VERBS: Final[dict[str, str]] = {
    "train": "Fine-tune a chat model on your data.",
    "plan": "Say what a run will take, in memory and time, before it starts.",
    "data": "Show what will be learned, token by token, and what is wrong with the data.",
    "resume": "Continue a run that was stopped.",
    "chat": "Talk to a run's tuned model.",
    "compare": "Ask the base model and the tuned one the same questions.",
    "eval": "Measure a run on what it held out, or on data of your own.",
    "report": "Write a run's report again, as a web page.",
    "runs": "List the runs in a folder.",
    "models": "List the families of models that can be tuned, or prove one on your weights.",
    "demo": "Tune a real model in a few minutes and show what it learned.",
    "doctor": "Say what Strop finds on this machine, and what is missing.",
}
"""The verbs and the first line of each one's docstring. The verb NAME is `app` in the module strop.cli.NAME."""

_FORMAT: Final = "plaintext"


def build_app(tokens: Sequence[str]) -> App:
    """Build the command line's parser.

    Args:
        tokens: the command line; the verb that it names is imported, the others are only listed.
    """
    app = App(
        name="strop",
        help="Fine-tune chat models with QLoRA on your own data, and see what the run did.",
        help_epilogue="Examples:\n  strop train MODEL DATA\n  strop train --help",
        help_format=_FORMAT,
        version=_version,
        default_parameter=Parameter(negative=(), show_default=False),
    )
    asked = next((token for token in tokens if not token.startswith("-")), "")
    for rank, (name, summary) in enumerate(VERBS.items()):
        if name == asked:
            app.command(importlib.import_module(f"strop.cli.{name}").app)
        else:
            app.command(f"strop.cli.{name}:app", name=name, help=summary, sort_key=rank)
    return app


def verb(function: Callable[..., Any], name: str | None = None, more: str = "") -> App:
    """Make a verb of a function.

    Args:
        function: the function; its docstring is the help page.
        name: the verb's name (default: the function's).
        more: text that follows the examples on the help page.
    """
    app = App(
        name=name or function.__name__,
        help=description(function),
        help_format=_FORMAT,
        help_epilogue="\n\n".join(part for part in (examples(function), more) if part),
    )
    app.default(function)
    return app


def examples(function: Callable[..., Any]) -> str:
    """The section "Examples" of a function's docstring, which must be its last; empty without one."""
    _, heading, text = inspect.cleandoc(function.__doc__ or "").partition("Examples:\n")
    return (heading + text).rstrip().replace("\n    ", "\n  ")


def description(function: Callable[..., Any]) -> str:
    """A docstring without its examples, each paragraph of its text on one line, for the terminal to wrap."""
    text = inspect.cleandoc(function.__doc__ or "").partition("Examples:\n")[0].rstrip()
    prose, heading, arguments = text.partition("\n\nArgs:\n")
    return "\n\n".join(" ".join(block.split()) for block in prose.split("\n\n")) + heading + arguments


def _version() -> str:
    from importlib.metadata import version

    return f"strop {version('strop')}"
