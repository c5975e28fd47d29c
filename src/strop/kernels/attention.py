"""Causal attention inside documents: a token sees itself and what came before it in its own document, nothing else.

    y_t = Σ_{u ≤ t, same document} softmax_u(q_t · k_u / √E) v_u

A pack's documents lie one after another. Query heads share key-value heads in groups (Ainslie et al. 2023,
arXiv:2305.13245). The scores are never kept: backward makes them again from q, k and the logarithm of each row's sum,
ℓ_t = log Σ_u exp(q_t · k_u / √E) (Dao et al. 2022, arXiv:2205.14135):

    P_tu = exp(q_t · k_u / √E − ℓ_t)      dv_u = Σ_t P_tu dy_t      dS_tu = P_tu (dy_t · v_u − dy_t · y_t)
    dq_t = Σ_u dS_tu k_u / √E             dk_u = Σ_t dS_tu q_t / √E

How scores are made otherwise (caps, windows, ALiBi) is said by a `Scoring`; what is not plain is computed by
`strop.kernels.attention_scores`.

`attention` is the differentiable reference, and `attend_cached` is its form for generation. `attend` and
`attend_backward` are the pair of the training engine: into memory that the caller gives, and with documents that
continue a shared prefix, which stands in the pack once. A document that continues a prefix sees all of it; the
gradients of the prefix's k and v are sums over the documents that do. They are native (native/attention.c) where the
library is there: forward and backward over 2,048 tokens in documents of 150 to 350, with 9 heads of 64
over 3 key-value heads, took 18 ms on two Zen 4 cores with OpenBLAS' products of tiles, and torch's fused attention and
its gradient 45; its own products have since taken a fifth off (docs/log.md).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import chain, pairwise

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from strop.kernels import library, select
from strop.kernels.attention_scores import (
    PLAIN,
    Scoring,
    Span,
    attend_blocks,
    attend_blocks_backward,
    explicit_attention,
)

__all__ = ["PLAIN", "Scoring", "Span", "attend", "attend_backward", "attend_cached", "attention"]


def attention(q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor, starts: Sequence[int], scoring: Scoring = PLAIN) -> Tensor:
    """Attention over the documents of a pack.

    Args:
        q_THE: queries [T, H, E], rotated.
        k_TKE: keys [T, K, E], rotated; K divides H.
        v_TKE: values [T, K, E].
        starts: offsets of the documents and, last, T.
        scoring: how scores are made.

    Returns:
        [T, H, E].
    """
    grouped = q_THE.shape[1] != k_TKE.shape[1]
    lengths = [end - start for start, end in pairwise(starts)]
    causal = scoring.is_causal(max(lengths, default=0))
    outputs = []
    # Split once: the gradient of a slice is a pack of zeros for every document, which cost 8 % of a step.
    for documents in zip(*(part.split(lengths) for part in (q_THE, k_TKE, v_TKE)), strict=True):
        if not causal:
            outputs.append(explicit_attention(documents[0], documents[1], documents[2], scoring))
            continue
        q_HLE, k_KLE, v_KLE = (part.transpose(0, 1)[None] for part in documents)
        y_HLE = scaled_dot_product_attention(
            q_HLE, k_KLE, v_KLE, is_causal=True, enable_gqa=grouped, scale=scoring.scale
        )
        outputs.append(y_HLE[0].transpose(0, 1))
    return torch.cat(outputs)


def attend_cached(
    q_BHE: Tensor, k_BKLE: Tensor, v_BKLE: Tensor, distance_BL: Tensor, scoring: Scoring = PLAIN
) -> Tensor:
    """Attention of one new token a sequence over cached keys and values, for generation.

    Args:
        q_BHE: the new tokens' queries [B, H, E], rotated.
        k_BKLE: cached keys [B, K, L, E], the new token's included.
        v_BKLE: cached values [B, K, L, E].
        distance_BL: int64 [B, L], how far each place lies behind the new token; negative where nothing is filled in.
        scoring: how scores are made.

    Returns:
        [B, H, E].
    """
    if scoring.softcap is not None or scoring.slopes_H is not None:
        q_BKGE = q_BHE.unflatten(1, (k_BKLE.shape[1], -1))
        products_BKGL = (q_BKGE @ k_BKLE.mT) * scoring.factor(q_BHE.shape[-1])
        # Sequences take the place of rows, whose distances are their own.
        scores_KGBL, _ = scoring.scores(products_BKGL.permute(1, 2, 0, 3), distance_BL)
        return (scores_KGBL.softmax(dim=-1).permute(2, 0, 1, 3) @ v_BKLE).flatten(1, 2)
    grouped = q_BHE.shape[1] != k_BKLE.shape[1]
    y_BH1E = scaled_dot_product_attention(
        *(q_BHE[:, :, None], k_BKLE, v_BKLE),
        attn_mask=scoring.visible(distance_BL)[:, None, None],
        enable_gqa=grouped,
        scale=scoring.scale,
    )
    return y_BH1E[:, :, 0]


def attend(
    qkv_TO: Tensor,
    spans: Sequence[Span],
    heads: int,
    kv_heads: int,
    out_TQ: Tensor,
    row_sums_HT: Tensor,
    scoring: Scoring = PLAIN,
) -> None:
    """Attention over the documents of a pack, into memory that is given.

    Args:
        qkv_TO: [T, (H + 2K) · E]: queries, keys and values side by side, head by head, queries and keys rotated.
        spans: the documents, in order; together all T rows.
        heads: H.
        kv_heads: K, which divides H.
        out_TQ: [T, H · E], written.
        row_sums_HT: float32 [H, T], written with ℓ for `attend_backward` where that needs it.
        scoring: how scores are made.

    Raises:
        MemoryError: the native library got no memory to work in.
    """
    if not scoring.is_causal(max((span.seen for span in spans), default=0)):
        with torch.no_grad():
            attend_blocks(qkv_TO, spans, heads, kv_heads, scoring, out_TQ, row_sums_HT)
        return
    width = _head_width(qkv_TO, heads, kv_heads)
    if _is_native(qkv_TO, out_TQ, row_sums_HT):
        failed = library.function("attend", "plplllldplpl", "i")(
            *(qkv_TO.data_ptr(), qkv_TO.stride(0), _span_numbers(spans), len(spans)),
            *(heads, kv_heads, width, scoring.factor(width)),
            *(out_TQ.data_ptr(), out_TQ.stride(0), row_sums_HT.data_ptr(), row_sums_HT.stride(0)),
        )
        _check(failed)
        return
    with torch.no_grad():
        for span in spans:
            q_LHE, k_VKE, v_VKE = _seen(qkv_TO, span, heads, kv_heads)
            out_TQ[span.start : span.end] = _continue(q_LHE, k_VKE, v_VKE, scoring.scale).flatten(1)


def attend_backward(
    qkv_TO: Tensor,
    out_TQ: Tensor,
    grad_TQ: Tensor,
    row_sums_HT: Tensor,
    spans: Sequence[Span],
    heads: int,
    kv_heads: int,
    grad_qkv_TO: Tensor,
    scoring: Scoring = PLAIN,
) -> None:
    """The gradient of `attend`, by the choice of library that its forward pass was made with.

    Args:
        qkv_TO: what `attend` was given.
        out_TQ: what it wrote.
        grad_TQ: gradient of ``out_TQ`` [T, H · E].
        row_sums_HT: what it wrote.
        spans: what it was given.
        heads: H.
        kv_heads: K.
        grad_qkv_TO: [T, (H + 2K) · E], all of it overwritten; overlaps no other.
        scoring: what it was given.

    Raises:
        MemoryError: the native library got no memory to work in.
    """
    if not scoring.is_causal(max((span.seen for span in spans), default=0)):
        with torch.no_grad():
            attend_blocks_backward(
                *(qkv_TO, out_TQ, grad_TQ, row_sums_HT, spans, heads, kv_heads, scoring, grad_qkv_TO)
            )
        return
    width = _head_width(qkv_TO, heads, kv_heads)
    if _is_native(qkv_TO, out_TQ, grad_TQ, row_sums_HT, grad_qkv_TO):
        failed = library.function("attend_backward", "plplplplplllldpl", "i")(
            *(qkv_TO.data_ptr(), qkv_TO.stride(0), out_TQ.data_ptr(), out_TQ.stride(0)),
            *(grad_TQ.data_ptr(), grad_TQ.stride(0), row_sums_HT.data_ptr(), row_sums_HT.stride(0)),
            *(_span_numbers(spans), len(spans), heads, kv_heads, width, scoring.factor(width)),
            *(grad_qkv_TO.data_ptr(), grad_qkv_TO.stride(0)),
        )
        _check(failed)
        return
    for span in spans:
        _span_backward(qkv_TO, grad_TQ, span, heads, kv_heads, grad_qkv_TO, scoring.scale)


def _is_native(*tensors: Tensor) -> bool:
    return select.uses_native(*tensors)


def _head_width(qkv_TO: Tensor, heads: int, kv_heads: int) -> int:
    return qkv_TO.shape[1] // (heads + 2 * kv_heads)


def _span_numbers(spans: Sequence[Span]) -> ctypes.Array[ctypes.c_int64]:
    numbers = chain.from_iterable((span.start, span.end, span.prefix_start, span.prefix_end) for span in spans)
    return (ctypes.c_int64 * (4 * len(spans)))(*numbers)


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("attention got no memory to work in")


def _seen(qkv_TO: Tensor, span: Span, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """A document's queries [L, H, E], and the keys and values [V, K, E] that it sees, its prefix's first."""
    width = _head_width(qkv_TO, heads, kv_heads)
    rows = [qkv_TO[span.start : span.end]]
    if span.prefix_end > span.prefix_start:
        rows.insert(0, qkv_TO[span.prefix_start : span.prefix_end])
    q_LHE = rows[-1][:, : heads * width].unflatten(1, (heads, width))
    kv_VKE = torch.cat([part[:, heads * width :] for part in rows]).unflatten(1, (2 * kv_heads, width))
    return q_LHE, kv_VKE[:, :kv_heads], kv_VKE[:, kv_heads:]


def _continue(q_LHE: Tensor, k_VKE: Tensor, v_VKE: Tensor, scale: float | None) -> Tensor:
    """Attention of a document's L rows over V keys, of which the last L are its own: [L, H, E]."""
    own, seen = q_LHE.shape[0], k_VKE.shape[0]
    mask_LV = None
    if seen > own:
        mask_LV = torch.ones(own, seen, dtype=torch.bool, device=q_LHE.device).tril(seen - own)
    q_HLE, k_KVE, v_KVE = (part.transpose(0, 1)[None] for part in (q_LHE, k_VKE, v_VKE))
    y_HLE = scaled_dot_product_attention(
        *(q_HLE, k_KVE, v_KVE),
        attn_mask=mask_LV,
        is_causal=mask_LV is None,
        enable_gqa=q_LHE.shape[1] != k_VKE.shape[1],
        scale=scale,
    )
    return y_HLE[0].transpose(0, 1)


