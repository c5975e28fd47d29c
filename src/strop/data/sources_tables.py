"""Tables to rows: csv and tsv by the standard library, parquet and arrow by pyarrow, batch by batch.

    .csv, .tsv              a header line, then a row a line; a quoted cell may run over several lines. The place of a
                            row is the line that it begins in. Where a .csv header has no comma, semicolons or tabs
                            part its cells.
    .parquet                never read whole; the place of a row is its number, from 1
    .arrow, .feather        the same; Arrow's file and stream formats

Cells of a csv are texts; an empty one is an empty text. A null of parquet or arrow is a column that is not there.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from strop.data.records import Place, Record
from strop.data.sources_stream import MOST_LINE_BYTES, decoded, lines, opened
from strop.errors import DataError

_BATCH = 1024
"""Rows in memory at once."""


def read_cells(file: Path, label: str) -> Iterator[Record]:
    """The rows of a csv or tsv file, compressed or not.

    Args:
        file: the file.
        label: what places and messages call it.

    Raises:
        DataError: it has no header, a name twice, a row with too few or too many cells, or a quote without its end.
    """
    if csv.field_size_limit() < MOST_LINE_BYTES:
        csv.field_size_limit(MOST_LINE_BYTES)  # the library's own is 128 KiB, less than many an answer
    with opened(file, label) as stream:
        texts = (decoded(raw, label, first_line=number) for number, raw in lines(stream, label))
        first = next(texts, "")
        rows = csv.reader(_chained(first, texts), delimiter=_delimiter(file, first), strict=True)
        header: list[str] = []
        while True:
            line = rows.line_num + 1
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                raise _broken_csv(label, line, rows.line_num, error) from error
            if not any(cells) and len(cells) < 2:
                continue
            if not header:
                header = _header(cells, label, line)
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{label}:{line} has {len(cells)} cells",
                    expected=f"{len(header)}, one for each of {', '.join(header)[:80]}",
                    found=" | ".join(cell[:20] for cell in cells[:4]),
                    do="put a cell that holds a comma, a quote or a line break into double quotes",
                )
            yield Record(dict(zip(header, cells, strict=True)), Place(label, line=line))


def read_parquet(file: Path, label: str) -> Iterator[Record]:
    """The rows of a parquet file.

    Raises:
        DataError: pyarrow is not installed, or the file cannot be read.
    """
    arrow = _pyarrow(label)
    import pyarrow.parquet

    with _worded(arrow, label, "parquet"), pyarrow.parquet.ParquetFile(file, memory_map=True) as table:
        yield from _rows(table.iter_batches(batch_size=_BATCH), label)


def read_arrow(file: Path, label: str) -> Iterator[Record]:
    """The rows of an Arrow file, or of a stream in a file, as the library datasets keeps them.

    Raises:
        DataError: pyarrow is not installed, or the file cannot be read.
    """
    arrow = _pyarrow(label)
    import pyarrow.ipc

    with _worded(arrow, label, "arrow"), arrow.memory_map(str(file)) as source:
        if source.read(6) == b"ARROW1":
            table = pyarrow.ipc.open_file(source)
            batches = (table.get_batch(number) for number in range(table.num_record_batches))
        else:
            source.seek(0)
            batches = iter(pyarrow.ipc.open_stream(source))
        pieces = (batch.slice(start, _BATCH) for batch in batches for start in range(0, batch.num_rows, _BATCH))
        yield from _rows(pieces, label)


def _rows(batches: Iterator[Any], label: str) -> Iterator[Record]:
    number = 0
    for batch in batches:
        for values in batch.to_pylist():
            number += 1
            yield Record({column: _plain(value) for column, value in values.items()}, Place(label, item=number))


def _plain(value: Any) -> Any:
    """A value as JSON could hold it: dates and decimals as text, bytes as their hash (nothing reads them)."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return f"{len(value)} bytes, {hashlib.blake2b(value, digest_size=8).hexdigest()}"
    return str(value)


class _worded:  # noqa: N801 - used like a function
    """Gives pyarrow's errors the words of a `DataError`."""

    def __init__(self, arrow: Any, label: str, kind: str) -> None:
        self._errors: tuple[type[BaseException], ...] = (arrow.ArrowException, OSError, ValueError)
        self._label, self._kind = label, kind

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, self._errors):
            raise DataError(
                f"{self._label} cannot be read",
                expected=f"a whole {self._kind} file",
                found=(str(error).splitlines() or [type(error).__name__])[0][:200],
                do="download or write it again, or check its ending",
            ) from error


def _pyarrow(label: str) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise DataError(
            f"{label} cannot be read",
            expected="the package pyarrow, which Strop does without unless tables are asked for",
            found=f"a {Path(label).suffix} file",
            do="pip install 'strop[tables]', or convert it to .jsonl",
        ) from None
    return pyarrow


def _chained(first: str, rest: Iterator[str]) -> Iterator[str]:
    if first:
        yield first
    yield from rest


def _delimiter(file: Path, header: str) -> str:
    name = file.name.lower()
    if name.endswith((".tsv", ".tsv.gz", ".tsv.zst")):
        return "\t"
    return next((mark for mark in (",", ";", "\t") if mark in header), ",")


def _header(cells: list[str], label: str, line: int) -> list[str]:
    names = [cell.strip() for cell in cells]
    counts: Mapping[str, int] = {name: names.count(name) for name in names}
    twice = next((name for name, count in counts.items() if count > 1), None)
    if twice is not None:
        raise DataError(
            f"{label}:{line}: the column {twice!r} stands twice in the header",
            expected="a name once",
            found=", ".join(names)[:80],
            do="rename one of the two, or give the file a header line",
        )
    return names


def _broken_csv(label: str, line: int, end: int, error: csv.Error) -> DataError:
    unclosed = "end of data" in str(error)
    return DataError(
        f"{label}:{line}: broken csv",
        expected="a quoted cell to end in a quote, and quotes inside it doubled",
        found=f"a quote that is never closed, up to line {end}" if unclosed else str(error),
        do=f"repair line {line}; write a quote inside a quoted cell as two",
    )
