"""16-bit numbers to the dtype that is computed in: how a head that is kept in 16 bits is read block by block.

To float32 that is exact. To bfloat16, what float16 has of more digits is rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from strop.kernels import library, select

# As in native/operations.h.
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def widen(x_half: Tensor, out: Tensor) -> Tensor:
    """Writes bfloat16 or float16 numbers into a tensor of the same shape and another dtype, and returns that."""
    kind = KINDS.get(x_half.dtype, 0)
    contiguous = x_half.is_contiguous() and out.is_contiguous() and x_half.shape == out.shape
    if kind and contiguous and x_half.is_cpu and (name := select.native_name("widen", out)):
        library.function(name, "pipl")(x_half.data_ptr(), kind, out.data_ptr(), x_half.numel())
        return out
    return out.copy_(x_half)
