"""A recipe together with where each of its values came from.

A run should be able to answer "why is the learning rate that?" for every field. The answer is one of

    default                 nobody said anything
    recipe.yaml:12          line 12 of that file
    flag --train.lr         the command line
    argument MODEL          the command line, by position
    model · data            worked out later, from the model or the data (`Resolved.with_value`)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import ValidationError

from strop.errors import UsageError
from strop.recipe.fields import FIELD, FIELDS
from strop.recipe.read import raise_all
from strop.recipe.schema import Recipe
from strop.recipe.values import complaint, shown
from strop.recipe.write import to_yaml, value_at


class Row(NamedTuple):
    """One field of a resolved recipe, for showing."""

    path: str
    value: Any
    source: str


@dataclass(frozen=True)
class Resolved:
    """A recipe and the source of each of its values; immutable.

    Attributes:
        recipe: the recipe.
        sources: by path, where the value came from, for every field.
    """

    recipe: Recipe
    sources: Mapping[str, str]

    def __post_init__(self) -> None:
        complete = {field.path: self.sources.get(field.path, "default") for field in FIELDS}
        object.__setattr__(self, "sources", MappingProxyType(complete))

    def __hash__(self) -> int:
        return hash((self.recipe, tuple(self.sources.items())))

    def rows(self) -> list[Row]:
        """Every field as (path, value, source), in the schema's order."""
        return [Row(path, value_at(self.recipe, path), source) for path, source in self.sources.items()]

    def changed(self, path: str) -> bool:
        """Whether the value at a path differs from the default (a field without a default always does)."""
        field = FIELD[path]
        return field.required or bool(value_at(self.recipe, path) != field.default)

    def with_value(self, path: str, value: Any, source: str) -> Resolved:
        """The same recipe with one value replaced.

        Args:
            path: dotted path of a field.
            value: the new value, of the field's own type.
            source: where it came from, such as ``model`` or ``data``.

        Raises:
            KeyError: no field has this path.
            UsageError: the field does not take this value.
        """
        field = FIELD[path]
        tree = self.recipe.model_dump()
        place = tree[field.section] if field.section else tree
        place[field.name] = value
        sources = {**self.sources, path: source}
        recipe, faults = checked(tree, sources)
        raise_all(faults)
        assert recipe is not None  # without a fault there is a recipe
        return Resolved(recipe, sources)

    def to_yaml(self) -> str:
        """The whole recipe as YAML, each line with a comment that names the source of its value."""
        return to_yaml(self.recipe, self.sources)


def checked(tree: dict[str, Any], sources: Mapping[str, str]) -> tuple[Recipe | None, list[UsageError]]:
    """Build the recipe from a tree of values, or say what is wrong with each of them.

    Args:
        tree: values by section and name, as the schema nests them.
        sources: by path, where each value was given, for the errors.

    Returns:
        The recipe and no fault, or None and the faults of the values that are given; fields that are missing are no
        fault here.
    """
    try:
        return Recipe.model_validate(tree), []
    except ValidationError as error:
        faults: dict[str, UsageError] = {}
        for detail in error.errors(include_url=False, include_context=False):
            path = _path(detail["loc"])
            if detail["type"] != "missing" and path in FIELD:
                faults.setdefault(path, complaint(FIELD[path], sources.get(path, path), shown(detail["input"])))
        return None, list(faults.values())


def _path(location: tuple[int | str, ...]) -> str:
    """The field's path in a validation error's location: ("data", "eval", "constrained-float") → "data.eval"."""
    for length in (2, 1):
        path = ".".join(str(part) for part in location[:length])
        if path in FIELD:
            return path
    return ""
