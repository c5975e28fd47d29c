"""The QLoRA linear for few rows: NF4 undone tile by tile on the way into the product, never written to memory.

    y = x Wᵀ + (s · m(x) Aᵀ) Bᵀ          (added to what is there, where the residual stream asks for it)

A program makes M rows by N outputs. It goes through the inputs 64 at a time, which is one block of NF4 for each output:
one scale a row of the tile. The values are those of `strop.kernels.nf4`, rounded to x's dtype; only the order of the
sum differs from the matrix library's. Programs that share outputs each undo the same weights, so that this pays where
rows are few: `strop.kernels.qlora_linear.fuse_up_to` says up to how many, and until a measurement says so, none.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from strop.kernels.nf4 import BLOCK, NF4Tensor, tables
from strop.kernels.triton import tuning
from strop.kernels.triton.launch import blocks, on, width_of
from strop.kernels.triton.nf4 import codes_of, scales, words

# With one stage nothing is on its way while a tile is multiplied. With more the values that codes stand for, 64 bytes
# that lie in the first-level cache, are copied to shared memory one by one; without, Triton 3.9 reads a block's scale
# once a weight (benchmarks/gpu_compiled.py). Measuring decides.
CONFIGS = (
    tuning.Config({"M": 16, "N": 64}, warps=4, stages=3),
    tuning.Config({"M": 16, "N": 64}, warps=4, stages=1),
    tuning.Config({"M": 64, "N": 64}, warps=4, stages=1),
    tuning.Config({"M": 64, "N": 128}, warps=8, stages=1),
)
_LEAST = 16


def can(weight: NF4Tensor) -> bool:
    """Whether every row of a weight [O, I] begins a block."""
    return len(weight.shape) == 2 and weight.shape[1] % BLOCK == 0


def product(
    x_TI: Tensor, weight: NF4Tensor, out_TO: Tensor, down_TR: Tensor | None, b_OR: Tensor | None, *, add: bool
) -> None:
    """Writes x Wᵀ, or adds it, and the adapter's part with it. Rows may lie apart.

    Args:
        x_TI: [T, I].
        weight: NF4 [O, I]; see `can`.
        out_TO: [T, O].
        down_TR: s · m(x) Aᵀ [T, R], or None without an adapter.
        b_OR: B [O, R] in x's dtype, contiguous.
        add: adds instead of writing.
    """
    rows, inputs = x_TI.shape
    outputs = weight.shape[0]
    if not rows or not outputs:
        return
    ranks = 0 if down_TR is None or b_OR is None else b_OR.shape[1]
    config = tuning.chosen("qlora.product", CONFIGS, x_TI.device, x_TI.dtype)
    down, b = (x_TI, x_TI) if down_TR is None or b_OR is None else (down_TR, b_OR)
    with on(x_TI):
        multiply[(blocks(rows, config.sizes["M"]), blocks(outputs, config.sizes["N"]))](
            *(x_TI, x_TI.stride(0), words(weight.packed), weight.absmax8, weight.nested_absmax, weight.offset),
            *(*tables(x_TI.device), down, down.stride(0), b, out_TO, out_TO.stride(0)),
            *(rows, outputs, inputs, ranks),
            RANKS=max(width_of(ranks), _LEAST) if ranks else 0,
            ADD=add,
            K=BLOCK,
            **config.arguments(),
        )


@triton.jit(do_not_specialize=["rows"])
def multiply(
    x,
    x_row,
    packed,
    absmax8,
    nested,
    offset,
    code,
    dynamic,
    down,
    down_row,
    b,
    out,
    out_row,
    rows,
    outputs,
    inputs,
    ranks,
    RANKS: tl.constexpr,
    ADD: tl.constexpr,
    K: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """M rows by N outputs."""
    row_M = tl.program_id(0) * M + tl.arange(0, M)
    output_N = tl.program_id(1) * N + tl.arange(0, N)
    within_M, within_N = row_M < rows, output_N < outputs
    row_M, output_N = row_M.to(tl.int64), output_N.to(tl.int64)
    place_K, place_C = tl.arange(0, K), tl.arange(0, K // 8)
    y_MN = tl.zeros((M, N), tl.float32)
    for begin in range(0, inputs, K):
        x_MK = tl.load(x + row_M[:, None] * x_row + begin + place_K[None, :], mask=within_M[:, None], other=0.0)
        first_N = output_N * inputs + begin
        scale_N = scales(absmax8, nested, offset, dynamic, first_N // K, within_N)
        word_NC = tl.load(packed + (first_N // 8)[:, None] + place_C[None, :], mask=within_N[:, None], other=0)
        value_NCP = tl.load(code + codes_of(word_NC)) * scale_N[:, None, None]
        weight_NK = tl.reshape(value_NCP.to(x_MK.dtype), (N, K))
        y_MN += tl.dot(x_MK, tl.trans(weight_NK), input_precision="ieee")
    if RANKS > 0:
        rank_R = tl.arange(0, RANKS)
        within_R = (rank_R < ranks)[None, :]
        down_MR = tl.load(
            down + row_M[:, None] * down_row + rank_R[None, :], mask=within_M[:, None] & within_R, other=0.0
        )
        b_NR = tl.load(b + output_N[:, None] * ranks + rank_R[None, :], mask=within_N[:, None] & within_R, other=0.0)
        y_MN += tl.dot(down_MR, tl.trans(b_NR), input_precision="ieee")
    y = out + row_M[:, None] * out_row + output_N[None, :]
    inside_MN = within_M[:, None] & within_N[None, :]
    if ADD:
        y_MN += tl.load(y, mask=inside_MN, other=0.0).to(tl.float32)
    tl.store(y, y_MN.to(out.dtype.element_ty), mask=inside_MN)
