"""`strop.kernels.rope.rotate_`: every head of a row in place, queries and keys in one launch.

    y = (x₁ cos pθ − x₂ sin pθ,  x₂ cos pθ + x₁ sin pθ)

A program turns some heads of one token; what stands behind the numbers that angles turn is not touched. Cosines and
sines are used in the precision that they come in; the reference rounds them to x's first.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from strop.kernels.triton.launch import blocks, on, width_of

_TILE = 1024


def rotate_(heads_THE: Tensor, cos_TE: Tensor, sin_TE: Tensor, *, inverse: bool, interleaved: bool) -> None:
    """Rotates heads [T, H, E]; tokens and heads may lie apart, cosines and sines [T, up to E/2] are contiguous."""
    rows, heads, _ = heads_THE.shape
    angles = cos_TE.shape[1]
    width = width_of(angles)
    tile = min(width_of(heads), max(1, _TILE // width))
    if rows and heads and angles:
        with on(heads_THE):
            rotate[(rows, blocks(heads, tile))](
                *(heads_THE, heads_THE.stride(0), heads_THE.stride(1), cos_TE, sin_TE, heads, angles),
                HEADS=tile,
                WIDTH=width,
                INTERLEAVED=interleaved,
                INVERSE=inverse,
                num_warps=4,
                enable_fp_fusion=False,
            )


@triton.jit
def rotate(
    x,
    x_row,
    x_head,
    cos,
    sin,
    heads,
    angles,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    INVERSE: tl.constexpr,
):
    """Pairs are neighbours (INTERLEAVED), or lie half the turned numbers apart."""
    row = tl.program_id(0).to(tl.int64)
    head_H = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    angle_W = tl.arange(0, WIDTH)
    within_W = angle_W < angles
    cos_W = tl.load(cos + row * angles + angle_W, mask=within_W, other=0.0).to(tl.float32)
    sin_W = tl.load(sin + row * angles + angle_W, mask=within_W, other=0.0).to(tl.float32)
    if INVERSE:
        sin_W = -sin_W
    if INTERLEAVED:
        first_W, apart = 2 * angle_W, 1
    else:
        first_W, apart = angle_W, angles
    inside_HW = (head_H < heads)[:, None] & within_W[None, :]
    first_HW = x + row * x_row + head_H[:, None].to(tl.int64) * x_head + first_W[None, :]
    one_HW = tl.load(first_HW, mask=inside_HW, other=0.0).to(tl.float32)
    two_HW = tl.load(first_HW + apart, mask=inside_HW, other=0.0).to(tl.float32)
    kind = x.dtype.element_ty
    tl.store(first_HW, (one_HW * cos_W[None, :] - two_HW * sin_W[None, :]).to(kind), mask=inside_HW)
    tl.store(first_HW + apart, (two_HW * cos_W[None, :] + one_HW * sin_W[None, :]).to(kind), mask=inside_HW)
