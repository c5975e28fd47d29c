"""Attention of the training engine, a document at a time, by torch's fused attention: on every device, every dtype.

Of `Scoring` only the scale is understood here. The backward pass makes the forward pass again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from strop.kernels.attention_scores import Span


def attend_documents(
    qkv_TO: Tensor, spans: Sequence[Span], heads: int, kv_heads: int, scale: float | None, out_TQ: Tensor
) -> None:
    """`strop.kernels.attention.attend`; arguments as there. No row sums are needed."""
    for span in spans:
        q_LHE, k_VKE, v_VKE = _seen(qkv_TO, span, heads, kv_heads)
        out_TQ[span.start : span.end] = _continue(q_LHE, k_VKE, v_VKE, scale).flatten(1)


def attend_documents_backward(
    qkv_TO: Tensor,
    grad_TQ: Tensor,
    spans: Sequence[Span],
    heads: int,
    kv_heads: int,
    scale: float | None,
    grad_qkv_TO: Tensor,
) -> None:
    """`strop.kernels.attention.attend_backward`; arguments as there."""
    for span in spans:
        _span_backward(qkv_TO, grad_TQ, span, heads, kv_heads, grad_qkv_TO, scale)


def _seen(qkv_TO: Tensor, span: Span, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """A document's queries [L, H, E], and the keys and values [V, K, E] that it sees, its prefix's first."""
    width = qkv_TO.shape[1] // (heads + 2 * kv_heads)
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
