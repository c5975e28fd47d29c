"""`strop.kernels.attention` over documents and prefixes, without scores in memory, for every kind of `Scoring`.

    s = cap · tanh(scale · q·k / cap) − slope · distance           seen where 0 ≤ distance < window

    forward        a program a tile of queries and a head: keys in turn, largest score and sum carried along
    backward_q     the same walk with P = exp(s − ℓ):  dq += scale · dS k,  dS = P (dy·v − dy·y) (1 − tanh²)
    backward_kv    a program a tile of keys and a key-value head: all queries that see them, head by head

(Dao 2023, arXiv:2307.08691, algorithms 1 and 2, with dq in a pass of its own, so that nothing is added atomically.)
Scores are kept in powers of two, which is what a GPU exponentiates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from strop.kernels.attention_scores import Scoring, Span
from strop.kernels.triton import tuning
from strop.kernels.triton.attention_parts import key_rows, scores_of, visible
from strop.kernels.triton.attention_tiles import CONFIGS
from strop.kernels.triton.launch import generation, on, width_of
from strop.kernels.triton.spans import key_tiles, query_tiles

# The smallest side of a tile that is multiplied.
LEAST = 16


def attend(
    qkv_TO: Tensor,
    spans: Sequence[Span],
    heads: int,
    kv_heads: int,
    scoring: Scoring,
    out_TQ: Tensor,
    row_sums_HT: Tensor,
) -> None:
    """As `strop.kernels.attention.attend`; rows of all tensors may lie apart."""
    width = out_TQ.shape[1] // heads
    padded = max(width_of(width), LEAST)
    config = _config("attention.forward", padded, qkv_TO)
    tiles = query_tiles(tuple(spans), config.sizes["M"], qkv_TO.device)
    with on(qkv_TO):
        forward[(tiles.count, heads)](
            *(qkv_TO, qkv_TO.stride(0), tiles.numbers, out_TQ, out_TQ.stride(0), row_sums_HT, row_sums_HT.stride(0)),
            *_scores_of(scoring, width, row_sums_HT),
            *(heads, kv_heads, width),
            **_kinds_of(scoring),
            E=padded,
            **config.arguments(),
        )


def attend_backward(
    qkv_TO: Tensor,
    out_TQ: Tensor,
    grad_TQ: Tensor,
    row_sums_HT: Tensor,
    spans: Sequence[Span],
    heads: int,
    kv_heads: int,
    scoring: Scoring,
    grad_qkv_TO: Tensor,
) -> None:
    """As `strop.kernels.attention.attend_backward`; rows of all tensors may lie apart."""
    width = out_TQ.shape[1] // heads
    padded = max(width_of(width), LEAST)
    for_queries, for_keys = _config("attention.queries", padded, qkv_TO), _config("attention.keys", padded, qkv_TO)
    places, device = tuple(spans), qkv_TO.device
    queries = query_tiles(places, for_queries.sizes["M"], device)
    keys = key_tiles(places, for_keys.sizes["N"], device)
    along_HT = torch.empty(heads, len(qkv_TO), dtype=torch.float32, device=device)
    given: tuple[object, ...] = (
        *(qkv_TO, qkv_TO.stride(0), grad_TQ, grad_TQ.stride(0), row_sums_HT, row_sums_HT.stride(0)),
        *(along_HT, along_HT.stride(0), grad_qkv_TO, grad_qkv_TO.stride(0)),
    )
    rest = (*_scores_of(scoring, width, row_sums_HT), heads, kv_heads, width)
    with on(qkv_TO):
        outputs_along_gradients[(queries.count, heads)](
            *(out_TQ, out_TQ.stride(0), grad_TQ, grad_TQ.stride(0), along_HT, along_HT.stride(0)),
            *(queries.numbers, width),
            M=for_queries.sizes["M"],
            E=padded,
            num_warps=for_queries.warps,
            enable_fp_fusion=False,
        )
        backward_q[(queries.count, heads)](
            *given, queries.numbers, *rest, **_kinds_of(scoring), E=padded, **for_queries.arguments()
        )
        backward_kv[(keys.count, kv_heads)](
            *given, keys.numbers, keys.segments, *rest, **_kinds_of(scoring), E=padded, **for_keys.arguments()
        )


def _config(kernel: str, padded: int, qkv_TO: Tensor) -> tuning.Config:
    configs = CONFIGS[kernel](padded, qkv_TO.dtype, generation(qkv_TO.device))
    return tuning.chosen(kernel, configs, qkv_TO.device, padded, qkv_TO.dtype)


def _scores_of(scoring: Scoring, width: int, unused: Tensor) -> tuple[Tensor, float, float, int]:
    slopes_H = unused if scoring.slopes_H is None else scoring.slopes_H
    return slopes_H, scoring.factor(width), scoring.softcap or 1.0, scoring.window


def _kinds_of(scoring: Scoring) -> dict[str, bool]:
    return {
        "SLOPED": scoring.slopes_H is not None,
        "CAPPED": scoring.softcap is not None,
        "WINDOWED": scoring.window > 0,
    }


@triton.jit(do_not_specialize=["sums_row"])
def forward(
    qkv,
    qkv_row,
    tiles,
    out,
    out_row,
    sums,
    sums_row,
    slopes,
    scale,
    cap,
    window,
    heads,
    kv_heads,
    width,
    SLOPED: tl.constexpr,
    CAPPED: tl.constexpr,
    WINDOWED: tl.constexpr,
    E: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """Keys before the tile's first query are seen by all of it: the first loop masks nothing."""
    head = tl.program_id(1)
    tile = tiles + tl.program_id(0) * 5
    first, end, start = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    prefix_start, prefix = tl.load(tile + 3), tl.load(tile + 4)
    row_M = first + tl.arange(0, M)
    position_M = row_M - start + prefix
    place_E = tl.arange(0, E)
    inside_ME = (row_M < end)[:, None] & (place_E < width)[None, :]
    q = qkv + row_M.to(tl.int64)[:, None] * qkv_row + head * width + place_E[None, :]
    q_ME = tl.load(q, mask=inside_ME, other=0.0)
    kv_head = head // (heads // kv_heads)
    k = qkv + (heads + kv_head) * width
    v = qkv + (heads + kv_heads + kv_head) * width
    slope = 0.0
    if SLOPED:
        slope = tl.load(slopes + head)
    high = prefix + tl.minimum(first + M, end) - start
    low = 0
    middle = (prefix + first - start + 1) // N * N
    if WINDOWED:
        low = tl.maximum(prefix + first - start - window + 1, 0) // N * N
        middle = low
    most_M = tl.full((M,), float("-inf"), tl.float32)
    sum_M = tl.zeros((M,), tl.float32)
    y_ME = tl.zeros((M, E), tl.float32)
    for begin in range(low, middle, N):
        position_N = begin + tl.arange(0, N)
        row_N = key_rows(position_N, start, prefix_start, prefix)
        inside_NE = (place_E < width)[None, :]
        k_NE = tl.load(k + row_N[:, None] * qkv_row + place_E[None, :], mask=inside_NE, other=0.0)
        v_NE = tl.load(v + row_N[:, None] * qkv_row + place_E[None, :], mask=inside_NE, other=0.0)
        distance_MN = position_M[:, None] - position_N[None, :]
        product_MN = tl.dot(q_ME, tl.trans(k_NE), input_precision="ieee")
        s_MN, _ = scores_of(product_MN, distance_MN, slope, scale, cap, SLOPED, CAPPED)
        new_M = tl.maximum(most_M, tl.max(s_MN, axis=1))
        p_MN = tl.exp2(s_MN - new_M[:, None])
        fade_M = tl.exp2(most_M - new_M)
        sum_M = sum_M * fade_M + tl.sum(p_MN, axis=1)
        y_ME = y_ME * fade_M[:, None] + tl.dot(p_MN.to(v_NE.dtype), v_NE, input_precision="ieee")
        most_M = new_M
    for begin in range(middle, high, N):
        position_N = begin + tl.arange(0, N)
        row_N = key_rows(position_N, start, prefix_start, prefix)
        inside_NE = (position_N < high)[:, None] & (place_E < width)[None, :]
        k_NE = tl.load(k + row_N[:, None] * qkv_row + place_E[None, :], mask=inside_NE, other=0.0)
        v_NE = tl.load(v + row_N[:, None] * qkv_row + place_E[None, :], mask=inside_NE, other=0.0)
        distance_MN = position_M[:, None] - position_N[None, :]
        product_MN = tl.dot(q_ME, tl.trans(k_NE), input_precision="ieee")
        s_MN, _ = scores_of(product_MN, distance_MN, slope, scale, cap, SLOPED, CAPPED)
        s_MN = tl.where(visible(distance_MN, window, WINDOWED), s_MN, float("-inf"))
        new_M = tl.maximum(most_M, tl.max(s_MN, axis=1))
        # A row may have seen nothing yet: −∞ less −∞ is no number.
        safe_M = tl.where(new_M == float("-inf"), 0.0, new_M)
        p_MN = tl.exp2(s_MN - safe_M[:, None])
        fade_M = tl.exp2(most_M - safe_M)
        sum_M = sum_M * fade_M + tl.sum(p_MN, axis=1)
        y_ME = y_ME * fade_M[:, None] + tl.dot(p_MN.to(v_NE.dtype), v_NE, input_precision="ieee")
        most_M = new_M
    # Rows beyond the document's end are not stored; with a window they may have seen nothing.
    sum_M = tl.where(row_M < end, sum_M, 1.0)
    y_ME = y_ME / sum_M[:, None]
    y = out + row_M.to(tl.int64)[:, None] * out_row + head * width + place_E[None, :]
    tl.store(y, y_ME.to(out.dtype.element_ty), mask=inside_ME)
    log_M = (most_M + tl.log2(sum_M)) * 0.6931471805599453
    tl.store(sums + head * sums_row + row_M, log_M, mask=row_M < end)


