"""The recipe's ``map``: which columns of a row are read and which are learned, where looking would not find them.

    question:answer                              two columns, the one read and the one learned
    user=question,assistant=answer,system=ctx    columns by what they are: system, history, user, thinking, assistant,
                                                 tools
    messages=dialog,tools=functions              a list of turns under another name
    text=content                                 plain text, learned whole

And the words for columns that are not there, with the nearest names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from strop.data.content import text_of
from strop.data.records import Message, Record
from strop.data.shapes import SHAPES, Columns, Draft, Shape, answer, own_system, pair, plain_text
from strop.data.turns import read_history, read_tools, read_turns
from strop.errors import DataError, UsageError

PARTS = ("system", "history", "user", "thinking", "assistant", "messages", "tools", "text")
"""What a map can name a column for."""

_WHOLE = (frozenset({"user", "assistant"}), frozenset({"messages"}), frozenset({"text"}))
_WITH = {
    _WHOLE[0]: frozenset({"system", "history", "thinking", "tools"}),
    _WHOLE[1]: frozenset({"system", "tools"}),
    _WHOLE[2]: frozenset[str](),
}


_CLOSE = 80
"""From 0 to 100: how near a strange column's name must be to a known one to be asked about."""


def mapped_shape(columns: str) -> Shape:
    """The shape that a map describes.

    Args:
        columns: the recipe's ``map``.

    Raises:
        UsageError: it is no map.
    """
    if "=" in columns:
        return _by_parts(columns, _parts(columns))
    question, colon, answered = (part.strip() for part in columns.partition(":"))
    if not (question and colon and answered):
        raise _no_map(columns, "the column to read and the column to learn, as question:answer")
    return pair(question, answered)


def _parts(columns: str) -> dict[str, str]:
    """What is named, by what it is."""
    named: dict[str, str] = {}
    for piece in columns.split(","):
        part, equals, column = (word.strip() for word in piece.partition("="))
        if part not in PARTS or not (equals and column):
            near = nearest(part, dict.fromkeys(PARTS))
            raise _no_map(
                columns,
                f"parts such as user=question, of {', '.join(PARTS)}",
                f"did you mean {near}={column or 'COLUMN'}? " if near and part != near else "",
            )
        if part in named:
            raise _no_map(columns, f"one column for {part}")
        named[part] = column
    whole = next((whole for whole in _WHOLE if whole <= named.keys()), None)
    if whole is None or not named.keys() <= whole | _WITH[whole]:
        raise _no_map(
            columns,
            "user and assistant, with system, history, thinking or tools; or messages, with system or tools; or text",
        )
    return named


def _by_parts(columns: str, named: Mapping[str, str]) -> Shape:
    if "text" in named:
        return plain_text(named["text"])

    def renamed(values: Columns, part: str) -> dict[str, Any]:
        column = named.get(part)
        return {} if column is None or values.get(column) is None else {part: values[column]}

    def read(values: Columns) -> Draft:
        system, tools = own_system(renamed(values, "system")), read_tools(renamed(values, "tools"))
        if "messages" in named:
            messages = read_turns(values[named["messages"]], named["messages"])
            return Draft([*([] if messages and messages[0].role == "system" else system), *messages], tools)
        history = read_history(renamed(values, "history").get("history"))
        asked = Message("user", text_of(values[named["user"]], named["user"]))
        answered = answer(values, named["assistant"])
        thinking = renamed(values, "thinking").get("thinking")
        if thinking is not None:
            answered = replace(answered, thinking=text_of(thinking, named["thinking"]) or None)
        return Draft([*system, *history, asked, answered], tools)

    needed = tuple(named[part] for part in ("messages", "user", "assistant") if part in named)
    return Shape(columns, needed, read, tuple(column for column in named.values() if column not in needed))


def half_of_a_shape(values: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    """For a row of no known shape: a column that it has of one, and the columns that could stand beside it."""
    for shape in SHAPES:
        present = [column for column in shape.columns if column in values]
        if present:
            beside = [other.columns for other in SHAPES if present[0] in other.columns]
            return present[0], [column for columns in beside for column in columns if column != present[0]]
    return None


def missing_columns(shape: Shape, wrong: str, record: Record) -> DataError:
    """No row has the columns that the recipe's map names.

    Args:
        shape: the map's shape.
        wrong: a column that is missing.
        record: a row without it.
    """
    near = nearest(wrong, record.values)
    return DataError(
        f"{record.place}: there is no column {wrong!r}",
        expected=f"the columns {' and '.join(map(repr, shape.columns))}, as data.map says",
        found=columns_of(record.values),
        do=(f"did you mean {near!r}? " if near else "") + "name the two columns with --data.map question:answer",
    )


def unknown_columns(record: Record) -> DataError:
    """No row has columns of a known shape.

    Args:
        record: the first row.
    """
    return DataError(
        f"{record.place}: the columns are of no known shape",
        expected="; ".join(" and ".join(shape.columns) for shape in SHAPES),
        found=columns_of(record.values),
        do=cure_of_unknown(record.values),
    )


def cure_of_unknown(values: Mapping[str, Any]) -> str:
    """What to do with a row of no known shape, with the names that may have been meant."""
    from rapidfuzz import fuzz, process, utils

    known = list(dict.fromkeys(column for shape in SHAPES for column in shape.columns))
    strange = [column for column in values if column not in known]
    close = [
        (match[1], column, match[0])
        for column in strange
        if (match := process.extractOne(column, known, processor=utils.default_process, scorer=fuzz.ratio))
    ]
    score, column, meant = max(close, key=lambda found: found[0], default=(0, "", ""))
    hint = f"is {column!r} meant to be {meant!r}? " if score >= _CLOSE else ""
    return hint + "name the column to read and the column to learn with --data.map question:answer"


def columns_of(values: Iterable[str]) -> str:
    """A row's columns, for a message."""
    return f"columns {', '.join(map(str, values)) or '(none)'}"


def nearest(name: str, columns: Iterable[str]) -> str | None:
    """The column whose name is nearest to a wanted one, if any is near."""
    from rapidfuzz import fuzz, process, utils

    match = process.extractOne(name, list(columns), scorer=fuzz.ratio, processor=utils.default_process, score_cutoff=60)
    return match[0] if match else None


def _no_map(columns: str, expected: str, hint: str = "") -> UsageError:
    return UsageError(
        f"data.map is {columns!r}",
        expected=expected,
        do=hint + "for example --data.map problem:solution, or --data.map user=problem,assistant=solution,system=hint",
    )
