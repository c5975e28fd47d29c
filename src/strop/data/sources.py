"""Files and folders to records, with the line of each.

    math.jsonl        one object a line; blank lines are passed over
    math.json         an array of objects, or a single object
    MATH/train/       a folder: every .json and .jsonl file below it, in natural order (2.json before 10.json);
                      a MATH folder (train/<subject>/<n>.json, one object a file) is the usual case

A row that cannot be read stops everything with its line and column: a file that is broken in one place is seldom
right in the others, and a row that silently disappears is never noticed. What rows *mean* is not decided here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from strop.data.records import Place, Record
from strop.errors import DataError

FORMATS = ("json", "jsonl")
"""The file endings that are read, without the dot."""

SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
"""Names of folders that hold one split of a data set each."""

_BOM = b"\xef\xbb\xbf"
_READS = "a .json file, a .jsonl file, or a folder of them"


def read_records(path: str | Path) -> Iterator[Record]:
    """Read every row of a file or folder, in an order that does not depend on the file system.

    Args:
        path: a .json or .jsonl file, or a folder that holds some at any depth.

    Yields:
        One record a row.

    Raises:
        DataError: nothing is there, nothing is in it, or a row cannot be read; with file, line and column.
    """
    path = Path(path).expanduser()
    empty = True
    for file in _files(path):
        for record in _read_file(file):
            empty = False
            yield record
    if empty:
        raise DataError(f"{path} holds no rows", expected="at least one row", do="give a file with rows in it")


def _refuse_several_splits(folder: Path) -> None:
    """A folder with train/ and test/ in it is two data sets: to learn both would be to learn the test."""
    splits = [name for name in SPLITS if (folder / name).is_dir()]
    if len(splits) > 1:
        held_out = next((name for name in splits if name != "train"), splits[1])
        first = "train" if "train" in splits else splits[0]
        raise DataError(
            f"{folder} holds several splits",
            expected="a folder with one of them",
            found=", ".join(f"{name}/" for name in splits),
            do=f"learn {folder / first} and hold out the other: --data.eval {folder / held_out}",
        )


def _files(path: Path) -> list[Path]:
    """The files to read, in natural order."""
    if path.is_dir():
        _refuse_several_splits(path)
        below = [file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path))]
        found = [file for file in below if _ending(file) in FORMATS]
        if not found:
            others = sorted({file.suffix or file.name for file in below})
            raise DataError(
                f"{path} holds no data files",
                expected="files that end in .json or .jsonl, at any depth",
                found=f"only {', '.join(others[:8])}" if others else "an empty folder",
                do="give the folder that holds the data, or convert the data to .jsonl",
            )
        return sorted(found, key=lambda file: (_natural(file.relative_to(path)), file.as_posix()))
    if not path.exists():
        raise DataError(
            f"{path} does not exist",
            expected=_READS,
            found="no such file or folder",
            do="check the path; data sets on a hub have to be downloaded first",
        )
    if _ending(path) not in FORMATS:
        raise DataError(
            f"{path} is of a format that is not read",
            expected=_READS,
            found=f"a {path.suffix} file" if path.suffix else "a file without an ending",
            do="convert it to .jsonl, one JSON object a line, or rename it if that is what it holds",
        )
    return [path]


def _read_file(file: Path) -> Iterator[Record]:
    try:
        if _ending(file) == "jsonl":
            yield from _read_lines(file)
        else:
            yield from _read_whole(file)
    except OSError as error:
        raise DataError(
            f"{file} cannot be read", found=error.strerror or str(error), do="check the file and its permissions"
        ) from error


def _read_lines(file: Path) -> Iterator[Record]:
    """One JSON object a line. Lines end in \\n or \\r\\n only: U+2028 may stand inside a JSON string."""
    with file.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            line = raw.removeprefix(_BOM) if number == 1 else raw
            if text := _decode(line, file, first_line=number).rstrip():
                place = Place(str(file), line=number)
                yield Record(_object(_parse(text, file, first_line=number), place), place)


def _read_whole(file: Path) -> Iterator[Record]:
    """An array of objects, or a single object."""
    text = _decode(file.read_bytes().removeprefix(_BOM), file, first_line=1)
    if not text.strip():
        raise DataError(
            f"{file} is empty", expected="a JSON array of objects, or one object", do="remove the file or fill it"
        )
    value = _parse(text, file, first_line=1)
    if isinstance(value, list):
        for number, item in enumerate(value, start=1):
            place = Place(str(file), item=number)
            yield Record(_object(item, place), place)
    else:
        place = Place(str(file))
        yield Record(_object(value, place), place)


def _decode(raw: bytes, file: Path, *, first_line: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + raw.count(b"\n", 0, error.start)
        raise DataError(
            f"{file}:{line} is not UTF-8 text",
            expected="UTF-8",
            found=f"the byte 0x{raw[error.start]:02x}",
            do="save the file as UTF-8",
        ) from error


def _parse(text: str, file: Path, *, first_line: int) -> Any:
    """Strict JSON: NaN and Infinity are not in the standard and are refused."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        do = f"repair line {line}"
        if error.msg == "Extra data" and _ending(file) == "json":
            do += ", or rename the file to .jsonl if it holds one object a line"
        elif line == 1 and _ending(file) == "jsonl":
            do += ", or rename the file to .json if it is one array or object over many lines"
        raise DataError(
            f"{file}:{line}, column {error.colno}: broken JSON",
            expected="one JSON object a line" if _ending(file) == "jsonl" else "a JSON array of objects, or one object",
            found=f"{error.msg.removesuffix(' at')}: {_around(error.doc, error.pos)}",
            do=do,
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{file}:{first_line}: JSON that cannot be read", found=str(error), do="repair the file"
        ) from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is not JSON")


def _object(value: Any, place: Place) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f"{place} is not a row",
            expected='a JSON object, such as {"question": "…", "answer": "…"}',
            found=f"{json_kind(value)}: {json.dumps(value, ensure_ascii=False)[:60]}",
            do="make every row an object with named columns",
        )
    return value


def json_kind(value: Any) -> str:
    """What JSON calls a value, with its article: 'a list', 'an object', 'null'."""
    if value is None:
        return "null"
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}
    return kinds.get(type(value), type(value).__name__)


def _around(text: str, position: int) -> str:
    """The text at a position, short enough for a message."""
    piece = text[position : position + 24].splitlines()
    return repr(piece[0]) if piece and piece[0] else "the end of the line"


def _ending(file: Path) -> str:
    return file.suffix.lower().removeprefix(".")


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _natural(path: Path) -> list[list[tuple[int, int, str]]]:
    """A sorting key under which 2.json comes before 10.json, folder by folder."""
    return [
        [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in re.split(r"(\d+)", part)]
        for part in path.parts
    ]
