"""What every launch needs: the right device, sizes of tiles, and a first kernel that shows that launching works."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

__all__ = ["TritonError", "blocks", "generation", "on", "row_tile", "runs", "width_of"]

# Numbers in the tile of a kernel that goes through rows.
_TILE = 2048
_NUMBERS_A_WARP = 512


def on(tensor: Tensor) -> AbstractContextManager[object]:
    """Launches inside happen on the tensor's device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@cache
def generation(device: torch.device) -> int:
    """The major compute capability of a device; 0 where kernels are interpreted."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0


def blocks(count: int, size: int) -> int:
    """How many tiles of a size cover ``count``."""
    return -(-count // size)


def width_of(columns: int) -> int:
    """The power of two that a row of a tile takes."""
    return 1 << max(columns - 1, 0).bit_length()


def row_tile(columns: int) -> tuple[int, int, int]:
    """For a kernel that holds whole rows: rows of a tile, their width, and warps."""
    width = width_of(columns)
    rows = max(1, _TILE // width)
    return rows, width, min(max(rows * width // _NUMBERS_A_WARP, 1), 16)


def runs(device: torch.device) -> bool:
    """Whether a kernel gives what it should.

    Raises:
        TritonError, RuntimeError, OSError, SubprocessError: it cannot be compiled or launched.
    """
    numbers = torch.arange(100, dtype=torch.float32, device=device)
    with on(numbers):
        add_one[(4,)](numbers, 100, SIZE=32)
    return float(numbers.sum()) == 99 * 50 + 100


@triton.jit
def add_one(numbers, count, SIZE: tl.constexpr):
    """Adds one to each of ``count`` numbers."""
    place = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    inside = place < count
    tl.store(numbers + place, tl.load(numbers + place, mask=inside) + 1.0, mask=inside)
