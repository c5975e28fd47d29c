"""A pack as the decoder takes it: tensors on its device, and the rows whose next token is learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Batch:
    """A pack as tensors on the decoder's device.

    Attributes:
        tokens_T: int64 [T].
        positions_T: int64 [T], each token's place in its document.
        sample_ids_T: int64 [T], the sample each token belongs to; names its dropout.
        starts: offsets of the documents and, last, T.
        rows_N: int64 [N], rows whose next token is learned.
        targets_N: int64 [N], that next token.
    """

    tokens_T: Tensor
    positions_T: Tensor
    sample_ids_T: Tensor
    starts: tuple[int, ...]
    rows_N: Tensor
    targets_N: Tensor


def make_batch(
    tokens_T: Any,
    targets_T: Any,
    positions_T: Any,
    starts: Sequence[int],
    sample_ids_D: Any,
    device: torch.device | str = "cpu",
) -> Batch:
    """Moves a pack's integer arrays to a device and picks out its learned rows.

    Args:
        tokens_T: token ids [T].
        targets_T: the next token where it is learned, else -100 [T].
        positions_T: place of each token in its document [T].
        starts: offsets of the D documents and, last, T.
        sample_ids_D: the sample of each document [D].
        device: where the decoder lies.
    """
    targets = torch.as_tensor(targets_T, dtype=torch.int64)
    rows_N = (targets != IGNORED).nonzero()[:, 0]
    lengths_D = torch.as_tensor(starts, dtype=torch.int64).diff()
    return Batch(
        torch.as_tensor(tokens_T, dtype=torch.int64).to(device),
        torch.as_tensor(positions_T, dtype=torch.int64).to(device),
        torch.as_tensor(sample_ids_D, dtype=torch.int64).repeat_interleave(lengths_D).to(device),
        tuple(int(start) for start in starts),
        rows_N.to(device),
        targets[rows_N].to(device),
    )
