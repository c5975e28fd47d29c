"""From what was written to the value that a field takes, and the errors when it takes no such value.

The field decides how a scalar is read, whether it stands in a file or on the command line, so both mean the same:

    field                 written                      value
    train.lr (number)     1e-4, "1e-4", 0.0001         0.0001
    train.steps           60, 1_000, 1e3               60, 1000, 1000
    train.steps           none, null, ~                None
    data.system (text)    no                           "no"
    data.eval             0.02 · ./held-out · none     0.02 · "./held-out" · 0.0
    adapter.targets       q_proj,v_proj · [q_proj, v_proj]      "q_proj,v_proj"
    data.train            a.jsonl · a.jsonl,b · [a, b*2]       "a.jsonl" · ("a.jsonl", "b") · ("a", "b*2")
    watch.ask             Why? · [Why?, "Who, me?"]    ("Why?",) · ("Why?", "Who, me?")

Ranges are not checked here but by the schema; `complaint` words both kinds of errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from strop.errors import UsageError
from strop.foreign import home_path, is_there
from strop.recipe.fields import REQUIRED, RecipeField
from strop.recipe.names import nearest_of
from strop.recipe.tree import Mapping, Node, Scalar, Sequence

NULLS: Final = frozenset({"", "~", "null", "none"})
"""Plain words (in any case) that unset an optional field."""

COMMA_LISTS: Final = frozenset({"adapter.targets"})
"""Text fields that hold names with commas between them and may be written as a YAML list as well."""


@dataclass(frozen=True)
class Given:
    """A value as it was written, and where.

    Attributes:
        node: what was written.
        source: where, in words: ``recipe.yaml:12``, ``flag --train.lr``, ``argument MODEL``.
        folder: the recipe file's folder, for paths that are meant relative to it; None on the command line.
    """

    node: Node
    source: str
    folder: Path | None = None


class NotTaken(Exception):
    """The field takes no such value; ``args[0]`` says what was found."""


def convert(field: RecipeField, node: Node) -> Any:
    """Turn what was written into the Python value that the schema takes for this field.

    Raises:
        NotTaken: the writing cannot mean a value of this field's kind.
    """
    if field.kind in ("texts", "text or texts"):
        return _texts(node) if field.kind == "texts" else _text_or_texts(node)
    if isinstance(node, Sequence) and field.path in COMMA_LISTS:
        return ",".join(_text(item).strip() for item in node.items)
    if not isinstance(node, Scalar):
        raise NotTaken("a list" if isinstance(node, Sequence) else "a mapping")
    if field.optional and is_null(node):
        return None
    match field.kind:
        case "integer":
            return _integer(node.text)
        case "number":
            return _number(node.text)
        case "number or text":
            return _number_or_text(node)
        case "choice":
            return node.text.strip()
        case _:
            text = _text(node)
            if not text and not field.optional:
                raise NotTaken("nothing")
            return ",".join(part.strip() for part in text.split(",")) if field.path in COMMA_LISTS else text


def is_null(node: Scalar) -> bool:
    """Whether a scalar says "none"; quoted, it is a word like any other."""
    return not node.quoted and node.text.strip().lower() in NULLS


def _text(node: Node) -> str:
    if not isinstance(node, Scalar):
        raise NotTaken("a list inside a list" if isinstance(node, Sequence) else "a mapping inside a list")
    try:
        node.text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise NotTaken(f"a character that UTF-8 cannot hold, {node.text[error.start]!a}") from None
    return "" if not node.quoted and node.text.strip().lower() in ("~", "null") else node.text


def _texts(node: Node) -> tuple[str, ...]:
    if isinstance(node, Scalar):
        return () if is_null(node) else (_text(node),)
    if isinstance(node, Mapping):
        raise NotTaken("a mapping; put a question that holds a colon and a space into quotes")
    return tuple(_text(item) for item in node.items)


def _text_or_texts(node: Node) -> str | tuple[str, ...]:
    """One text, or several: a list, or a text with commas that is no path as a whole."""
    if isinstance(node, Mapping):
        raise NotTaken("a mapping; a weight or a count is written behind the path: a.jsonl*2, a.jsonl#1000")
    if isinstance(node, Sequence):
        texts = tuple(_text(item) for item in node.items)
    else:
        text = _text(node)
        whole = "," not in text or is_there(home_path(text))
        texts = (text,) if whole else tuple(part.strip() for part in text.split(","))
    if not texts or not all(texts):
        raise NotTaken("nothing")
    return texts[0] if len(texts) == 1 else texts


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        number = _number(text)  # 1e3 and 60.0 are integers too
        if not number.is_integer():
            raise NotTaken(text) from None
        return int(number)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise NotTaken(text) from None


def _number_or_text(node: Scalar) -> float | str:
    if node.quoted:
        return _text(node)
    if is_null(node):
        if not node.text.strip():
            raise NotTaken("nothing")
        return 0.0
    try:
        number = float(node.text)
    except ValueError:
        return _text(node)
    return number if math.isfinite(number) else _text(node)  # a folder may be called "nan"


def shown(value: Any) -> str:
    """A value as a person would write it, cut to 60 characters."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    text = ", ".join(value) if isinstance(value, tuple) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "…"


def written(node: Node) -> str:
    """What was written, for an error's "found"."""
    if isinstance(node, Scalar):
        return shown(node.text) if node.text else "nothing"
    return "a list" if isinstance(node, Sequence) else "a mapping"


def complaint(field: RecipeField, source: str, found: str) -> UsageError:
    """The error for a value that a field does not take.

    Args:
        field: the field.
        source: where the value was given: ``recipe.yaml:12``, ``flag --train.lr``.
        found: what was given, short.
    """
    value = "FILE" if field.default is REQUIRED else shown(field.default) or "[]"
    nearest = nearest_of(found, list(field.choices))
    on_line = source.startswith("flag")
    example = f"--{field.path} {nearest or value}" if on_line else f"{field.name}: {nearest or value}"
    if nearest:
        do = f"did you mean {example} ?"
    elif field.required:
        do = f"give {example}"
    else:
        do = f"write {example} (the default), or leave it out"
    return UsageError(
        f"{source}: {field.path} does not take this value", expected=field.allowed, found=found or '""', do=do
    )
