"""A pack as the decoder takes it: tensors on its device, and the rows whose next token is learned.

A GPU gets each pack in one copy from pinned memory, on a stream of its own, while it computes the pack before: nothing
waits for it. What needs to be known without asking the GPU (tokens, spans, lengths) stays on the host as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

IGNORED = -100

# Parts of an upload begin at multiples of so many 64-bit numbers: kernels are made for addresses of round numbers.
_ALIGNED = 64


@dataclass(frozen=True, slots=True)
class Batch:
    """A pack as tensors on the decoder's device.

    Attributes:
        tokens_T: int64 [T].
        positions_T: int64 [T], each token's place in its sample.
        sample_ids_T: int64 [T], the sample each token belongs to; names its dropout.
        starts: offsets of the documents and, last, T.
        rows_N: int64 [N], rows whose next token is learned.
        targets_N: int64 [N], that next token.
        spans: for each document its start and end, and those of the document that it continues, equal where there is
            none. A row sees its own document up to itself, and the whole of what its document continues.
        weights_N: float32 [N], how much each learned token counts in the loss; None where each counts 1.
        host_tokens_T: the tokens on the host, of a pack on another device.
    """

    tokens_T: Tensor
    positions_T: Tensor
    sample_ids_T: Tensor
    starts: tuple[int, ...]
    rows_N: Tensor
    targets_N: Tensor
    spans: tuple[tuple[int, int, int, int], ...]
    weights_N: Tensor | None = None
    host_tokens_T: Tensor | None = None

    @property
    def tokens_on_host(self) -> Tensor:
        """The tokens on the host: int64 [T]."""
        return self.tokens_T.cpu() if self.host_tokens_T is None else self.host_tokens_T

    @property
    def lengths_T(self) -> Tensor:
        """The length of each token's sample, on the host: int64 [T]; of a shared beginning the longest's."""
        lengths_T = torch.zeros(len(self.tokens_T), dtype=torch.int64)
        for start, end, first, last in self.spans:
            lengths_T[start:end] = end - start + last - first
            lengths_T[first:last] = lengths_T[first:last].clamp(min=end - start + last - first)
        return lengths_T


class PackArrays(Protocol):
    """Integer arrays of a pack; `strop.data.packing.Pack` is one.

    A pack whose documents continue one another has ``spans`` too, as `Batch` has them; one whose learned tokens weigh
    differently has ``weights_T``.
    """

    @property
    def tokens_T(self) -> Any:
        """Token ids [T]."""

    @property
    def targets_T(self) -> Any:
        """The next token where it is learned, else -100 [T]."""

    @property
    def positions_T(self) -> Any:
        """Place of each token in its sample [T]."""

    @property
    def starts_D1(self) -> Any:
        """Offsets of the D documents and, last, T."""

    @property
    def sample_ids_D(self) -> Any:
        """The sample of each document [D]."""


def make_batch(pack: PackArrays, device: torch.device | str = "cpu") -> Batch:
    """Moves a pack to a device and picks out its learned rows."""
    device = torch.device(device)
    batch = _host_batch(pack)
    return batch if device.type == "cpu" else moved(batch, device)


def uploads(packs: Sequence[PackArrays], device: torch.device) -> Iterator[Batch]:
    """The packs as batches on a device; while one is computed the next is on its way."""
    if device.type != "cuda":
        yield from (make_batch(pack, device) for pack in packs)
        return
    side, computing = _side_stream(str(device)), torch.cuda.current_stream(device)
    following: Batch | None = None
    for number in range(len(packs) + 1):
        batch = following
        if number < len(packs):
            with torch.cuda.stream(side):
                following = make_batch(packs[number], device)
        if batch is not None:
            yield batch
        if number < len(packs) and following is not None:
            computing.wait_stream(side)
            for part in _tensors(following):
                part.record_stream(computing)


@cache
def _side_stream(device: str) -> torch.cuda.Stream:
    """One for all steps: torch's allocator keeps memory for each stream by itself, 2 MiB at least."""
    return torch.cuda.Stream(device)


def moved(batch: Batch, device: torch.device) -> Batch:
    """A pack of the host on another device: all its numbers in one copy, its weights in another."""
    parts = [batch.tokens_T, batch.positions_T, batch.sample_ids_T, batch.rows_N, batch.targets_N]
    sizes = [-(-len(part) // _ALIGNED) * _ALIGNED for part in parts]
    pinned = device.type == "cuda"
    flat = torch.zeros(sum(sizes), dtype=torch.int64, pin_memory=pinned)
    for room, part in zip(flat.split(sizes), parts, strict=True):
        room[: len(part)] = part
    there = flat.to(device, non_blocking=pinned).split(sizes)
    tokens_T, positions_T, ids_T, rows_N, targets_N = (
        room[: len(part)] for room, part in zip(there, parts, strict=True)
    )
    weights_N = batch.weights_N
    if weights_N is not None:
        weights_N = (weights_N.pin_memory() if pinned else weights_N).to(device, non_blocking=pinned)
    return Batch(
        *(tokens_T, positions_T, ids_T, batch.starts, rows_N, targets_N, batch.spans, weights_N),
        host_tokens_T=batch.tokens_T,
    )


def _tensors(batch: Batch) -> list[Tensor]:
    """What of a batch lies on its device."""
    parts = [batch.tokens_T, batch.positions_T, batch.sample_ids_T, batch.rows_N, batch.targets_N]
    return parts if batch.weights_N is None else [*parts, batch.weights_N]


def _host_batch(pack: PackArrays) -> Batch:
    targets = torch.as_tensor(pack.targets_T, dtype=torch.int64)
    rows_N = (targets != IGNORED).nonzero()[:, 0]
    starts = torch.as_tensor(pack.starts_D1, dtype=torch.int64)
    weights_T = getattr(pack, "weights_T", None)
    alone = tuple((start, end, start, start) for start, end in pairwise(starts.tolist()))
    return Batch(
        torch.as_tensor(pack.tokens_T, dtype=torch.int64),
        torch.as_tensor(pack.positions_T, dtype=torch.int64),
        torch.as_tensor(pack.sample_ids_D, dtype=torch.int64).repeat_interleave(starts.diff()),
        tuple(starts.tolist()),
        rows_N,
        targets[rows_N],
        getattr(pack, "spans", alone),
        None if weights_T is None else torch.as_tensor(weights_T, dtype=torch.float32)[rows_N],
    )
