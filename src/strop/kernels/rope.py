"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), in the half-rotated layout of Llama, or in pairs of
neighbours as in the paper (ChatGLM).

For a head x = (x₁, x₂) of two halves, at position p, with angles θ [E/2]:

    y = (x₁ cos pθ − x₂ sin pθ,  x₂ cos pθ + x₁ sin pθ)

With neighbours x₁ is every even number and x₂ every odd one. Where there are fewer angles than E/2, what stands behind
the numbers that they rotate stays. A rotation: its gradient is the rotation back (and the same multiple of it, where
cosines and sines are those of a longer vector).

`rope` is the differentiable reference; `rotate_` does the same in place, forward or back, natively or by Triton
where `strop.kernels.select` says so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from strop.kernels import library, select


def rope(x_THE: Tensor, cos_TE: Tensor, sin_TE: Tensor, *, interleaved: bool = False) -> Tensor:
    """Rotates every head of x [T, H, E] by its token's angles; cos and sin are [T, up to E/2]."""
    result: Tensor = _Rope.apply(x_THE, cos_TE, sin_TE, interleaved)
    return result


class _Rope(torch.autograd.Function):
    """See the module's docstring."""

    @staticmethod
    def forward(ctx: Any, x_THE: Tensor, cos_TE: Tensor, sin_TE: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos_TE, sin_TE)
        ctx.interleaved = interleaved
        return _rotated(x_THE, cos_TE, sin_TE, interleaved)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos_TE, sin_TE = ctx.saved_tensors
        return _rotated(grads[0], cos_TE, -sin_TE, ctx.interleaved), None, None, None


def rotate_(
    heads_THE: Tensor, cos_TE: Tensor, sin_TE: Tensor, inverse: bool = False, *, interleaved: bool = False
) -> None:
    """Rotates heads in place, or back with ``inverse``.

    Args:
        heads_THE: [T, H, E]; tokens and heads may lie apart.
        cos_TE: cosines [T, up to E/2], contiguous.
        sin_TE: sines, likewise.
        inverse: the other way round: the gradient.
        interleaved: pairs are neighbours.
    """
    rows, heads, _ = heads_THE.shape
    together = cos_TE.is_contiguous() and sin_TE.is_contiguous()
    if together and select.uses_triton(heads_THE, cos_TE, sin_TE):
        from strop.kernels.triton import rope as kernels

        kernels.rotate_(heads_THE, cos_TE, sin_TE, inverse=inverse, interleaved=interleaved)
        return
    name = select.native_name("rotate", heads_THE)
    if together and name and select.uses_native(cos_TE, sin_TE):
        library.function(name, "pllpplllii")(
            *(heads_THE.data_ptr(), heads_THE.stride(0), heads_THE.stride(1), cos_TE.data_ptr(), sin_TE.data_ptr()),
            *(rows, heads, cos_TE.shape[1], interleaved, inverse),
        )
    else:
        rotated_THE = heads_THE[..., : 2 * cos_TE.shape[1]]
        rotated_THE.copy_(_rotated(rotated_THE, cos_TE, -sin_TE if inverse else sin_TE, interleaved))


def _rotated(x_THE: Tensor, cos_TE: Tensor, sin_TE: Tensor, interleaved: bool) -> Tensor:
    cos_T1E, sin_T1E = cos_TE[:, None].to(x_THE.dtype), sin_TE[:, None].to(x_THE.dtype)
    count = 2 * cos_TE.shape[1]
    y_THE = torch.empty(x_THE.shape, dtype=x_THE.dtype, device=x_THE.device)
    y_THE[..., count:] = x_THE[..., count:]
    first_THE, second_THE = _pairs(x_THE[..., :count], interleaved)
    y_first_THE, y_second_THE = _pairs(y_THE[..., :count], interleaved)
    torch.mul(first_THE, cos_T1E, out=y_first_THE).addcmul_(second_THE, sin_T1E, value=-1)
    torch.mul(second_THE, cos_T1E, out=y_second_THE).addcmul_(first_THE, sin_T1E)
    return y_THE


def _pairs(x_THE: Tensor, interleaved: bool) -> tuple[Tensor, ...]:
    return (x_THE[..., 0::2], x_THE[..., 1::2]) if interleaved else x_THE.chunk(2, dim=-1)
