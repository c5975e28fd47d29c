"""A pack as the decoder takes it: tensors on its device, and the rows whose next token is learned."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

IGNORED = -100


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
    """

    tokens_T: Tensor
    positions_T: Tensor
    sample_ids_T: Tensor
    starts: tuple[int, ...]
    rows_N: Tensor
    targets_N: Tensor
    spans: tuple[tuple[int, int, int, int], ...]
    weights_N: Tensor | None = None

    @property
    def lengths_T(self) -> Tensor:
        """The length of each token's sample: int64 [T]. A beginning that samples share counts as the longest's."""
        lengths_T = torch.zeros_like(self.positions_T)
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
    targets = torch.as_tensor(pack.targets_T, dtype=torch.int64)
    rows_N = (targets != IGNORED).nonzero()[:, 0]
    starts = torch.as_tensor(pack.starts_D1, dtype=torch.int64)
    weights_T = getattr(pack, "weights_T", None)
    alone = tuple((start, end, start, start) for start, end in pairwise(starts.tolist()))
    return Batch(
        torch.as_tensor(pack.tokens_T, dtype=torch.int64).to(device),
        torch.as_tensor(pack.positions_T, dtype=torch.int64).to(device),
        torch.as_tensor(pack.sample_ids_D, dtype=torch.int64).repeat_interleave(starts.diff()).to(device),
        tuple(starts.tolist()),
        rows_N.to(device),
        targets[rows_N].to(device),
        getattr(pack, "spans", alone),
        None if weights_T is None else torch.as_tensor(weights_T, dtype=torch.float32)[rows_N].to(device),
    )
