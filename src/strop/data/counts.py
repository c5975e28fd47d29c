"""A data set counted: what became of the records of each source, and why records were refused.

read = learned + held out + refused, for every file and for all of them together
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from strop.data.examples import Dataset
from strop.data.records import Example, Refusal
from strop.data.store import RECORD_BITS

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

    Every sample is looked at once. Samples of one record count once as records.

    Returns:
        The sources, in the order of their names.
    """
    by_file: defaultdict[str, SourceCount] = defaultdict(lambda: SourceCount(""))
    for example in dataset.learned:
        count = by_file[example.place.file]
        count.learned += is_first(example)
        count.tokens += len(example)
        count.learned_tokens += int(np.count_nonzero(example.learned))
    for example in dataset.held_out:
        by_file[example.place.file].held_out += is_first(example)
    for refusal in (*dataset.refused, *dataset.held_out_refused):
        by_file[refusal.place.file].refused += 1
    counts: dict[str, SourceCount] = {}
    names = _names(by_file)
    for file, one in by_file.items():
        counts.setdefault(names[file], SourceCount(names[file])).add(one)
    return [counts[name] for name in sorted(counts)]


def number_of(example: Example) -> int:
    """The number of a sample's record in reading order, from 1, as people give it."""
    return (example.id & _RECORD) + 1


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
