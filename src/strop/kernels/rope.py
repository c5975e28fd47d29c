"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), in the half-rotated layout of Llama.

For a head x = (x₁, x₂) of two halves, at position p, with angles θ [E/2]:

    y = (x₁ cos pθ − x₂ sin pθ,  x₂ cos pθ + x₁ sin pθ)

A rotation: its gradient is the rotation back.

`rope` is the differentiable reference; `rotate_` does the same in place, forward or back, natively where
`select.uses_native` says so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from strop.kernels import library, select


def rope(x_THE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """Rotates every head of x [T, H, E] by its token's angles; cos and sin are [T, E/2]."""
    result: Tensor = _Rope.apply(x_THE, cos_TE, sin_TE)
    return result


class _Rope(torch.autograd.Function):
    """See the module's docstring."""

    @staticmethod
    def forward(ctx: Any, x_THE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
        ctx.save_for_backward(cos_TE, sin_TE)
        return _rotate(x_THE, cos_TE, sin_TE)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos_TE, sin_TE = ctx.saved_tensors
        return _rotate(grads[0], cos_TE, -sin_TE), None, None


def rotate_(heads_THE: Tensor, cos_TE: Tensor, sin_TE: Tensor, inverse: bool = False) -> None:
    """Rotates heads in place, or back with ``inverse``.

    Args:
        heads_THE: [T, H, E]; tokens may lie apart, a token's heads lie together.
        cos_TE: cosines [T, E/2], contiguous.
        sin_TE: sines [T, E/2], contiguous.
        inverse: the other way round: the gradient.
    """
    rows, heads, size = heads_THE.shape
    together = heads_THE.stride(1) == size and cos_TE.is_contiguous() and sin_TE.is_contiguous()
    if together and select.uses_native(heads_THE, cos_TE, sin_TE):
        library.function("rotate", "plppllli")(
            *(heads_THE.data_ptr(), heads_THE.stride(0), cos_TE.data_ptr(), sin_TE.data_ptr()),
            *(rows, heads, size // 2, inverse),
        )
    else:
        heads_THE.copy_(_rotate(heads_THE, cos_TE, -sin_TE if inverse else sin_TE))


def _rotate(x_THE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    cos_T1E, sin_T1E = cos_TE[:, None].to(x_THE.dtype), sin_TE[:, None].to(x_THE.dtype)
    first_THE, second_THE = x_THE.chunk(2, dim=-1)
    y_THE = torch.empty(x_THE.shape, dtype=x_THE.dtype, device=x_THE.device)
    y_first_THE, y_second_THE = y_THE.chunk(2, dim=-1)
    torch.mul(first_THE, cos_T1E, out=y_first_THE).addcmul_(second_THE, sin_T1E, value=-1)
    torch.mul(second_THE, cos_T1E, out=y_second_THE).addcmul_(first_THE, sin_T1E)
    return y_THE
