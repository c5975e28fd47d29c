"""16-bit numbers to float32, exactly: how a head that is kept in 16 bits is read block by block."""

from __future__ import annotations

import torch
from torch import Tensor

from strop.kernels import library, select

# As in native/operations.h.
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def widen(x_half: Tensor, out_float: Tensor) -> Tensor:
    """Writes bfloat16 or float16 numbers into a float32 tensor of the same shape, and returns that."""
    kind = KINDS.get(x_half.dtype, 0)
    contiguous = x_half.is_contiguous() and out_float.is_contiguous() and x_half.shape == out_float.shape
    if kind and contiguous and x_half.is_cpu and select.uses_native(out_float):
        library.function("widen", "pipl")(x_half.data_ptr(), kind, out_float.data_ptr(), x_half.numel())
        return out_float
    return out_float.copy_(x_half)
