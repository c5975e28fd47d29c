"""`strop.kernels.activation`: the MLP's unit, h = f(gate) · up or h = f(up), and its gradient in place.

    silu       f(g) = g σ(g)                  f'(g) = σ (1 + g (1 − σ))
    gelu       f(g) = g Φ(g)                  f'(g) = Φ + g φ(g)
    gelu_tanh  f(g) = g σ(2u)                 f'(g) = σ + g σ (1 − σ) 2u',     u = √(2/π) (g + 0.044715 g³)

since ½ (1 + tanh u) = σ(2u). A program reads some columns of one row and writes over them, so that gradients need no
memory of their own.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from strop.kernels.triton.launch import blocks, on

KINDS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}
_WIDTH = 1024


def apply(inputs_TG: Tensor, activation: str, out_TF: Tensor, *, gated: bool) -> None:
    """Writes the unit of [T, 2F], or of [T, F] without a gate. Rows may lie apart."""
    rows, columns = out_TF.shape
    if rows and columns:
        with on(inputs_TG):
            forward[(rows, blocks(columns, _WIDTH))](
                *(inputs_TG, inputs_TG.stride(0), out_TF, out_TF.stride(0), columns),
                KIND=KINDS[activation],
                GATED=gated,
                WIDTH=_WIDTH,
                num_warps=4,
                enable_fp_fusion=False,
            )


def apply_backward_(grad_TF: Tensor, inputs_TG: Tensor, activation: str, *, gated: bool) -> None:
    """Overwrites the inputs with their gradient. Rows may lie apart."""
    rows, columns = grad_TF.shape
    if rows and columns:
        with on(inputs_TG):
            backward[(rows, blocks(columns, _WIDTH))](
                *(grad_TF, grad_TF.stride(0), inputs_TG, inputs_TG.stride(0), columns),
                KIND=KINDS[activation],
                GATED=gated,
                WIDTH=_WIDTH,
                num_warps=4,
                enable_fp_fusion=False,
            )


@triton.jit
def share(x_W, KIND: tl.constexpr):
    """f(x) / x: σ(x), Φ(x) or σ(2u)."""
    if KIND == 0:
        share_W = tl.sigmoid(x_W)
    elif KIND == 1:
        share_W = 0.5 * (1.0 + tl.erf(x_W * 0.7071067811865476))
    else:
        share_W = tl.sigmoid(1.5957691216057308 * (x_W + 0.044715 * x_W * x_W * x_W))
    return share_W


@triton.jit
def slope(x_W, share_W, KIND: tl.constexpr):
    """f'(x), from f(x) / x."""
    if KIND == 0:
        slope_W = share_W * (1.0 + x_W * (1.0 - share_W))
    elif KIND == 1:
        slope_W = share_W + x_W * 0.3989422804014327 * tl.exp(-0.5 * x_W * x_W)
    else:
        inner_W = 1.5957691216057308 * (1.0 + 0.134145 * x_W * x_W)
        slope_W = share_W + x_W * share_W * (1.0 - share_W) * inner_W
    return slope_W


@triton.jit
def forward(x, x_row, out, out_row, columns, KIND: tl.constexpr, GATED: tl.constexpr, WIDTH: tl.constexpr):
    """Some columns of a row; f(gate) is rounded before it is multiplied, as in the reference."""
    row = tl.program_id(0).to(tl.int64)
    place_W = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside_W = place_W < columns
    raw_W = tl.load(x + row * x_row + place_W, mask=inside_W, other=0.0)
    x_W = raw_W.to(tl.float32)
    y_W = x_W * share(x_W, KIND)
    if GATED:
        up_W = tl.load(x + row * x_row + columns + place_W, mask=inside_W, other=0.0).to(tl.float32)
        y_W = y_W.to(raw_W.dtype).to(tl.float32) * up_W
    tl.store(out + row * out_row + place_W, y_W.to(out.dtype.element_ty), mask=inside_W)


@triton.jit
def backward(grad, grad_row, x, x_row, columns, KIND: tl.constexpr, GATED: tl.constexpr, WIDTH: tl.constexpr):
    """Some columns of a row, over the inputs."""
    row = tl.program_id(0).to(tl.int64)
    place_W = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside_W = place_W < columns
    kind = x.dtype.element_ty
    x_W = tl.load(x + row * x_row + place_W, mask=inside_W, other=0.0).to(tl.float32)
    dy_W = tl.load(grad + row * grad_row + place_W, mask=inside_W, other=0.0).to(tl.float32)
    share_W = share(x_W, KIND)
    dx_W = dy_W * slope(x_W, share_W, KIND)
    if GATED:
        up = x + row * x_row + columns + place_W
        up_W = tl.load(up, mask=inside_W, other=0.0).to(tl.float32)
        tl.store(up, (dy_W * x_W * share_W).to(kind), mask=inside_W)
        dx_W *= up_W
    tl.store(x + row * x_row + place_W, dx_W.to(kind), mask=inside_W)
