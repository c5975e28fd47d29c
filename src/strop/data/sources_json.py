"""JSON to rows: one object a line, an array of objects (also as {"data": [...]}), or a single object.

Strict: NaN and Infinity, a name that stands twice in an object, and more than 100 levels are refused with their line.
A number with a fraction keeps the characters that it is written in, so that an answer 72.50 is learned as 72.50.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from strop.data.records import Place, Record
from strop.data.sources_stream import decoded, lines, opened, whole
from strop.errors import DataError
from strop.foreign import levels

MOST_LEVELS = 100
"""Lists and objects inside each other; real rows have fewer than ten."""

_MOST_LINES = 20

_WRAPPERS = ("data", "rows", "train", "examples", "instances", "records", "items")
"""Names under which a single object keeps rows."""

_SPACE = re.compile(r"[ \t\n\r]*")


_COMMA = "a comma before the closing bracket"


class WrittenNumber(float):
    """A number with a fraction or an exponent that remembers its characters."""

    written: str

    def __str__(self) -> str:
        return self.written


def read_lines(file: Path, label: str) -> Iterator[Record]:
    """One JSON object a line; blank lines are passed over.

    Args:
        file: the file, compressed or not.
        label: what places and messages call it.

    Raises:
        DataError: a line cannot be read; with line and column, and the numbers of all such lines.
    """
    fault: DataError | None = None
    broken: list[int] = []
    right = 0
    with opened(file, label) as stream:
        for number, raw in lines(stream, label):
            if not (text := decoded(raw, label, first_line=number).rstrip()):
                continue
            place = Place(label, line=number)
            try:
                values = _object(_parse_line(text, label, number), place)
            except DataError as error:
                if not right:  # it is another format from the beginning
                    raise
                fault = fault or error
                broken.append(number)
                continue
            right += 1
            if fault is None:
                yield Record(values, place)
    if fault is not None:
        raise _with_lines(fault, broken)


def read_whole(file: Path, label: str) -> Iterator[Record]:
    """An array of objects, decoded item by item, or a single object.

    Args:
        file: the file, compressed or not.
        label: what places and messages call it.

    Raises:
        DataError: it is empty or cannot be read; with line and column.
    """
    text = whole(file, label)
    at = _behind_space(text, 0)
    if at == len(text):
        raise DataError(
            f"{label} is empty", expected="a JSON array of objects, or one object", do="remove the file or fill it"
        )
    if text[at] == "[":
        for number, item in enumerate(_items(text, at, label), start=1):
            place = Place(label, item=number)
            yield Record(_object(item, place), place)
        return
    value, end = _decode(text, at, label, array=True)
    _refuse_more(text, end, label)
    rows = _wrapped(value)
    if rows is not None:
        for number, item in enumerate(rows, start=1):
            place = Place(label, item=number)
            yield Record(_object(item, place), place)
        return
    place = Place(label)
    yield Record(_object(value, place), place)


def _with_lines(fault: DataError, broken: list[int]) -> DataError:
    """The fault of the first line that cannot be read, with the numbers of the others: to repair them all at once."""
    if len(broken) == 1:
        return fault
    named = ", ".join(map(str, broken[:_MOST_LINES])) + (", …" if len(broken) > _MOST_LINES else "")
    found = f"{fault.found}; {len(broken)} such lines in all: {named}"
    return DataError(fault.what, expected=fault.expected, found=found, do="repair these lines, or take them out")


def _wrapped(value: Any) -> list[Any] | None:
    """The rows of a file such as {"version": 1, "data": [{…}, …]}; None for an object that is itself a row."""
    if not isinstance(value, dict):
        return None
    lists = [value[name] for name in _WRAPPERS if isinstance(value.get(name), list)]
    rows = lists[0] if len(lists) == 1 else []
    return rows if rows and isinstance(rows[0], dict) else None


def json_kind(value: Any) -> str:
    """What JSON calls a value, with its article: 'a list', 'an object', 'null'."""
    if value is None:
        return "null"
    kinds = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        WrittenNumber: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return kinds.get(type(value), type(value).__name__)


def _items(text: str, at: int, label: str) -> Iterator[Any]:
    """The items of the array that opens at a position."""
    at = _behind_space(text, at + 1)
    if text[at : at + 1] == "]":
        _refuse_more(text, at + 1, label)
        return
    while True:
        value, at = _decode(text, at, label, array=True)
        yield value
        at = _behind_space(text, at)
        if text[at : at + 1] == "]":
            _refuse_more(text, at + 1, label)
            return
        if text[at : at + 1] != ",":
            raise _broken(json.JSONDecodeError("Expecting ',' delimiter", text, at), label, 1, array=True)
        at = _behind_space(text, at + 1)
        if text[at : at + 1] == "]":
            raise _broken(json.JSONDecodeError("Expecting value", text, at), label, 1, array=True)


def _parse_line(text: str, label: str, number: int) -> Any:
    at = _behind_space(text, 0)
    value, end = _decode(text, at, label, first_line=number)
    if end != len(text):
        raise _broken(json.JSONDecodeError("Extra data", text, _behind_space(text, end)), label, number)
    return value


def _decode(text: str, at: int, label: str, *, first_line: int = 1, array: bool = False) -> tuple[Any, int]:
    """One JSON value at a position, and the position behind it."""
    try:
        value, end = _DECODER.raw_decode(text, at)
        if text.count("[", at, end) + text.count("{", at, end) > MOST_LEVELS and levels(value) > MOST_LEVELS:
            raise RecursionError
    except json.JSONDecodeError as error:
        raise _broken(error, label, first_line, array=array) from error
    except (ValueError, RecursionError) as error:
        deep = isinstance(error, RecursionError)
        line = first_line + text.count("\n", 0, at)
        said = "a number of more than 4300 digits" if "max_str_digits" in str(error) else str(error)
        raise DataError(
            f"{label}:{line}: JSON that cannot be read",
            expected=f"at most {MOST_LEVELS} levels" if deep else "",
            found="lists or objects nested too deep" if deep else said,
            do=f"repair the {'item' if array else 'row'} in line {line}",
        ) from error
    return value, end


def _broken(error: json.JSONDecodeError, label: str, first_line: int, *, array: bool = False) -> DataError:
    error = _with_trailing_comma(error)
    line = first_line + error.lineno - 1
    do = f"repair line {line}"
    if error.msg == "Extra data" and not array and error.doc[error.pos :].strip() == ",":
        do = f"end line {line} without a comma"
    elif error.msg == "Extra data" and array:
        do += ", or rename the file to .jsonl if it holds one object a line"
    elif line == 1 and not array:
        do += ", or rename the file to .json if it is one array or object over many lines"
    return DataError(
        f"{label}:{line}, column {error.colno}: broken JSON",
        expected="a JSON array of objects, or one object" if array else "one JSON object a line",
        found=f"{error.msg.removesuffix(' at')}: {_around(error.doc, error.pos)}",
        do=do,
    )


def _with_trailing_comma(error: json.JSONDecodeError) -> json.JSONDecodeError:
    """Name a comma before a closing bracket; the decoder does so from Python 3.13 on, and in other words."""
    before = error.doc[: error.pos].rstrip()
    if error.msg.startswith("Illegal trailing comma"):
        return json.JSONDecodeError(_COMMA, error.doc, error.pos)
    if error.doc[error.pos : error.pos + 1] in ("}", "]") and before.endswith(","):
        return json.JSONDecodeError(_COMMA, error.doc, len(before) - 1)
    return error


def _refuse_more(text: str, end: int, label: str) -> None:
    end = _behind_space(text, end)
    if end != len(text):
        raise _broken(json.JSONDecodeError("Extra data", text, end), label, 1, array=True)


def _behind_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _object(value: Any, place: Place) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f"{place} is not a row",
            expected='a JSON object, such as {"question": "…", "answer": "…"}',
            found=f"{json_kind(value)}: {json.dumps(value, ensure_ascii=False)[:60]}",
            do="make every row an object with named columns",
        )
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names stand once each: of two values for one name, which is meant is a guess."""
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {twice!r} twice in one object")
    return values


def _number(written: str) -> WrittenNumber:
    number = WrittenNumber(written)
    if math.isinf(number):
        raise ValueError(f"{written[:20]}, which is too large a number")
    number.written = written
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_float=_number, parse_constant=_refuse_constant)


def _around(text: str, position: int) -> str:
    """The text at a position, short enough for a message."""
    piece = text[position : position + 24].splitlines()
    return repr(piece[0]) if piece and piece[0] else "the end of the line"
