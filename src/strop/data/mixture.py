"""Several sources as one data set, each whole, in part or more than once.

    a.jsonl            every row once
    a.jsonl*2          every row twice;  *2.5 twice, and half of the rows once more
    a.jsonl*0.5        half of the rows
    a.jsonl#1000       a thousand rows; all of them where there are no more

Which rows a part holds follows from their content and the seed, as everywhere (`strop.data.split`): not from their
order, and not from the other sources. A source in part is read twice, first for the numbers of its rows' contents,
8 bytes a row, and never held.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from strop.data.records import Record
from strop.data.sources import read_records
from strop.data.split import row_key
from strop.errors import UsageError
from strop.foreign import home_path, is_there

if TYPE_CHECKING:
    import numpy.typing as npt

_AMOUNT = re.compile(r"(.+?)(?:\*(\d+(?:\.\d+)?)|#(\d+))", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Source:
    """One source of a data set.

    Args:
        path: file, folder, glob or hub id.
        weight: how often its rows are used; 1 for once each.
        count: how many of its rows are used, in place of a weight.
    """

    path: str
    weight: float = 1.0
    count: int | None = None

    def __str__(self) -> str:
        if self.count is not None:
            return f"{self.path}#{self.count}"
        return self.path if self.weight == 1 else f"{self.path}*{str(self.weight).removesuffix('.0')}"


@dataclass(frozen=True, slots=True)
class SourceAccount:
    """What became of one source's records: read = learned + held out + refused.

    Args:
        source: the source as it was written.
        available: the rows that it has.
        read: those used, each as often as it is used.
        learned: samples to learn.
        held_out: samples held out.
        refused: records that are neither.
    """

    source: str
    available: int
    read: int
    learned: int
    held_out: int
    refused: int


def parse_sources(train: str | Sequence[str | Source]) -> tuple[Source, ...]:
    """The sources that the recipe's ``data.train`` names.

    Args:
        train: one source or several. What exists under its whole text is that path, whatever it ends in.

    Raises:
        UsageError: there is none, or an amount of 0.
    """
    texts = [train] if isinstance(train, str) else list(train)
    sources = tuple(text if isinstance(text, Source) else _parse(text) for text in texts)
    if not sources:
        raise UsageError("data.train names no data", expected="a file, a folder or a hub id", do="give at least one")
    return sources


def whole_sources(train: str | Sequence[str], note: Callable[[str], None] | None = None) -> str | tuple[str, ...]:
    """The same sources so that they mean the same from any folder and at any time: absolute paths, pinned hub ids.

    Args:
        train: one source or several.
        note: told what a hub id is pinned to.

    Returns:
        A text for a text, texts for several.

    Raises:
        DataError: a hub cannot be asked.
    """
    wholes = tuple(str(replace(source, path=whole_path(source.path, note))) for source in parse_sources(train))
    return wholes[0] if isinstance(train, str) else wholes


class Mixture:
    """The records of several sources, one after another.

    Args:
        train: the recipe's ``data.train``.
        seed: the recipe's seed.

    Attributes:
        sources: the sources.

    Raises:
        UsageError: as `parse_sources`.
    """

    def __init__(self, train: str | Sequence[str | Source], seed: int) -> None:
        self.sources = parse_sources(train)
        self._seed = seed
        self._available = [0] * len(self.sources)
        self._ends = [0] * len(self.sources)

    def __iter__(self) -> Iterator[Record]:
        """Read the records; each time anew."""
        end = 0
        for number, source in enumerate(self.sources):
            for record in self._read(number, source):
                end += 1
                yield record
            self._ends[number] = end

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """For each source, once all is read: the rows that it has, and the number of the first record behind it."""
        return list(zip(self._available, self._ends, strict=True))

    def _read(self, number: int, source: Source) -> Iterator[Record]:
        whole = int(source.weight) if source.count is None else 0
        if source.count is None and source.weight == whole:
            chosen = None
        else:
            keys = np.fromiter((row_key(record, self._seed) for record in read_records(source.path)), np.uint64)
            part = round((source.weight - whole) * len(keys)) if source.count is None else source.count
            chosen = _smallest(keys, part)
        if chosen is not None and chosen.all():
            whole, chosen = whole + 1, None
        for _ in range(whole):
            self._available[number] = 0
            for record in read_records(source.path):
                self._available[number] += 1
                yield record
        if chosen is not None:
            self._available[number] = len(chosen)
            for use, record in zip(chosen.tolist(), read_records(source.path), strict=True):
                if use:
                    yield record


def account(
    sources: Sequence[Source],
    bounds: Sequence[tuple[int, int]],
    *,
    learned: npt.NDArray[np.int64],
    held_out: npt.NDArray[np.int64],
    refused: npt.NDArray[np.int64],
) -> tuple[SourceAccount, ...]:
    """What became of each source's records.

    Args:
        sources: the sources.
        bounds: of each, as `Mixture.bounds` has it.
        learned: numbers of the records that are learned, in the order of reading from 0.
        held_out: of those held out.
        refused: of those refused.
    """
    ends = [end for _, end in bounds]
    counts = [
        np.bincount(np.searchsorted(ends, numbers, "right"), minlength=len(ends)).tolist()
        for numbers in (learned, held_out, refused)
    ]
    return tuple(
        SourceAccount(str(source), available, sum(of), *of)
        for source, (available, _), of in zip(sources, bounds, zip(*counts, strict=True), strict=True)
    )


def _smallest(
    keys: np.ndarray[tuple[int], np.dtype[np.uint64]], count: int
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which of the numbers are among the smallest; equal ones in their order."""
    chosen = np.zeros(len(keys), bool)
    chosen[np.argsort(keys, kind="stable")[:count]] = True
    return chosen


def _parse(text: str) -> Source:
    match = None if is_there(home_path(text)) else _AMOUNT.fullmatch(text)
    if match is None:
        return Source(text)
    path, weight, count = match.groups()
    if not float(weight or count):
        raise UsageError(f"data.train: {text} uses nothing of it", expected="more than 0", do="leave the source out")
    return Source(path, float(weight) if weight else 1.0, int(count) if count else None)


def whole_path(path: str, note: Callable[[str], None] | None = None) -> str:
    """What one source means from any folder and at any time: an absolute path, or a pinned hub id.

    Args:
        path: file, folder, glob or hub id; what is none of them is left as it is.
        note: told what a hub id is pinned to.

    Raises:
        DataError: a hub cannot be asked.
    """
    local = home_path(path)
    if is_there(local):
        return str(local.resolve())
    from strop.data.sources_hub import hub_id, pinned

    hub = hub_id(path)
    if hub is not None:
        return str(pinned(hub, note))
    return str(local.absolute()) if glob.has_magic(path) else path
