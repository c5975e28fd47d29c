"""Samples to packs: whole documents laid end to end, never split, never padded.

    two documents, the learned tokens in brackets       laid end to end

      a: 5 6 [7 8]                                        tokens_T        5    6    7    8    1    2    3
      b: 1 [2 3]                                          targets_T    -100    7    8 -100    2    3 -100
                                                          positions_T     0    1    2    3    0    1    2
                                                          starts_D1       0                   4           7

A pack is computed at once; attention is kept within each document by the offsets `starts`, and positions start again
at 0 in each. The target of a position is the next token of its document, where that is learned; the last position of
a document has none. Which pack a document lies in is a matter of the plan and must not change the result.

A pack may hold a beginning that samples have in common once (`strop.data.prefixes`). It is a document of its own, in
which nothing is learned; behind it lie its samples, each from where it goes on:

    a: S S S 5 [6 7]                                    tokens_T        S    S    S    5    6    7    8    9
    b: S S S 8 [9]                                      targets_T    -100 -100 -100    6    7 -100    9 -100
                                                        positions_T     0    1    2    3    4    5    3    4
                                                        starts_D1       0              3              6         8
                                                        prefix_of_D    -1              0              0

A position then sees its own document up to itself, and the whole of the document that this one continues. That is
what it sees without sharing; so what is computed stays the same up to rounding, and 3 of 11 positions are saved. Where
dropout is on nothing may be shared: its masks belong to samples, and equal beginnings of two samples have unequal ones.

Shape suffixes: T positions of a pack, D documents in it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from strop.data.prefixes import Prefix, shared_prefixes
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
        positions_T: int32, each position's number in its sample.
        starts_D1: int32 [D + 1], where each document starts, and T.
        sample_ids_D: int64, each document's `Example.id`; for a shared beginning that of its first sample.
        prefix_of_D: int32, the document that each document continues, or -1.
        read_tokens: tokens of the samples, as many as there would be if nothing were shared.
        weights_T: float32, how much each target counts in the loss, 0 where there is none; None where each counts 1.
    """

    tokens_T: npt.NDArray[np.int32]
    targets_T: npt.NDArray[np.int32]
    positions_T: npt.NDArray[np.int32]
    starts_D1: npt.NDArray[np.int32]
    sample_ids_D: npt.NDArray[np.int64]
    prefix_of_D: npt.NDArray[np.int32]
    read_tokens: int
    weights_T: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        """Positions that are computed."""
        return len(self.tokens_T)

    @property
    def learned_tokens(self) -> int:
        """Positions that have a target."""
        return int(np.count_nonzero(self.targets_T != NO_TARGET))

    @property
    def weight(self) -> float:
        """What the targets weigh together: their number, where each counts 1."""
        return float(self.learned_tokens if self.weights_T is None else self.weights_T.sum(dtype=np.float64))

    @property
    def spans(self) -> tuple[tuple[int, int, int, int], ...]:
        """For each document its start and end, and those of the document that it continues, equal where none is.

        A position p of the document sees start … p and the whole of what is continued.
        """
        bounds = list(pairwise(self.starts_D1.tolist()))
        return tuple(
            (start, end, *(bounds[prefix] if prefix >= 0 else (start, start)))
            for (start, end), prefix in zip(bounds, self.prefix_of_D.tolist(), strict=True)
        )


def pack(examples: Sequence[Example], pack_tokens: int, share_prefixes: bool = False) -> list[Pack]:
    """Lay samples into packs, best fit decreasing.

    The longest document first, each into the pack that it fills best; a pack is opened where it fits in none. A
    document longer than a pack gets one of its own. Ties go to the earlier sample and the earlier pack, so the same
    samples give the same packs. For lengths 5, 3, 4, 2 and packs of 8:  [5 3] [4 2].

    With sharing, a document counts with what it has behind the common beginning, and goes to a pack that holds this
    beginning if there is room, else with the beginning to another.

    Args:
        examples: the samples, of one or more tokens each.
        pack_tokens: the longest pack, in positions that are computed.
        share_prefixes: compute common beginnings once a pack. The caller must not share where dropout is on.

    Returns:
        The packs, ordered by their first sample; within each the samples keep their order, but for those that share
        a beginning: they follow the first of them.
    """
    prefixes = shared_prefixes(examples, pack_tokens) if share_prefixes else []
    home = {number: index for index, prefix in enumerate(prefixes) for number in prefix.members}
    packs = fill([len(example) for example in examples], pack_tokens, prefixes, home)
    return [_lay(examples, sorted(numbers), prefixes, home) for numbers in sorted(packs, key=min)]


