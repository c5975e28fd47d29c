"""Samples to packs: whole documents laid end to end, never split, never padded.

    two documents, the learned tokens in brackets       laid end to end

      a: 5 6 [7 8]                                        tokens_T        5    6    7    8    1    2    3
      b: 1 [2 3]                                          targets_T    -100    7    8 -100    2    3 -100
                                                          positions_T     0    1    2    3    0    1    2
                                                          starts_D1       0                   4           7

A pack is computed at once; attention is kept within each document by the offsets `starts`, and positions start again
at 0 in each. The target of a position is the next token of its document, where that is learned; the last position of
a document has none. Which pack a document lies in is a matter of the plan and must not change the result.

Shape suffixes: T positions of a pack, D documents in it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from strop.data.records import Example

if TYPE_CHECKING:
    import numpy.typing as npt

NO_TARGET = -100
"""The target of a position that teaches nothing; the value that torch's cross_entropy ignores."""


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """Documents laid end to end.

    Args:
        tokens_T: int32, the documents' tokens.
        targets_T: int32, the token to predict at each position, or `NO_TARGET`.
        positions_T: int32, each position's number in its document.
        starts_D1: int32 [D + 1], where each document starts, and T.
        sample_ids_D: int64, each document's `Example.id`.
    """

    tokens_T: npt.NDArray[np.int32]
    targets_T: npt.NDArray[np.int32]
    positions_T: npt.NDArray[np.int32]
    starts_D1: npt.NDArray[np.int32]
    sample_ids_D: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.tokens_T)

    @property
    def learned_tokens(self) -> int:
        """Positions that have a target."""
        return int(np.count_nonzero(self.targets_T != NO_TARGET))


def pack(examples: Sequence[Example], pack_tokens: int) -> list[Pack]:
    """Lay samples into packs, best fit decreasing.

    The longest document first, each into the pack that it fills best; a pack is opened where it fits in none. A
    document longer than a pack gets one of its own. Ties go to the earlier sample and the earlier pack, so the same
    samples give the same packs. For lengths 5, 3, 4, 2 and packs of 8:  [5 3] [4 2].

    Args:
        examples: the samples, of one or more tokens each.
        pack_tokens: the longest pack, in tokens.

    Returns:
        The packs, ordered by their first sample; within each the samples keep their order.
    """
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, number of the pack), ascending
    for number in sorted(range(len(examples)), key=lambda number: (-len(examples[number]), number)):
        length = len(examples[number])
        best = bisect_left(room, (length, -1))
        if best < len(room):
            left, home = room.pop(best)
            packs[home].append(number)
        else:
            left, home = max(pack_tokens, length), len(packs)
            packs.append([number])
        insort(room, (left - length, home))
    return [_lay([examples[number] for number in sorted(numbers)]) for numbers in sorted(packs, key=min)]


def _lay(documents: Sequence[Example]) -> Pack:
    lengths = [len(document) for document in documents]
    return Pack(
        tokens_T=np.concatenate([document.tokens for document in documents]),
        targets_T=np.concatenate([_targets(document) for document in documents]),
        positions_T=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        starts_D1=np.cumsum([0, *lengths], dtype=np.int32),
        sample_ids_D=np.array([document.id for document in documents], dtype=np.int64),
    )


def _targets(document: Example) -> npt.NDArray[np.int32]:
    targets = np.full(len(document), NO_TARGET, dtype=np.int32)
    targets[:-1] = np.where(document.learned[1:], document.tokens[1:], np.int32(NO_TARGET))
    return targets
