"""What attention's kernels have in common: scores of products, who sees whom, where keys lie."""

from __future__ import annotations

import triton
import triton.language as tl

from strop.kernels.triton.maths import tanh


@triton.jit
def scores_of(product, distance, slope, scale, cap, SLOPED: tl.constexpr, CAPPED: tl.constexpr):
    """Scores as powers of two, and the slope that the cap gives them."""
    bend = 1.0
    if CAPPED:
        capped = tanh(product * (scale / cap))
        scores = capped * (cap * 1.4426950408889634)
        bend = 1.0 - capped * capped
    else:
        scores = product * (scale * 1.4426950408889634)
    if SLOPED:
        scores -= (slope * 1.4426950408889634) * distance.to(tl.float32)
    return scores, bend


@triton.jit
def visible(distance, window, WINDOWED: tl.constexpr):
    """What is seen from a distance."""
    seen = distance >= 0
    if WINDOWED:
        seen = seen & (distance < window)
    return seen


@triton.jit
def key_rows(position_N, start, prefix_start, prefix):
    """Rows of a document's keys by their positions: the prefix's, then its own."""
    return tl.where(position_N < prefix, prefix_start + position_N, start - prefix + position_N).to(tl.int64)
