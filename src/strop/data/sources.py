"""What a user calls data to records, with the line of each.

    math.jsonl              one object a line; blank lines are passed over
    math.json               an array of objects, or a single object
    math.csv, math.tsv      a header and rows;   math.parquet, math.arrow, math.feather   tables, in batches
    book.txt                one record of plain text a file
    math.jsonl.gz, .zst     the text formats, compressed
    MATH/train/             a folder: every file of these kinds below it, in natural order (2.json before 10.json);
                            a MATH folder (train/<subject>/<n>.json, one object a file) is the usual case
    data/part-*.jsonl       a glob, of files or folders
    hf:owner/name@v1:test   a data set on a hub (`strop.data.sources_hub`)

Rows are read one by one and never held. A row that cannot be read stops everything with its line and column: a file
that is broken in one place is seldom right in the others, and a row that silently disappears is never noticed. What
rows *mean* is not decided here.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath

from strop.data.naming import SPLITS, natural, split_of
from strop.data.records import Place, Record
from strop.data.sources_json import read_lines, read_whole
from strop.data.sources_stream import COMPRESSIONS, whole
from strop.data.sources_tables import read_arrow, read_cells, read_parquet
from strop.errors import DataError
from strop.foreign import home_path, is_there

Reader = Callable[[Path, str], Iterator[Record]]


def read_text(file: Path, label: str) -> Iterator[Record]:
    """A whole file as one record with the column ``text``.

    Args:
        file: the file, compressed or not.
        label: what places and messages call it.

    Raises:
        DataError: it cannot be read, or is no UTF-8.
    """
    text = whole(file, label)
    if text.strip():
        yield Record({"text": text}, Place(label))


_READERS: Mapping[str, Reader] = {
    "json": read_whole,
    "jsonl": read_lines,
    "ndjson": read_lines,
    "csv": read_cells,
    "tsv": read_cells,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "feather": read_arrow,
    "txt": read_text,
}
_BINARY = ("parquet", "arrow", "feather")

FORMATS = tuple(_READERS)
"""The file endings that are read, without the dot."""

_NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What the library datasets writes beside data."""

_PROSE = ("readme", "license", "notice", "changelog", "requirements")
"""Beginnings of the names of .txt files that are about the data."""

_READS = "a .json, .jsonl, .csv, .tsv, .parquet, .arrow or .txt file, a folder of them, or an id on a hub"


def read_records(source: str | Path) -> Iterator[Record]:
    """Read every row of a file, folder, glob or hub id, in an order that does not depend on the file system.

    Args:
        source: what the user calls the data.

    Yields:
        One record a row.

    Raises:
        DataError: nothing is there, nothing is in it, or a row cannot be read; with file, line and column.
    """
    empty = True
    for file, label in files_of(source):
        for record in _READERS[format_of(file)](file, label):
            empty = False
            yield record
    if empty:
        raise DataError(f"{source} holds no rows", expected="at least one row", do="give a file with rows in it")


def files_of(source: str | Path) -> list[tuple[Path, str]]:
    """The files of what the user calls data, in natural order, each with what places and messages call it.

    Raises:
        DataError: there are none, or it is not clear which are meant.
    """
    path = home_path(source)
    if not is_there(path):
        from strop.data.sources_hub import fetch, hub_id

        if (hub := hub_id(str(source))) is not None:
            return fetch(hub)
        if glob.has_magic(str(path)):
            return [(file, str(file)) for file in _matches(path)]
        raise DataError(
            f"{path} does not exist",
            expected=_READS,
            found="no such file or folder",
            do="check the path; a data set on a hub is called hf:owner/name or ms:owner/name",
        )
    if path.is_dir():
        return [(file, str(file)) for file in _below(path)]
    if not format_of(path):
        raise DataError(
            f"{path} is of a format that is not read",
            expected=_READS,
            found=f"a {path.suffix} file" if path.suffix else "a file without an ending",
            do="convert it to .jsonl, one JSON object a line, or rename it if that is what it holds",
        )
    return [(path, str(path))]


