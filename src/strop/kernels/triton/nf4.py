"""`strop.kernels.nf4`: both levels of the quantisation undone in one pass, into memory that is given.

    absmax_b = dynamic[absmax8_b] · nested[b / 256] + offset        weight = code[4 bits] · absmax_b

A program makes some blocks of 64 weights. Eight of them, four bytes, are read at a time: byte by byte it took 18
instructions a weight on Hopper, as many as its multiprocessors issue while their memory moves the weight, and so takes
11. Products and sums are not contracted, so that the float32 values are those of the reference, bit by bit; in 16 bits
they are those, rounded.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from strop.kernels.triton import tuning
from strop.kernels.triton.launch import blocks, on

CONFIGS = (
    tuning.Config({"BLOCKS": 64}, warps=4, fused=False),
    tuning.Config({"BLOCKS": 32}, warps=4, fused=False),
    tuning.Config({"BLOCKS": 128}, warps=4, fused=False),
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
            *(words(packed), absmax8, nested_absmax, offset, code, dynamic, out, count, first_block),
            **config.arguments(),
        )


def words(packed: Tensor) -> Tensor:
    """The bytes of a tensor four at a time; a copy where they are no whole words, which no projection's are."""
    if packed.numel() % 4 or packed.data_ptr() % 4:
        packed = pad(packed, (0, -packed.numel() % 4))
    return packed.view(torch.int32)


@triton.jit
def scales(absmax8, nested, offset, dynamic, number, inside):
    """absmax of blocks, by their numbers."""
    step = tl.load(dynamic + tl.load(absmax8 + number, mask=inside, other=0).to(tl.int32))
    return step * tl.load(nested + number // 256, mask=inside, other=0.0) + tl.load(offset)


@triton.jit
def codes_of(word_AC):
    """The eight codes of each word of four bytes [A, C, 8]: in each byte the first weight stands high."""
    place_P = tl.arange(0, 8)
    return (word_AC[:, :, None] >> ((place_P // 2) * 8 + 4 - (place_P % 2) * 4)[None, None, :]) & 15


@triton.jit(do_not_specialize=["first_block"])
def weights(packed, absmax8, nested, offset, code, dynamic, out, count, first_block, BLOCKS: tl.constexpr):
    """Some blocks of eight words each; a tensor's last one may be partial."""
    block_B = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    scale_B = scales(absmax8, nested, offset, dynamic, first_block + block_B, block_B * 64 < count)
    place_BC = block_B[:, None] * 8 + tl.arange(0, 8)[None, :]
    word_BC = tl.load(packed + first_block * 8 + place_BC, mask=8 * place_BC < count, other=0)
    value_BCP = tl.load(code + codes_of(word_BC)) * scale_B[:, None, None]
    place_BCP = place_BC[:, :, None] * 8 + tl.arange(0, 8)[None, None, :]
    tl.store(out + place_BCP, value_BCP.to(out.dtype.element_ty), mask=place_BCP < count)
