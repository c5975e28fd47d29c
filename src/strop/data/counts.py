"""A data set counted: what became of the records of each source, and why records were refused.

read = learned + held out + refused, for every file and for all of them together
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from strop.data.examples import Dataset
from strop.data.records import Example, Refusal
from strop.data.samples import Samples
from strop.data.store import RECORD_BITS

if TYPE_CHECKING:
    import numpy.typing as npt

_RECORD = (1 << RECORD_BITS) - 1
"""The part of an `Example.id` that numbers the record; above it stands which of the record's samples this is."""

_MOST_SOURCES = 12
_SHOWN_PLACES = 5


@dataclass(slots=True)
class SourceCount:
    """What became of the records of a file, or of a folder that holds many files.

    Args:
        name: the file or folder.
        learned: records to learn.
        held_out: records held out.
        refused: records refused.
        tokens: tokens of the records to learn.
        learned_tokens: learned tokens of these.
    """

    name: str
    learned: int = 0
    held_out: int = 0
    refused: int = 0
    tokens: int = 0
    learned_tokens: int = 0

    @property
    def read(self) -> int:
        """Records that were read: the other three together."""
        return self.learned + self.held_out + self.refused

    def add(self, other: SourceCount) -> None:
        """Take in what another source counts."""
        for name in ("learned", "held_out", "refused", "tokens", "learned_tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True, slots=True)
class Reason:
    """Refusals of one reason.

    Args:
        reason: why.
        cure: what the user can do about it.
        refusals: the refusals, in reading order.
    """

    reason: str
    cure: str
    refusals: tuple[Refusal, ...]

    @property
    def first(self) -> tuple[Refusal, ...]:
        """A few of them, to look at."""
        return self.refusals[:_SHOWN_PLACES]


def count_sources(dataset: Dataset) -> list[SourceCount]:
    """Count records and tokens by source: by file, or by folder where there are more than a dozen files.

    Samples of one record count once as records.

    Returns:
        The sources, in the order of their names.
    """
    by_file: defaultdict[str, SourceCount] = defaultdict(lambda: SourceCount(""))
    for file, records, tokens, learned_tokens in _by_file(dataset.learned):
        by_file[file].add(SourceCount(file, records, 0, 0, tokens, learned_tokens))
    for file, records, _, _ in _by_file(dataset.held_out):
        by_file[file].held_out += records
    for refusal in (*dataset.refused, *dataset.held_out_refused):
        by_file[refusal.place.file].refused += 1
    counts: dict[str, SourceCount] = {}
    names = _names(by_file)
    for file, one in by_file.items():
        counts.setdefault(names[file], SourceCount(names[file])).add(one)
    return [counts[name] for name in sorted(counts)]


def _by_file(samples: Sequence[Example]) -> Iterator[tuple[str, int, int, int]]:
    """Each file with the records, tokens and learned tokens that come from it."""
    if not isinstance(samples, Samples):
        for one in samples:
            yield one.place.file, is_first(one), len(one), int(np.count_nonzero(one.learned))
        return
    sums = [
        np.bincount(samples.files_S, values_S).astype(np.int64)
        for values_S in (samples.ids_S <= _RECORD, samples.lengths_S, samples.learned_S)
    ]
    for number in np.unique(samples.files_S).tolist():
        yield samples.store.files[number], *(int(sum_[number]) for sum_ in sums)


def number_of(example: Example) -> int:
    """The number of a sample's record in reading order, from 1, as people give it."""
    return (example.id & _RECORD) + 1


def numbers_of(ids_S: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The same of many samples [S], by their ids."""
    return (ids_S & _RECORD) + 1


def is_first(example: Example) -> bool:
    """Whether a sample is the first one, and mostly the only one, of its record."""
    return example.id <= _RECORD


def group_refusals(refused: Sequence[Refusal]) -> list[Reason]:
    """Put refusals of one reason together, the most frequent reason first."""
    groups: defaultdict[str, list[Refusal]] = defaultdict(list)
    for refusal in refused:
        groups[refusal.reason].append(refusal)
    by_count = sorted(groups.items(), key=lambda item: -len(item[1]))
    return [Reason(reason, found[0].cure, tuple(found)) for reason, found in by_count]


def _names(files: Iterable[str]) -> dict[str, str]:
    """What each file is counted under: itself, or the deepest of its folders of which there are few enough."""
    parts = {file: PurePath(file).parts for file in files}
    for depth in range(max(map(len, parts.values()), default=1), 0, -1):
        names = {file: str(PurePath(*of_file[:depth])) for file, of_file in parts.items()}
        if len(set(names.values())) <= _MOST_SOURCES:
            break
    return names
