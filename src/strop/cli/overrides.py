"""What a command line says of recipe and plan: ``--section.field value``, ``--memory``, a recipe or a model and data.

Flags with a dot in their name belong to the recipe (or, as ``--plan.field``, to the plan) and always take one value:

    train M D --train.lr 1e-4 --json --watch.ask=Why?
        ──▶ train M D --json        and        [("train.lr", "1e-4"), ("watch.ask", "Why?")]

Whether such a field exists is decided where recipes are read, so a slip is answered with the nearest names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from strop.errors import UsageError

if TYPE_CHECKING:
    from strop.recipe import Resolved

Overrides = tuple[tuple[str, str], ...]
"""Pairs of a dotted path and a text, in the order of the command line."""

TakesOverrides = Annotated[Overrides, Parameter(parse=False)]
"""The type of a verb's parameter ``overrides``: having it makes a verb accept ``--section.field value``."""

_FLAG: Final = re.compile(r"--(?P<path>[A-Za-z_][\w-]*(?:\.[\w-]+)+)(?:=(?P<value>.*))?", re.DOTALL)
_RECIPE_ENDINGS: Final = (".yaml", ".yml")
_ANY_FLAG: Final = re.compile(r"--?[A-Za-z].*", re.DOTALL)


def split_overrides(tokens: Sequence[str]) -> tuple[list[str], Overrides]:
    """Separate the dotted flags from the rest of a command line.

    Args:
        tokens: the command line, without the program's name. After ``--`` nothing is a flag.

    Returns:
        The other tokens, and the flags as pairs of path and value.

    Raises:
        UsageError: a dotted flag without a value. (A value may begin with a dash if no letter follows: ``-1``.)
    """
    rest: list[str] = []
    overrides: list[tuple[str, str]] = []
    stream = iter(enumerate(tokens))
    for index, token in stream:
        if token == "--":
            rest += tokens[index:]
            break
        match = _FLAG.fullmatch(token)
        if match is None:
            rest.append(token)
        elif match["value"] is not None:
            overrides.append((match["path"], match["value"]))
        else:
            following = tokens[index + 1] if index + 1 < len(tokens) else None
            if following is None or _ANY_FLAG.fullmatch(following) or following == "--":
                raise UsageError(
                    f"flag {token} has no value",
                    expected=f"{token} VALUE",
                    found=f"{following} after it" if following else "the end of the command line",
                    do=f"write {token} VALUE, or {token}=VALUE when the value begins with a dash",
                )
            overrides.append((match["path"], following))
            next(stream)
    return rest, tuple(overrides)


def split_plan(overrides: Iterable[tuple[str, str]]) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Separate the recipe's overrides from the plan's.

    Returns:
        The recipe's overrides, and the plan's as texts by field, without the leading ``plan.``; the last one counts.
    """
    recipe: list[tuple[str, str]] = []
    plan: dict[str, str] = {}
    for path, text in overrides:
        section, _, field = path.partition(".")
        if section == "plan":
            plan[field.replace("-", "_")] = text
        else:
            recipe.append((path, text))
    return recipe, plan


def read_recipe(
    model: str, data: str | None, model_flag: str | None, overrides: Iterable[tuple[str, str]]
) -> tuple[Resolved, dict[str, str]]:
    """Put the recipe of a command line together.

    Args:
        model: the first argument.
        data: the second one.
        model_flag: the value of ``--model``.
        overrides: the dotted flags.

    Returns:
        The recipe, and the levers of the plan that were set by hand.

    Raises:
        UsageError: the recipe, or what was given twice or not at all.
    """
    from strop.recipe import resolve

    file, model_text, data_text = sort_arguments(model, data)
    recipe_overrides, levers = split_plan(overrides)
    if model_flag is not None:
        recipe_overrides.append(("model", model_flag))
    return resolve(file, model=model_text, data=data_text, overrides=recipe_overrides), levers


def read_budget(memory: str | None) -> int | None:
    """The bytes that ``--memory`` names; None where it is not given."""
    from strop.plan.budget import parse_size

    return None if memory is None else parse_size(memory)


def is_recipe(argument: str) -> bool:
    """Whether an argument names a recipe: a file that ends in .yaml or .yml."""
    return argument.lower().endswith(_RECIPE_ENDINGS)


def sort_arguments(model: str, data: str | None) -> tuple[str | None, str | None, str | None]:
    """Tell a recipe from a model and data: of the two arguments, the one that ends in .yaml or .yml is the recipe.

    Returns:
        The recipe file, the model and the data; None for what is not given.

    Raises:
        UsageError: two recipes.
    """
    model_is_recipe = is_recipe(model)
    data_is_recipe = data is not None and is_recipe(data)
    if model_is_recipe and data_is_recipe:
        raise UsageError(
            "two recipes are given",
            expected="one recipe, or a model and data",
            found=f"{model} and {data}",
            do=f"strop train {model}",
        )
    if model_is_recipe:
        return model, None, data
    if data_is_recipe:
        return data, model, None
    return None, model, data