def _span_backward(
    qkv_TO: Tensor, grad_TQ: Tensor, span: Span, heads: int, kv_heads: int, grad_qkv_TO: Tensor, scale: float | None
) -> None:
    """Overwrites a document's rows of ``grad_qkv_TO`` and adds to those of its prefix, which came before."""
    with torch.enable_grad():
        q_LHE, k_VKE, v_VKE = (part.detach().requires_grad_() for part in _seen(qkv_TO, span, heads, kv_heads))
        y_LQ = _continue(q_LHE, k_VKE, v_VKE, scale).flatten(1)
    grad_q_LHE, grad_k_VKE, grad_v_VKE = torch.autograd.grad(
        y_LQ, (q_LHE, k_VKE, v_VKE), grad_TQ[span.start : span.end]
    )
    queries = heads * q_LHE.shape[2]
    grad_kv_VO = torch.cat([grad_k_VKE, grad_v_VKE], dim=1).flatten(1)
    prefix = span.prefix_end - span.prefix_start
    grad_qkv_TO[span.start : span.end, :queries] = grad_q_LHE.flatten(1)
    grad_qkv_TO[span.start : span.end, queries:] = grad_kv_VO[prefix:]
    if prefix > 0:
        grad_qkv_TO[span.prefix_start : span.prefix_end, queries:] += grad_kv_VO[:prefix]
