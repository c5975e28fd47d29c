"""The recipe's fields as a flat table, read off the schema.

The schema (`strop.recipe.schema`) is a tree of pydantic models; people write `train.lr`. This module walks the tree
once and gives one `RecipeField` per leaf, in the schema's order: its dotted path, what kind of value it takes, the
range, the default and the sentence that explains it. Reading, error messages, help pages and the resolved recipe's
table all work from `FIELDS`, so a field is described in exactly one place.

    Recipe ── data: DataSection ── train: str                    data.train   text
           │                    └─ rows: int ≥ 1 | None    ──▶   data.rows    integer, 1 or more, or none
           └─ train: TrainSection ─ lr: float > 0                train.lr     number above 0
"""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from strop.recipe.schema import Recipe

Kind = Literal["text", "texts", "text or texts", "integer", "number", "choice", "number or text"]

REQUIRED: Final = "required"
"""What stands in `RecipeField.default` when there is none; `RecipeField.required` tells it from the text."""


@dataclass(frozen=True)
class Bounds:
    """The range of a number; an open end is not itself allowed."""

    low: float | None = None
    low_open: bool = False
    high: float | None = None
    high_open: bool = False

    def words(self) -> str:
        """The range as a phrase that follows "a number", such as "above 0"; empty when there is no bound."""
        if self.high is not None and self.high >= 2**53:
            return Bounds(self.low, self.low_open).words()  # a bound for machines; to people it is no bound
        if self.low is not None and self.high is not None:
            if not self.low_open and not self.high_open:
                return f"from {self.low:g} to {self.high:g}"
            return f"{'above' if self.low_open else 'from'} {self.low:g} and below {self.high:g}"
        if self.low is not None:
            return f"above {self.low:g}" if self.low_open else f"of {self.low:g} or more"
        if self.high is not None:
            return f"below {self.high:g}" if self.high_open else f"of {self.high:g} or less"
        return ""


@dataclass(frozen=True)
class RecipeField:
    """One leaf of the recipe.

    Attributes:
        path: dotted path, such as ``train.lr``.
        kind: what a text is turned into.
        optional: whether ``none`` unsets it.
        choices: the words allowed when ``kind`` is ``choice``.
        bounds: the range when ``kind`` holds a number.
        default: the value when nothing is given, or `REQUIRED`.
        required: whether the field has no default.
        description: one line for people.
    """

    path: str
    kind: Kind
    optional: bool
    choices: tuple[str, ...]
    bounds: Bounds
    default: Any
    required: bool
    description: str

    @property
    def section(self) -> str:
        """The part before the dot; empty for a field at the top."""
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        """The part after the dot."""
        return self.path.rpartition(".")[2]

    @property
    def allowed(self) -> str:
        """What the field takes, in words: "a number above 0", "one of cosine, linear, constant"."""
        phrase = {
            "text": "text",
            "texts": "a list of texts",
            "text or texts": "text, or a list of texts",
            "integer": f"an integer {self.bounds.words()}",
            "number": f"a number {self.bounds.words()}",
            "choice": "one of " + ", ".join(self.choices),
            "number or text": f"a number {self.bounds.words()}, or text",
        }[self.kind].strip()
        return phrase + (", or none" if self.optional else "")


def _bounds(metadata: list[Any]) -> Bounds:
    """Collect the bounds that ``Field(ge=…, gt=…, le=…, lt=…)`` left in a field's metadata."""
    low: tuple[float | None, bool] = (None, False)
    high: tuple[float | None, bool] = (None, False)
    for mark in metadata:
        if (value := getattr(mark, "ge", None)) is not None:
            low = (value, False)
        if (value := getattr(mark, "gt", None)) is not None:
            low = (value, True)
        if (value := getattr(mark, "le", None)) is not None:
            high = (value, False)
        if (value := getattr(mark, "lt", None)) is not None:
            high = (value, True)
    return Bounds(low[0], low[1], high[0], high[1])


def _alternatives(annotation: Any, metadata: list[Any]) -> list[tuple[Any, list[Any]]]:
    """Flatten ``Annotated[int, Field(ge=1)] | None`` into ``[(int, [Ge(1)]), (NoneType, [])]``."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *marks = get_args(annotation)
        found = [m for mark in marks for m in (mark.metadata if isinstance(mark, FieldInfo) else [mark])]
        return _alternatives(inner, [*metadata, *found])
    if origin in (Union, UnionType):
        return [pair for member in get_args(annotation) for pair in _alternatives(member, metadata)]
    return [(annotation, metadata)]


def _field(path: str, info: FieldInfo) -> RecipeField:
    pairs = _alternatives(info.annotation, list(info.metadata))
    types = [kind for kind, _ in pairs if kind is not NoneType]
    choices = get_args(types[0]) if get_origin(types[0]) is Literal else ()
    kind: Kind
    if choices:
        kind = "choice"
    elif any(get_origin(found) is tuple for found in types):
        kind = "text or texts" if str in types else "texts"
    elif float in types:
        kind = "number or text" if str in types else "number"
    else:
        kind = "integer" if int in types else "text"
    bounds = next((found for _, marks in pairs if (found := _bounds(marks)) != Bounds()), Bounds())
    required = info.is_required()
    return RecipeField(
        path=path,
        kind=kind,
        optional=len(types) < len(pairs),
        choices=choices,
        bounds=bounds,
        default=REQUIRED if required else info.default,
        required=required,
        description=info.description or "",
    )


def _walk(model: type[BaseModel], prefix: str) -> list[RecipeField]:
    fields: list[RecipeField] = []
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            fields += _walk(info.annotation, f"{prefix}{name}.")
        else:
            fields.append(_field(prefix + name, info))
    return fields


FIELDS: Final[tuple[RecipeField, ...]] = tuple(_walk(Recipe, ""))
"""Every leaf of the recipe, in the schema's order."""

FIELD: Final[dict[str, RecipeField]] = {field.path: field for field in FIELDS}
"""The same fields by path."""

SECTIONS: Final[tuple[str, ...]] = tuple(dict.fromkeys(field.section for field in FIELDS if field.section))
"""The names of the sections, in order."""