def fill(
    lengths: Sequence[int],
    pack_tokens: int,
    prefixes: Sequence[Prefix] = (),
    home: Mapping[int, int] = MappingProxyType({}),
) -> list[list[int]]:
    """Choose a pack for each sample, as `pack` does.

    Args:
        lengths: tokens of each sample.
        pack_tokens: the longest pack.
        prefixes: the beginnings that samples share.
        home: of a sample's number, the number of its beginning.

    Returns:
        The samples' numbers of each pack.
    """
    rest = [length - (prefixes[home[number]].tokens if number in home else 0) for number, length in enumerate(lengths)]
    # The longest of those that share a beginning brings it along; so it is placed by its whole length.
    bringing = {max(prefix.members, key=lambda number: (lengths[number], -number)) for prefix in prefixes}
    first = [lengths[number] if number in bringing else rest[number] for number in range(len(lengths))]
    anywhere = len(prefixes)
    # room[p]: (tokens left, number of the pack), ascending, of the packs that hold prefix p; of all for p = anywhere.
    room: list[list[tuple[int, int]]] = [[] for _ in range(len(prefixes) + 1)]
    # A pack with less room is full, and leaves the lists: of a million samples they hold thousands and not all packs.
    least = min(rest, default=0)
    packs: list[list[int]] = []
    held: list[list[int]] = []  # for each pack the lists in `room` that it is in
    for number in sorted(range(len(lengths)), key=lambda number: (-first[number], number)):
        prefix, cost = home.get(number, anywhere), rest[number]
        fitting = room[prefix]
        best = bisect_left(fitting, (cost, -1))
        if best == len(fitting):
            fitting, cost = room[anywhere], lengths[number]
            best = bisect_left(fitting, (cost, -1))
        if best < len(fitting):
            left, place = fitting[best]
            for index in held[place]:
                del room[index][bisect_left(room[index], (left, place))]
        else:
            left, place = max(pack_tokens, cost), len(packs)
            packs.append([])
            held.append([anywhere])
        packs[place].append(number)
        if prefix not in held[place]:
            held[place].append(prefix)
        if left - cost >= least:
            for index in held[place]:
                insort(room[index], (left - cost, place))
    return packs


def _lay(
    examples: Sequence[Example], numbers: Sequence[int], prefixes: Sequence[Prefix], home: Mapping[int, int]
) -> Pack:
    """Lay one pack's samples end to end, a beginning that two or more share before the first of them."""
    together: dict[int, list[int]] = {}
    for number in numbers:
        together.setdefault(home.get(number, ~number), []).append(number)
    pieces: list[tuple[Example, slice, int]] = []  # with the number of the piece that this one continues
    for index, members in together.items():
        shared = prefixes[index].tokens if len(members) > 1 else 0
        prefix = len(pieces) if shared else -1
        if shared:
            pieces.append((examples[members[0]], slice(0, shared), -1))
        pieces += [(examples[number], slice(shared, len(examples[number])), prefix) for number in members]
    weighted = any(example.weights is not None for example, _, _ in pieces)
    return Pack(
        tokens_T=np.concatenate([example.tokens[rows] for example, rows, _ in pieces]),
        targets_T=np.concatenate([_targets(example)[rows] for example, rows, _ in pieces]),
        positions_T=np.concatenate([np.arange(rows.start, rows.stop, dtype=np.int32) for _, rows, _ in pieces]),
        starts_D1=np.cumsum([0, *(rows.stop - rows.start for _, rows, _ in pieces)], dtype=np.int32),
        sample_ids_D=np.array([example.id for example, _, _ in pieces], dtype=np.int64),
        prefix_of_D=np.array([prefix for _, _, prefix in pieces], dtype=np.int32),
        read_tokens=sum(len(examples[number]) for number in numbers),
        weights_T=np.concatenate([_weights(example)[rows] for example, rows, _ in pieces]) if weighted else None,
    )


def _targets(document: Example) -> npt.NDArray[np.int32]:
    targets = np.full(len(document), NO_TARGET, dtype=np.int32)
    targets[:-1] = np.where(document.learned[1:], document.tokens[1:], np.int32(NO_TARGET))
    return targets


def _weights(document: Example) -> npt.NDArray[np.float32]:
    """What each position's target counts."""
    weights = np.zeros(len(document), dtype=np.float32)
    weights[:-1] = document.learned[1:] if document.weights is None else document.weights[1:] * document.learned[1:]
    return weights