def format_of(file: PurePath) -> str:
    """A file's format by its ending, as in `FORMATS`; empty where it is none."""
    endings = [suffix.lower().removeprefix(".") for suffix in file.suffixes]
    packed = bool(endings) and endings[-1] in COMPRESSIONS
    if packed:
        endings.pop()
    ending = endings[-1] if endings else ""
    return ending if ending in FORMATS and not (packed and ending in _BINARY) else ""


def data_files(files: Sequence[PurePath]) -> list[PurePath]:
    """Those of a folder's files that hold data: a .txt only where nothing else does, and no file about the data.

    Args:
        files: paths below the folder.
    """
    found = [file for file in files if format_of(file) and file.name not in _NOT_DATA]
    tables = [file for file in found if format_of(file) != "txt"]
    return tables or [file for file in found if not file.name.lower().startswith(_PROSE)]


def _below(folder: Path) -> list[Path]:
    """The data files below a folder."""
    below = [file for file in folder.rglob("*") if file.is_file() and not _hidden(file.relative_to(folder))]
    names = [PurePath(file.relative_to(folder)) for file in below]
    found = data_files(names)
    if not found:
        others = sorted({name.suffix or name.name for name in names})
        raise DataError(
            f"{folder} holds no data files",
            expected="files that end in " + ", ".join(f".{ending}" for ending in FORMATS) + ", at any depth",
            found=f"only {', '.join(others[:8])}" if others else "an empty folder",
            do="give the folder that holds the data, or convert the data to .jsonl",
        )
    found.sort(key=lambda name: (natural(name), name.as_posix()))
    _refuse_several_splits(folder, found)
    return [folder / name for name in found]


def _matches(pattern: Path) -> list[Path]:
    """The data files that a glob names, and those in the folders that it names."""
    matches = [Path(match) for match in glob.glob(str(pattern), recursive=True)]  # noqa: PTH207 - absolute patterns too
    files = [Path(file) for file in data_files([match for match in matches if match.is_file()])]
    below = {file for folder in matches if folder.is_dir() and "**" not in str(pattern) for file in _below(folder)}
    found = {*files, *below}
    if not found:
        raise DataError(
            f"{pattern} matches no data files",
            expected=_READS,
            found=f"{len(matches)} matches, of other kinds" if matches else "no match",
            do="check the pattern, and quote it so that the shell leaves it alone",
        )
    return sorted(found, key=lambda file: (natural(file), file.as_posix()))


def _refuse_several_splits(folder: Path, files: Sequence[PurePath]) -> None:
    """A folder with train/ and test/ in it is two data sets: to learn both would be to learn the test."""
    splits: dict[str, str] = {}
    for file in files:
        if split := split_of(file):
            shown = f"{file.parts[0]}/" if file.parts[0].lower() == split else file.as_posix()
            splits.setdefault(split, shown)
    if len(splits) < 2:
        return
    ordered = [split for split in SPLITS if split in splits]
    first, other = ordered[0], ordered[1]
    raise DataError(
        f"{folder} holds several splits",
        expected="a folder with one of them",
        found=", ".join(splits[split] for split in ordered),
        do=f"learn {_of_split(folder, splits[first], first, files)} "
        f"and hold out the other: --data.eval {_of_split(folder, splits[other], other, files)}",
    )


def _of_split(folder: Path, shown: str, split: str, files: Sequence[PurePath]) -> str:
    """What to call one split of a folder: its folder, its file, or a glob of its files."""
    if shown.endswith("/"):
        return str(folder / shown)
    alone = sum(split_of(file) == split for file in files) == 1
    file = PurePath(shown)
    return str(folder / (file if alone else file.with_name(f"{split}*{file.suffix}")))


def _hidden(path: PurePath) -> bool:
    return any(part.startswith(".") for part in path.parts)
