"""`strop.kernels.layer_norm` in one pass: a program holds whole rows.

    n = (x − mean(x)) · r        r = (mean((x − mean(x))²) + eps)^-½        y = w · n + b
    dx += r (g − mean(g) − n · mean(g · n)),   g = dy · w

A row of several times D numbers is normalised in pieces of D, the heads of queries and keys.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from strop.kernels.triton.launch import blocks, on, row_tile


def normalize(x_TI: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, out_TI: Tensor) -> None:
    """Writes the norm of every piece of x [T, pieces · D]. Rows may lie apart."""
    columns = len(weight_D)
    pieces = x_TI.shape[1] // columns
    rows, width, warps = row_tile(columns)
    count = len(x_TI) * pieces
    if count:
        with on(x_TI):
            forward[(blocks(count, rows),)](
                *(x_TI, x_TI.stride(0), weight_D, bias_D, eps, out_TI, out_TI.stride(0), count, pieces, columns),
                ROWS=rows,
                WIDTH=width,
                num_warps=warps,
                enable_fp_fusion=False,
            )


def normalize_backward(grad_TI: Tensor, x_TI: Tensor, weight_D: Tensor, eps: float, into_TI: Tensor) -> None:
    """Adds the gradient of x to ``into_TI``. Rows may lie apart."""
    columns = len(weight_D)
    pieces = x_TI.shape[1] // columns
    rows, width, warps = row_tile(columns)
    count = len(x_TI) * pieces
    if count:
        with on(x_TI):
            backward[(blocks(count, rows),)](
                *(grad_TI, grad_TI.stride(0), x_TI, x_TI.stride(0), weight_D, eps, into_TI, into_TI.stride(0)),
                *(count, pieces, columns),
                ROWS=rows,
                WIDTH=width,
                num_warps=warps,
                enable_fp_fusion=False,
            )


@triton.jit(do_not_specialize=["rows"])
def forward(x, x_row, weight, bias, eps, out, out_row, rows, pieces, columns, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Rounds once, at the end, as the reference does."""
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token_R, first_R = (row_R // pieces).to(tl.int64), (row_R % pieces) * columns
    place_W = tl.arange(0, WIDTH)
    within_W = place_W < columns
    inside_RW = (row_R < rows)[:, None] & within_W[None, :]
    x_RW = tl.load(x + (token_R * x_row + first_R)[:, None] + place_W[None, :], mask=inside_RW, other=0.0)
    x_RW = x_RW.to(tl.float32)
    away_RW = tl.where(within_W[None, :], x_RW - (tl.sum(x_RW, axis=1) / columns)[:, None], 0.0)
    scale_R = tl.rsqrt(tl.sum(away_RW * away_RW, axis=1) / columns + eps)
    weight_W = tl.load(weight + place_W, mask=within_W, other=0.0).to(tl.float32)
    bias_W = tl.load(bias + place_W, mask=within_W, other=0.0).to(tl.float32)
    y_RW = away_RW * scale_R[:, None] * weight_W[None, :] + bias_W[None, :]
    tl.store(
        out + (token_R * out_row + first_R)[:, None] + place_W[None, :], y_RW.to(out.dtype.element_ty), mask=inside_RW
    )


@triton.jit(do_not_specialize=["rows"])
def backward(
    grad,
    grad_row,
    x,
    x_row,
    weight,
    eps,
    into,
    into_row,
    rows,
    pieces,
    columns,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Adds in float32 and rounds the sum."""
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token_R, first_R = (row_R // pieces).to(tl.int64), (row_R % pieces) * columns
    place_W = tl.arange(0, WIDTH)
    within_W = place_W < columns
    inside_RW = (row_R < rows)[:, None] & within_W[None, :]
    x_RW = tl.load(x + (token_R * x_row + first_R)[:, None] + place_W[None, :], mask=inside_RW, other=0.0)
    dy_RW = tl.load(grad + (token_R * grad_row + first_R)[:, None] + place_W[None, :], mask=inside_RW, other=0.0)
    x_RW = x_RW.to(tl.float32)
    away_RW = tl.where(within_W[None, :], x_RW - (tl.sum(x_RW, axis=1) / columns)[:, None], 0.0)
    scale_R = tl.rsqrt(tl.sum(away_RW * away_RW, axis=1) / columns + eps)
    normal_RW = away_RW * scale_R[:, None]
    g_RW = dy_RW.to(tl.float32) * tl.load(weight + place_W, mask=within_W, other=0.0).to(tl.float32)[None, :]
    along_R = tl.sum(g_RW * normal_RW, axis=1) / columns
    dx_RW = (g_RW - (tl.sum(g_RW, axis=1) / columns)[:, None] - normal_RW * along_R[:, None]) * scale_R[:, None]
    into_RW = into + (token_R * into_row + first_R)[:, None] + place_W[None, :]
    sum_RW = tl.load(into_RW, mask=inside_RW, other=0.0).to(tl.float32) + dx_RW
    tl.store(into_RW, sum_RW.to(into.dtype.element_ty), mask=inside_RW)
