"""Attention of a layer, forward and backward: from the layer's input to what its queries gathered, and back.

qkv = normal W_qkv       q and k normed (Qwen 3, OLMo 2), then rotated       attended = attention(qkv)
"""

from __future__ import annotations

from torch import Tensor

from strop.kernels.attention import attend, attend_backward
from strop.kernels.rope import rotate_
from strop.model.decoder import QKV, Layer
from strop.model.spec import ATTENTION_NORM, KEY_NORM, QUERY_NORM
from strop.model.walk import Walk


def forward(walk: Walk, layer: Layer) -> Tensor:
    """What the queries of all tokens gathered: [T, H · E]."""
    spec = walk.spec
    normal_TD = walk.normalize(layer, ATTENTION_NORM, walk.input(layer.index), "attention_normal")
    qkv_TP = walk.piece(layer, "qkv", walk.tokens)
    walk.project(layer, QKV, normal_TD, qkv_TP)
    _normalize_heads(walk, layer, qkv_TP)
    _rotate(walk, layer, qkv_TP)
    attended_TQ, row_sums_HT = attended(walk, layer)
    scoring = walk.decoder.scoring[layer.index]
    attend(qkv_TP, walk.spans, spec.heads, spec.kv_heads, attended_TQ, row_sums_HT, scoring)
    return attended_TQ


def backward(walk: Walk, layer: Layer, grad_attended_TQ: Tensor, grad_TD: Tensor) -> None:
    """Adds to the gradient of the layer's input, given that of what was gathered."""
    spec, lowest = walk.spec, not walk.wanted_below(layer)
    qkv_TP, grad_qkv_TP = walk.piece(layer, "qkv", walk.tokens), walk.space.take("qkv_gradient", walk.tokens)
    attended_TQ, row_sums_HT = attended(walk, layer)
    scoring = walk.decoder.scoring[layer.index]
    attend_backward(
        *(qkv_TP, attended_TQ, grad_attended_TQ, row_sums_HT, walk.spans, spec.heads, spec.kv_heads, grad_qkv_TP),
        scoring,
    )
    _rotate(walk, layer, grad_qkv_TP, inverse=True)
    _normalize_heads_backward(walk, layer, grad_qkv_TP)
    input_TD, norm = walk.input(layer.index), layer.norms.get(ATTENTION_NORM)
    if norm is None:
        into_TD = walk.space.take("normal", walk.tokens)
        walk.project_backward(layer, QKV, grad_qkv_TP, input_TD, None if lowest else into_TD)
        if not lowest:
            grad_TD += into_TD
        return
    normal_TD = walk.own(layer, "attention_normal", "normal", walk.tokens)
    if walk.made_again(layer, QKV):
        norm.write(input_TD, normal_TD)
    walk.project_backward(layer, QKV, grad_qkv_TP, normal_TD, None if lowest else normal_TD)
    if not lowest:
        if spec.norm_placement == "parallel":
            normal_TD += walk.space.take("normal_gradient", walk.tokens)
        norm.backward(normal_TD, input_TD, grad_TD)


def attended(walk: Walk, layer: Layer) -> tuple[Tensor, Tensor]:
    """What the queries gathered [T, H · E], and the logarithms of their rows' sums [H, T]."""
    row_sums_HT = walk.own(layer, "row_sums", "again.row_sums", walk.spec.heads, walk.tokens)
    return walk.piece(layer, "attended", walk.tokens), row_sums_HT


def _rotate(walk: Walk, layer: Layer, qkv_TP: Tensor, *, inverse: bool = False) -> None:
    """Queries and keys lie side by side: they are rotated as heads of one tensor."""
    rotary = walk.decoder.rotary
    which = rotary.of(layer.index)
    if which is None:
        return
    heads, size = walk.spec.heads + walk.spec.kv_heads, walk.spec.head_size
    rotated_THE = qkv_TP[:, : heads * size].unflatten(1, (heads, size))
    rotate_(rotated_THE, *walk.angles[which], inverse=inverse, interleaved=rotary.ropes[which].interleaved)


def _normalize_heads(walk: Walk, layer: Layer, qkv_TP: Tensor) -> None:
    """Norms queries and keys in their place; what they were is kept."""
    if QUERY_NORM not in layer.norms:
        return
    raw_TP = walk.piece(layer, "raw", walk.tokens)
    raw_TP.copy_(qkv_TP[:, : raw_TP.shape[1]])
    for name, columns in _queries_and_keys(walk):
        layer.norms[name].write(raw_TP[:, columns], qkv_TP[:, columns])


def _normalize_heads_backward(walk: Walk, layer: Layer, grad_qkv_TP: Tensor) -> None:
    if QUERY_NORM not in layer.norms:
        return
    raw_TP = walk.piece(layer, "raw", walk.tokens)
    grad_raw_TP = walk.space.take("gated", walk.tokens, raw_TP.shape[1]).zero_()
    for name, columns in _queries_and_keys(walk):
        layer.norms[name].backward(grad_qkv_TP[:, columns], raw_TP[:, columns], grad_raw_TP[:, columns])
    grad_qkv_TP[:, : raw_TP.shape[1]] = grad_raw_TP


def _queries_and_keys(walk: Walk) -> tuple[tuple[str, slice], ...]:
    queries, keys = walk.spec.heads * walk.spec.head_size, walk.spec.kv_heads * walk.spec.head_size
    return (QUERY_NORM, slice(0, queries)), (KEY_NORM, slice(queries, queries + keys))
