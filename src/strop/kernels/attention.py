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
gradients of the prefix's k and v are sums over the documents that do. Several implementations compute them, by name
(`available`, `use`), and whatever one cannot do goes to the next that can:

    native    native/attention.c, float32 and bfloat16 on a CPU; with AMX native/attention_amx.c
    triton    triton/attention.py, on CUDA devices, every scoring
    varlen    the FlashAttention that comes with torch, 16 bits on CUDA devices: attention_varlen.py
    sdpa      torch's fused attention, a document at a time: attention_documents.py
    plain     torch, a block of scores at a time, every scoring on every device: attention_scores.py

Forward and backward over 2,048 tokens in documents of 150 to 350, with 9 heads of 64 over 3 key-value heads, took the
native library 18 ms on two Zen 4 cores while its tiles were OpenBLAS' products, and torch's fused attention and its
gradient 45; products of its own have since taken a fifth off. On two cores of a Xeon it takes 11 ms in float32, 10 in
bfloat16, 3.0 in bfloat16 with AMX, and torch 39 in bfloat16; one document of 2,048 with 32 heads of 128 over 8 takes
437, 407, 75 and 300 (docs/log.md).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import chain, pairwise

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from strop.kernels import attention_varlen, library
from strop.kernels.attention_choice import available, chosen, use, using
from strop.kernels.attention_documents import attend_documents, attend_documents_backward
from strop.kernels.attention_scores import (
    PLAIN,
    Scoring,
    Span,
    attend_blocks,
    attend_blocks_backward,
    explicit_attention,
)

__all__ = [
    "PLAIN",
    "Scoring",
    "Span",
    "attend",
    "attend_backward",
    "attend_cached",
    "attention",
    "available",
    "use",
    "using",
]


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
    width = _head_width(qkv_TO, heads, kv_heads)
    name = chosen(width, spans, scoring, qkv_TO, out_TQ, row_sums_HT=row_sums_HT)
    with torch.no_grad():
        match name:
            case "native":
                failed = library.function("attend", "iplplllldplpl", "i")(
                    *(_kind(qkv_TO), qkv_TO.data_ptr(), qkv_TO.stride(0), _span_numbers(spans), len(spans)),
                    *(heads, kv_heads, width, scoring.factor(width)),
                    *(out_TQ.data_ptr(), out_TQ.stride(0), row_sums_HT.data_ptr(), row_sums_HT.stride(0)),
                )
                _check(failed)
            case "triton":
                from strop.kernels.triton import attention as kernels

                kernels.attend(qkv_TO, spans, heads, kv_heads, scoring, out_TQ, row_sums_HT)
            case "varlen":
                attention_varlen.attend(qkv_TO, spans, heads, kv_heads, scoring, out_TQ, row_sums_HT)
            case "sdpa":
                attend_documents(qkv_TO, spans, heads, kv_heads, scoring.scale, out_TQ)
            case _:
                attend_blocks(qkv_TO, spans, heads, kv_heads, scoring, out_TQ, row_sums_HT)


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
    width = _head_width(qkv_TO, heads, kv_heads)
    name = chosen(width, spans, scoring, qkv_TO, out_TQ, grad_TQ, grad_qkv_TO, row_sums_HT=row_sums_HT)
    given = (qkv_TO, out_TQ, grad_TQ, row_sums_HT, spans, heads, kv_heads, scoring, grad_qkv_TO)
    match name:
        case "native":
            failed = library.function("attend_backward", "iplplplplplllldpl", "i")(
                *(_kind(qkv_TO), qkv_TO.data_ptr(), qkv_TO.stride(0), out_TQ.data_ptr(), out_TQ.stride(0)),
                *(grad_TQ.data_ptr(), grad_TQ.stride(0), row_sums_HT.data_ptr(), row_sums_HT.stride(0)),
                *(_span_numbers(spans), len(spans), heads, kv_heads, width, scoring.factor(width)),
                *(grad_qkv_TO.data_ptr(), grad_qkv_TO.stride(0)),
            )
            _check(failed)
        case "triton":
            from strop.kernels.triton import attention as kernels

            kernels.attend_backward(*given)
        case "varlen":
            attention_varlen.attend_backward(*given)
        case "sdpa":
            attend_documents_backward(qkv_TO, grad_TQ, spans, heads, kv_heads, scoring.scale, grad_qkv_TO)
        case _:
            with torch.no_grad():
                attend_blocks_backward(*given)


def _head_width(qkv_TO: Tensor, heads: int, kv_heads: int) -> int:
    return qkv_TO.shape[1] // (heads + 2 * kv_heads)


def _kind(qkv_TO: Tensor) -> int:
    """What the native library calls the type of what it reads and writes."""
    return 0 if qkv_TO.dtype is torch.float32 else 1


def _span_numbers(spans: Sequence[Span]) -> ctypes.Array[ctypes.c_int64]:
    numbers = chain.from_iterable((span.start, span.end, span.prefix_start, span.prefix_end) for span in spans)
    return (ctypes.c_int64 * (4 * len(spans)))(*numbers)


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("attention got no memory to work in")
