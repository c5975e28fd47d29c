"""A data set counted: what became of the records of each source, and why records were refused.

read = learned + held out + refused, for every file and for all of them together
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from strop.data.examples import Dataset
from strop.data.records import Example, Refusal

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

    Returns:
        The sources in natural order of their first record.
    """
    refused = [*dataset.refused, *dataset.held_out_refused]
    files = {one.place.file for one in (*dataset.learned, *dataset.held_out)} | {one.place.file for one in refused}
    name_of = _names(files)
    counts: defaultdict[str, SourceCount] = defaultdict(lambda: SourceCount(""))
    for example in dataset.learned:
        count = counts[name_of(example.place.file)]
        count.learned += 1
        count.tokens += len(example)
        count.learned_tokens += int(np.count_nonzero(example.learned))
    for example in dataset.held_out:
        counts[name_of(example.place.file)].held_out += 1
    for refusal in refused:
        counts[name_of(refusal.place.file)].refused += 1
    for name, count in counts.items():
        count.name = name
    return [counts[name] for name in sorted(counts)]


def group_refusals(refused: Sequence[Refusal]) -> list[Reason]:
    """Put refusals of one reason together, the most frequent reason first."""
    groups: defaultdict[str, list[Refusal]] = defaultdict(list)
    for refusal in refused:
        groups[refusal.reason].append(refusal)
    by_count = sorted(groups.items(), key=lambda item: -len(item[1]))
    return [Reason(reason, found[0].cure, tuple(found)) for reason, found in by_count]


def count_tokens(examples: Iterable[Example]) -> tuple[int, int]:
    """All tokens of some samples, and the learned ones."""
    tokens = learned = 0
    for example in examples:
        tokens += len(example)
        learned += int(np.count_nonzero(example.learned))
    return tokens, learned


def _names(files: set[str]) -> Callable[[str], str]:
    """What a file is counted under: itself, or the deepest folders that are few enough."""
    deepest = max((len(PurePath(file).parts) for file in files), default=1)
    for depth in range(deepest, 0, -1):
        names = {file: str(PurePath(*PurePath(file).parts[:depth])) for file in files}
        if len(set(names.values())) <= _MOST_SOURCES:
            break
    return names.__getitem__ if files else str
