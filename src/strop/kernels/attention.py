"""Causal attention inside documents: a token sees itself and what came before it in its own document, nothing else.

    y_t = Σ_{u ≤ t, same document} softmax_u(q_t · k_u / √E) v_u

A pack's documents lie one after another; `starts` holds their offsets [0, …, T]. Query heads share key-value heads in
groups (Ainslie et al. 2023, arXiv:2305.13245). Each document is one call of torch's fused attention, which saves
q, k, v, y and the row sums, never the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def attention(q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor, starts: Sequence[int]) -> Tensor:
    """Attention over the documents of a pack.

    Args:
        q_THE: queries [T, H, E], rotated.
        k_TKE: keys [T, K, E], rotated; K divides H.
        v_TKE: values [T, K, E].
        starts: offsets of the documents and, last, T.

    Returns:
        [T, H, E].
    """
    grouped = q_THE.shape[1] != k_TKE.shape[1]
    lengths = [end - start for start, end in pairwise(starts)]
    outputs = []
    # Split once: the gradient of a slice is a pack of zeros for every document, which cost 8 % of a step.
    for documents in zip(*(part.split(lengths) for part in (q_THE, k_TKE, v_TKE)), strict=True):
        q_HLE, k_KLE, v_KLE = (part.transpose(0, 1)[None] for part in documents)
        y_HLE = scaled_dot_product_attention(q_HLE, k_KLE, v_KLE, is_causal=True, enable_gqa=grouped)
        outputs.append(y_HLE[0].transpose(0, 1))
    return torch.cat(outputs)


def attend_cached(q_BHE: Tensor, k_BKLE: Tensor, v_BKLE: Tensor, visible_BL: Tensor) -> Tensor:
    """Attention of one new token a sequence over cached keys and values, for generation.

    Args:
        q_BHE: the new tokens' queries [B, H, E], rotated.
        k_BKLE: cached keys [B, K, L, E], the new token's included.
        v_BKLE: cached values [B, K, L, E].
        visible_BL: bool [B, L], the filled places of each sequence.

    Returns:
        [B, H, E].
    """
    grouped = q_BHE.shape[1] != k_BKLE.shape[1]
    y_BH1E = scaled_dot_product_attention(
        q_BHE[:, :, None], k_BKLE, v_BKLE, attn_mask=visible_BL[:, None, None], enable_gqa=grouped
    )
    return y_BH1E[:, :, 0]
