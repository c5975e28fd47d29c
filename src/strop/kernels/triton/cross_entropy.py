"""`strop.kernels.cross_entropy`: losses of rows of logits, and their gradient in place, one program a row.

    z = scale · x, capped: z = cap · tanh(scale · x / cap)      loss = logsumexp(z) − z_target
    dx = (softmax(z) − onehot(target)) · scale · (1 − (z / cap)²)

Once over the row for the largest number and the sum of exponentials, both carried along, and once more to write over
it; between the two a row of a large vocabulary stays in the second-level cache.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from strop.kernels.triton.launch import on, width_of
from strop.kernels.triton.maths import tanh

_WIDTH = 4096


def losses(
    logits_NV: Tensor, targets_N: Tensor, losses_N: Tensor, *, gradient: bool, scale: float, softcap: float | None
) -> None:
    """Writes losses, float64 [N]; with ``gradient`` the logits [N, V] become their gradient. Rows may lie apart."""
    rows, columns = logits_NV.shape
    if rows:
        with on(logits_NV):
            row_losses[(rows,)](
                *(logits_NV, logits_NV.stride(0), targets_N, losses_N, columns, scale, softcap or 1.0),
                GRADIENT=gradient,
                CAPPED=softcap is not None,
                WIDTH=min(_WIDTH, width_of(columns)),
                num_warps=8,
                enable_fp_fusion=False,
            )


@triton.jit
def row_losses(
    x,
    x_row,
    targets,
    losses,
    columns,
    scale,
    cap,
    GRADIENT: tl.constexpr,
    CAPPED: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One row. The target's logit is read before anything is written."""
    row = tl.program_id(0).to(tl.int64)
    begin = x + row * x_row
    target = tl.load(targets + row)
    place_W = tl.arange(0, WIDTH)
    # Every lane carries its own largest number and sum; they meet once, at the end.
    most_W = tl.full((WIDTH,), float("-inf"), tl.float32)
    sum_W = tl.zeros((WIDTH,), tl.float32)
    for first in range(0, columns, WIDTH):
        z_W = finish(tl.load(begin + first + place_W, mask=first + place_W < columns, other=0.0), scale, cap, CAPPED)
        z_W = tl.where(first + place_W < columns, z_W, float("-inf"))
        new_W = tl.maximum(most_W, z_W)
        # A lane beyond the last column has seen nothing yet: −∞ less −∞ is no number.
        safe_W = tl.where(new_W == float("-inf"), 0.0, new_W)
        sum_W = sum_W * tl.exp(most_W - safe_W) + tl.exp(z_W - safe_W)
        most_W = new_W
    most = tl.max(most_W, axis=0)
    total = most + tl.log(tl.sum(sum_W * tl.exp(most_W - most), axis=0))
    right = finish(tl.load(begin + target), scale, cap, CAPPED)
    tl.store(losses + row, (total - right).to(tl.float64))
    if GRADIENT:
        for first in range(0, columns, WIDTH):
            place = first + place_W
            raw_W = tl.load(begin + place, mask=place < columns, other=0.0)
            z_W = finish(raw_W, scale, cap, CAPPED)
            slope_W = (tl.exp(z_W - total) - tl.where(place == target, 1.0, 0.0)) * scale
            if CAPPED:
                slope_W *= 1.0 - (z_W / cap) * (z_W / cap)
            tl.store(begin + place, slope_W.to(x.dtype.element_ty), mask=place < columns)


@triton.jit
def finish(x, scale, cap, CAPPED: tl.constexpr):
    """A logit of what the product gave."""
    z = x.to(tl.float32) * scale
    if CAPPED:
        z = tanh(z / cap) * cap
    return z