@triton.jit(do_not_specialize=["along_row"])
def outputs_along_gradients(
    out, out_row, grad, grad_row, along, along_row, tiles, width, M: tl.constexpr, E: tl.constexpr
):
    """dy · y of every query and head, float32 [H, T]."""
    head = tl.program_id(1)
    tile = tiles + tl.program_id(0) * 5
    row_M = tl.load(tile) + tl.arange(0, M)
    within_M = row_M < tl.load(tile + 1)
    place_E = tl.arange(0, E)
    inside_ME = within_M[:, None] & (place_E < width)[None, :]
    place_ME = head * width + place_E[None, :]
    row_M1 = row_M.to(tl.int64)[:, None]
    y_ME = tl.load(out + row_M1 * out_row + place_ME, mask=inside_ME, other=0.0).to(tl.float32)
    dy_ME = tl.load(grad + row_M1 * grad_row + place_ME, mask=inside_ME, other=0.0).to(tl.float32)
    tl.store(along + head * along_row + row_M, tl.sum(y_ME * dy_ME, axis=1), mask=within_M)


@triton.jit(do_not_specialize=["sums_row", "along_row"])
def backward_q(
    qkv,
    qkv_row,
    grad,
    grad_row,
    sums,
    sums_row,
    along,
    along_row,
    grad_qkv,
    grad_qkv_row,
    tiles,
    slopes,
    scale,
    cap,
    window,
    heads,
    kv_heads,
    width,
    SLOPED: tl.constexpr,
    CAPPED: tl.constexpr,
    WINDOWED: tl.constexpr,
    E: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """The gradient of a tile of queries of one head."""
    head = tl.program_id(1)
    tile = tiles + tl.program_id(0) * 5
    first, end, start = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    prefix_start, prefix = tl.load(tile + 3), tl.load(tile + 4)
    row_M = first + tl.arange(0, M)
    position_M = row_M - start + prefix
    place_E = tl.arange(0, E)
    inside_ME = (row_M < end)[:, None] & (place_E < width)[None, :]
    place_ME = head * width + place_E[None, :]
    row_M1 = row_M.to(tl.int64)[:, None]
    q_ME = tl.load(qkv + row_M1 * qkv_row + place_ME, mask=inside_ME, other=0.0)
    dy_ME = tl.load(grad + row_M1 * grad_row + place_ME, mask=inside_ME, other=0.0)
    sum_M = tl.load(sums + head * sums_row + row_M, mask=row_M < end, other=float("inf")) * 1.4426950408889634
    along_M = tl.load(along + head * along_row + row_M, mask=row_M < end, other=0.0)
    kv_head = head // (heads // kv_heads)
    k = qkv + (heads + kv_head) * width
    v = qkv + (heads + kv_heads + kv_head) * width
    slope = 0.0
    if SLOPED:
        slope = tl.load(slopes + head)
    high = prefix + tl.minimum(first + M, end) - start
    low = 0
    if WINDOWED:
        low = tl.maximum(prefix + first - start - window + 1, 0) // N * N
    dq_ME = tl.zeros((M, E), tl.float32)
    for begin in range(low, high, N):
        position_N = begin + tl.arange(0, N)
        row_N = key_rows(position_N, start, prefix_start, prefix)
        inside_NE = (position_N < high)[:, None] & (place_E < width)[None, :]
        k_NE = tl.load(k + row_N[:, None] * qkv_row + place_E[None, :], mask=inside_NE, other=0.0)
        v_NE = tl.load(v + row_N[:, None] * qkv_row + place_E[None, :], mask=inside_NE, other=0.0)
        distance_MN = position_M[:, None] - position_N[None, :]
        product_MN = tl.dot(q_ME, tl.trans(k_NE), input_precision="ieee")
        s_MN, bend_MN = scores_of(product_MN, distance_MN, slope, scale, cap, SLOPED, CAPPED)
        s_MN = tl.where(visible(distance_MN, window, WINDOWED), s_MN, float("-inf"))
        p_MN = tl.exp2(s_MN - sum_M[:, None])
        dp_MN = tl.dot(dy_ME, tl.trans(v_NE), input_precision="ieee")
        ds_MN = p_MN * (dp_MN - along_M[:, None]) * bend_MN
        dq_ME += tl.dot(ds_MN.to(k_NE.dtype), k_NE, input_precision="ieee")
    tl.store(grad_qkv + row_M1 * grad_qkv_row + place_ME, (dq_ME * scale).to(grad_qkv.dtype.element_ty), mask=inside_ME)


@triton.jit(do_not_specialize=["sums_row", "along_row"])
def backward_kv(
    qkv,
    qkv_row,
    grad,
    grad_row,
    sums,
    sums_row,
    along,
    along_row,
    grad_qkv,
    grad_qkv_row,
    tiles,
    segments,
    slopes,
    scale,
    cap,
    window,
    heads,
    kv_heads,
    width,
    SLOPED: tl.constexpr,
    CAPPED: tl.constexpr,
    WINDOWED: tl.constexpr,
    E: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """The gradients of a tile of keys and values of one key-value head, summed in the order of segments and heads."""
    kv_head = tl.program_id(1)
    group = heads // kv_heads
    tile = tiles + tl.program_id(0) * 4
    first, end = tl.load(tile), tl.load(tile + 1)
    row_N = first + tl.arange(0, N)
    place_E = tl.arange(0, E)
    inside_NE = (row_N < end)[:, None] & (place_E < width)[None, :]
    row_N1 = row_N.to(tl.int64)[:, None]
    k_NE = (heads + kv_head) * width + place_E[None, :]
    v_NE = (heads + kv_heads + kv_head) * width + place_E[None, :]
    key_NE = tl.load(qkv + row_N1 * qkv_row + k_NE, mask=inside_NE, other=0.0)
    value_NE = tl.load(qkv + row_N1 * qkv_row + v_NE, mask=inside_NE, other=0.0)
    dk_NE = tl.zeros((N, E), tl.float32)
    dv_NE = tl.zeros((N, E), tl.float32)
    for number in range(tl.load(tile + 2), tl.load(tile + 3)):
        segment = segments + number * 5
        q_first, q_end, q_origin = tl.load(segment), tl.load(segment + 1), tl.load(segment + 2)
        k_origin, k_end = tl.load(segment + 3), tl.load(segment + 4)
        position_N = row_N - k_origin
        low = tl.maximum(q_first, first - k_origin + q_origin)
        high = q_end
        if WINDOWED:
            high = tl.minimum(q_end, tl.minimum(first + N, k_end) - 1 - k_origin + q_origin + window)
        for head in range(kv_head * group, kv_head * group + group):
            slope = 0.0
            if SLOPED:
                slope = tl.load(slopes + head)
            for begin in range(low, high, M):
                row_M = begin + tl.arange(0, M)
                inside_ME = (row_M < q_end)[:, None] & (place_E < width)[None, :]
                place_ME = head * width + place_E[None, :]
                row_M1 = row_M.to(tl.int64)[:, None]
                q_ME = tl.load(qkv + row_M1 * qkv_row + place_ME, mask=inside_ME, other=0.0)
                dy_ME = tl.load(grad + row_M1 * grad_row + place_ME, mask=inside_ME, other=0.0)
                sum_M = tl.load(sums + head * sums_row + row_M, mask=row_M < q_end, other=float("inf"))
                along_M = tl.load(along + head * along_row + row_M, mask=row_M < q_end, other=0.0)
                distance_NM = (row_M - q_origin)[None, :] - position_N[:, None]
                seen_NM = visible(distance_NM, window, WINDOWED) & (row_M < q_end)[None, :] & (row_N < k_end)[:, None]
                product_NM = tl.dot(key_NE, tl.trans(q_ME), input_precision="ieee")
                s_NM, bend_NM = scores_of(product_NM, distance_NM, slope, scale, cap, SLOPED, CAPPED)
                p_NM = tl.exp2(tl.where(seen_NM, s_NM, float("-inf")) - (sum_M * 1.4426950408889634)[None, :])
                dv_NE += tl.dot(p_NM.to(dy_ME.dtype), dy_ME, input_precision="ieee")
                dp_NM = tl.dot(value_NE, tl.trans(dy_ME), input_precision="ieee")
                ds_NM = p_NM * (dp_NM - along_M[None, :]) * bend_NM
                dk_NE += tl.dot(ds_NM.to(q_ME.dtype), q_ME, input_precision="ieee")
    kind = grad_qkv.dtype.element_ty
    tl.store(grad_qkv + row_N1 * grad_qkv_row + k_NE, (dk_NE * scale).to(kind), mask=inside_NE)
    tl.store(grad_qkv + row_N1 * grad_qkv_row + v_NE, dv_NE.to(kind), mask=inside_NE)
