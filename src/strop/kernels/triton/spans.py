"""The documents of a pack as attention's kernels read them: tiles of queries, tiles of keys, and who looks at whom.

A token's position counts from the beginning of its document, the prefix that this continues included. An origin is the
row where position 0 would lie, so that position = row − origin:

    rows       0 … 39 prefix │ 40 … 49 document that continues it │ 50 … 79 another document
    origins    0             │ own rows 0 (40 − 40), prefix 0      │ 50

Keys of a prefix are looked at from its own rows and from every document that continues it. Each such look is a segment
of the key tile that it falls into; a program adds its segments up in their order, so that sums have one order and need
no atomic additions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from strop.kernels.attention_scores import Span
from strop.kernels.upload import upload


@dataclass(frozen=True, slots=True, eq=False)
class QueryTiles:
    """int32 [tiles, 5]: first row, row after the document's last, document's start, prefix's start, prefix's length."""

    numbers: Tensor
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class KeyTiles:
    """What the gradients of keys and values are summed over.

    Attributes:
        numbers: int32 [tiles, 4]: first row, row after the document's last, first segment, segment after the last.
        segments: int32 [segments, 5]: queries' first row, row after their last, their origin, the keys' origin, row
            after the last key that is seen.
        count: tiles.
    """

    numbers: Tensor
    segments: Tensor
    count: int


# A pass over a pack asks for the same tiles in every layer; two packs may be under way.
@lru_cache(maxsize=16)
def query_tiles(spans: tuple[Span, ...], rows: int, device: torch.device) -> QueryTiles:
    """Tiles of up to ``rows`` queries, the longest first: they take longest."""
    tiles = [
        (first, span.end, span.start, span.prefix_start, span.prefix_end - span.prefix_start)
        for span in spans
        for first in range(span.start, span.end, rows)
    ]
    tiles.sort(key=lambda tile: tile[2] - tile[0] - tile[4])
    return QueryTiles(_table(tiles, 5, device), len(tiles))


@lru_cache(maxsize=16)
def key_tiles(spans: tuple[Span, ...], rows: int, device: torch.device) -> KeyTiles:
    """Tiles of up to ``rows`` keys."""
    tiles: list[tuple[int, ...]] = []
    segments: list[tuple[int, ...]] = []
    for span in spans:
        origin = span.start - (span.prefix_end - span.prefix_start)
        for first in range(span.start, span.end, rows):
            last = min(first + rows, span.end)
            begin = len(segments)
            segments.append((span.start, span.end, origin, origin, span.end))
            for other in spans:
                if other.prefix_start < last and first < other.prefix_end:
                    seen_from = other.start - (other.prefix_end - other.prefix_start)
                    segments.append((other.start, other.end, seen_from, other.prefix_start, other.prefix_end))
            tiles.append((first, span.end, begin, len(segments)))
    return KeyTiles(_table(tiles, 4, device), _table(segments, 5, device), len(tiles))


def _table(rows: Iterable[tuple[int, ...]], columns: int, device: torch.device) -> Tensor:
    return upload(torch.tensor(list(rows), dtype=torch.int32).view(-1, columns), device)
