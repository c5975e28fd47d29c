"""`strop.kernels.rms_norm` in one pass: a program holds whole rows.

    r = (mean(x²) + eps)^-½        y = w · (x r)        dx += r (g − x r² · mean(g · x)),   g = dy · w

A row of several times D numbers is normalised in pieces of D, the heads of queries and keys.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from strop.kernels.triton.launch import blocks, on, row_tile


def normalize(x_TI: Tensor, weight_D: Tensor, eps: float, out_TI: Tensor) -> None:
    """Writes the norm of every piece of x [T, pieces · D]. Rows may lie apart."""
    columns = len(weight_D)
    pieces = x_TI.shape[1] // columns
    rows, width, warps = row_tile(columns)
    count = len(x_TI) * pieces
    if count:
        with on(x_TI):
            forward[(blocks(count, rows),)](
                *(x_TI, x_TI.stride(0), weight_D, eps, out_TI, out_TI.stride(0), count, pieces, columns),
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
def forward(x, x_row, weight, eps, out, out_row, rows, pieces, columns, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The normalised piece is rounded before it is multiplied, as in the reference."""
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token_R, first_R = (row_R // pieces).to(tl.int64), (row_R % pieces) * columns
    place_W = tl.arange(0, WIDTH)
    inside_RW = (row_R < rows)[:, None] & (place_W < columns)[None, :]
    x_RW = tl.load(x + (token_R * x_row + first_R)[:, None] + place_W[None, :], mask=inside_RW, other=0.0)
    weight_W = tl.load(weight + place_W, mask=place_W < columns, other=0.0).to(x_RW.dtype)
    float_RW = x_RW.to(tl.float32)
    scale_R = tl.rsqrt(tl.sum(float_RW * float_RW, axis=1) / columns + eps)
    normal_RW = (float_RW * scale_R[:, None]).to(x_RW.dtype)
    y_RW = normal_RW.to(tl.float32) * weight_W.to(tl.float32)[None, :]
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
    inside_RW = (row_R < rows)[:, None] & (place_W < columns)[None, :]
    x_RW = tl.load(x + (token_R * x_row + first_R)[:, None] + place_W[None, :], mask=inside_RW, other=0.0)
    dy_RW = tl.load(grad + (token_R * grad_row + first_R)[:, None] + place_W[None, :], mask=inside_RW, other=0.0)
    weight_W = tl.load(weight + place_W, mask=place_W < columns, other=0.0).to(tl.float32)
    x_RW = x_RW.to(tl.float32)
    g_RW = dy_RW.to(tl.float32) * weight_W[None, :]
    scale_R = tl.rsqrt(tl.sum(x_RW * x_RW, axis=1) / columns + eps)
    along_R = scale_R * scale_R * scale_R * (tl.sum(g_RW * x_RW, axis=1) / columns)
    dx_RW = g_RW * scale_R[:, None] - x_RW * along_R[:, None]
    into_RW = into + (token_R * into_row + first_R)[:, None] + place_W[None, :]
    sum_RW = tl.load(into_RW, mask=inside_RW, other=0.0).to(tl.float32) + dx_RW
    tl.store(into_RW, sum_RW.to(into.dtype.element_ty), mask=inside_RW)
