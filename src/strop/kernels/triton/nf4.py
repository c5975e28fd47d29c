"""`strop.kernels.nf4`: both levels of the quantisation undone in one pass, into memory that is given.

    absmax_b = dynamic[absmax8_b] · nested[b / 256] + offset        weight = code[4 bits] · absmax_b

A program makes some blocks of 64 weights. Products and sums are not contracted, so that the float32 values are those of
the reference, bit by bit; in 16 bits they are those, rounded.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from strop.kernels.triton import tuning
from strop.kernels.triton.launch import blocks, on

CONFIGS = (
    tuning.Config({"BLOCKS": 64}, warps=4, fused=False),
    tuning.Config({"BLOCKS": 32}, warps=4, fused=False),
    tuning.Config({"BLOCKS": 128}, warps=8, fused=False),
)


def dequantize(
    packed: Tensor,
    absmax8: Tensor,
    nested_absmax: Tensor,
    offset: Tensor,
    code: Tensor,
    dynamic: Tensor,
    first_block: int,
    out: Tensor,
) -> None:
    """Writes weights from a block on into a flat tensor.

    Args:
        packed: uint8, the whole tensor's codes.
        absmax8: uint8, the whole tensor's.
        nested_absmax: float32, the whole tensor's.
        offset: float32 scalar.
        code: float32 [16].
        dynamic: float32 [256].
        first_block: the first block of 64 weights.
        out: contiguous, as many numbers as are wanted.
    """
    count = out.numel()
    if not count:
        return
    config = tuning.chosen("nf4.dequantize", CONFIGS, out.device, out.dtype)
    with on(out):
        weights[(blocks(count, 64 * config.sizes["BLOCKS"]),)](
            *(packed, absmax8, nested_absmax, offset, code, dynamic, out, count, first_block),
            **config.arguments(),
        )


@triton.jit
def scales(absmax8, nested, offset, dynamic, number, inside):
    """absmax of blocks, by their numbers."""
    step = tl.load(dynamic + tl.load(absmax8 + number, mask=inside, other=0).to(tl.int32))
    return step * tl.load(nested + number // 256, mask=inside, other=0.0) + tl.load(offset)


@triton.jit
def weights(packed, absmax8, nested, offset, code, dynamic, out, count, first_block, BLOCKS: tl.constexpr):
    """Some blocks; a tensor's last one may be partial."""
    block_B = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    scale_B = scales(absmax8, nested, offset, dynamic, first_block + block_B, block_B * 64 < count)
    byte_BC = block_B[:, None] * 32 + tl.arange(0, 32)[None, :]
    pair_BC = tl.load(packed + first_block * 32 + byte_BC, mask=2 * byte_BC < count, other=0).to(tl.int32)
    value_BW = tl.interleave(tl.load(code + (pair_BC >> 4)), tl.load(code + (pair_BC & 15))) * scale_B[:, None]
    place_BW = block_B[:, None] * 64 + tl.arange(0, 64)[None, :]
    tl.store(out + place_BW, value_BW.to(out.dtype.element_ty), mask=place_BW < count)
