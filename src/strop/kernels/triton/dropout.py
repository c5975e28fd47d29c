"""`strop.kernels.dropout` without a mask in memory: each program makes the bits of its own elements.

keep[t, i] = hash(hash(key_t ⊕ salt) ⊕ hash(i)) ≥ p · 2^32            the same bits as everywhere, in 32-bit numbers
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from strop.kernels.triton.launch import blocks, on

_WIDTH = 1024


def drop(x_TI: Tensor, key_T: Tensor, salt: int, threshold: int, scale: float, out_TI: Tensor, *, add: bool) -> None:
    """Writes x, dropped and scaled, or adds it. Rows may lie apart.

    Args:
        x_TI: [T, I].
        key_T: int64 [T] of 32-bit numbers.
        salt: 32 bits.
        threshold: below it an element is dropped; 32 bits.
        scale: what the rest is multiplied with.
        out_TI: [T, I].
        add: adds instead of writing.
    """
    rows, columns = x_TI.shape
    if rows and columns:
        with on(x_TI):
            apply[(rows, blocks(columns, _WIDTH))](
                *(x_TI, x_TI.stride(0), key_T, _signed(salt), _signed(threshold), scale),
                *(out_TI, out_TI.stride(0), columns),
                ADD=add,
                WIDTH=_WIDTH,
                num_warps=4,
                enable_fp_fusion=False,
            )


def _signed(number: int) -> int:
    """The same 32 bits as a number that Triton takes for 32 bits whatever its size."""
    return number - (1 << 32) if number >= 1 << 31 else number


@triton.jit
def mix(bits):
    """`strop.kernels.random.hash32`, where products of 32-bit numbers lose what is above by themselves."""
    bits = bits ^ (bits >> 16)
    bits = bits * tl.full((), 0x7FEB352D, tl.uint32)
    bits = bits ^ (bits >> 15)
    bits = bits * tl.full((), 0x846CA68B, tl.uint32)
    return bits ^ (bits >> 16)


@triton.jit(do_not_specialize=["salt", "threshold"])
def apply(x, x_row, key, salt, threshold, scale, out, out_row, columns, ADD: tl.constexpr, WIDTH: tl.constexpr):
    """Some columns of a row; what is kept is rounded before it is added, as in the reference."""
    row = tl.program_id(0).to(tl.int64)
    place_W = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside_W = place_W < columns
    token = mix(tl.load(key + row).to(tl.uint32) ^ salt.to(tl.uint32, bitcast=True))
    bits_W = mix(mix(place_W.to(tl.uint32)) ^ token)
    x_W = tl.load(x + row * x_row + place_W, mask=inside_W, other=0.0)
    kept_W = tl.where(bits_W >= threshold.to(tl.uint32, bitcast=True), x_W.to(tl.float32) * scale, 0.0).to(x_W.dtype)
    out_W = out + row * out_row + place_W
    if ADD:
        kept_W = kept_W.to(tl.float32) + tl.load(out_W, mask=inside_W, other=0.0).to(tl.float32)
    tl.store(out_W, kept_W.to(out.dtype.element_ty), mask=inside_W)
