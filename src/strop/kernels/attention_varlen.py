"""Attention by the FlashAttention that comes with torch, all documents of a pack in one call: 16 bits, CUDA devices.

The operators behind `torch.nn.attention.varlen.varlen_attn` are called by themselves, forward and backward, since the
engine keeps what its backward pass needs and no graph. They know documents that lie one after another, and no prefix
that several share. Those take two calls, over a document's own keys (causal) and over its prefix's (all of them), each
a softmax over its part; with the parts' logarithms of sums ℓ₁ and ℓ₂,

    ℓ = log(e^ℓ₁ + e^ℓ₂)        y = y₁ e^(ℓ₁ − ℓ) + y₂ e^(ℓ₂ − ℓ)

A backward pass that is given y and ℓ of the whole makes of either part what it adds to the gradients.

FlashAttention adds up gradients of queries in any order unless torch is asked for deterministic algorithms; it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from strop.kernels.attention_scores import Scoring, Span
from strop.kernels.upload import upload

_WIDEST = 256
_OLDEST = (8, 0)


def can(device: torch.device, dtype: torch.dtype, width: int, scoring: Scoring) -> bool:
    """Whether torch's operators take heads of this kind: no caps and no slopes, whose gradients they do not have."""
    return (
        device.type == "cuda"
        and dtype in (torch.bfloat16, torch.float16)
        and width <= _WIDEST
        and width % 8 == 0
        and scoring.softcap is None
        and scoring.slopes_H is None
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= _OLDEST
    )


def understands(spans: Sequence[Span], scoring: Scoring) -> bool:
    """Whether documents can be split into calls: a window that is narrower than a document allows for no prefixes."""
    longest = max((span.seen for span in spans), default=0)
    return not 0 < scoring.window < longest or all(span.prefix_end == span.prefix_start for span in spans)


class _Call(NamedTuple):
    """Sequences of queries and the keys that each sees, as the operators take them."""

    starts_q: Tensor
    starts_k: Tensor
    longest_q: int
    longest_k: int
    causal: bool
    scale: float
    window: int


class _Shared(NamedTuple):
    """Rows of documents that continue a prefix, those of one prefix together, and rows of the prefixes."""

    rows_R: Tensor
    prefix_rows_P: Tensor
    starts_q: Tensor
    starts_k: Tensor
    longest_q: int
    longest_k: int


def attend(
    qkv_TO: Tensor,
    spans: Sequence[Span],
    heads: int,
    kv_heads: int,
    scoring: Scoring,
    out_TQ: Tensor,
    row_sums_HT: Tensor,
) -> None:
    """As `strop.kernels.attention.attend`."""
    q_THE, k_TKE, v_TKE = _parts(qkv_TO, heads, kv_heads)
    call = _own(tuple(spans), scoring, q_THE)
    y_THE, sums_HT = flash_forward(q_THE, k_TKE, v_TKE, call)
    shared = _shared(tuple(spans), qkv_TO.device)
    if shared is not None:
        q_RHE, k_PKE, v_PKE = q_THE[shared.rows_R], k_TKE[shared.prefix_rows_P], v_TKE[shared.prefix_rows_P]
        other_RHE, other_HR = flash_forward(q_RHE, k_PKE, v_PKE, _over_prefixes(shared, call))
        own_HR = sums_HT[:, shared.rows_R]
        sums_HR = torch.logaddexp(own_HR, other_HR)
        own_RHE = y_THE[shared.rows_R].float() * _weights(own_HR, sums_HR)
        y_THE[shared.rows_R] = (own_RHE + other_RHE.float() * _weights(other_HR, sums_HR)).to(y_THE.dtype)
        sums_HT[:, shared.rows_R] = sums_HR
    out_TQ.copy_(y_THE.flatten(1))
    row_sums_HT.copy_(sums_HT)


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
    """As `strop.kernels.attention.attend_backward`."""
    q_THE, k_TKE, v_TKE = _parts(qkv_TO, heads, kv_heads)
    y_THE, dy_THE = (part.unflatten(1, (heads, -1)) for part in (out_TQ, grad_TQ))
    call = _own(tuple(spans), scoring, q_THE)
    grads = flash_backward(dy_THE, q_THE, k_TKE, v_TKE, y_THE, row_sums_HT, call)
    for into_TNE, part_TNE in zip(_parts(grad_qkv_TO, heads, kv_heads), grads, strict=True):
        into_TNE.copy_(part_TNE)
    shared = _shared(tuple(spans), qkv_TO.device)
    if shared is None:
        return
    rows_R, prefix_rows_P = shared.rows_R, shared.prefix_rows_P
    grads = flash_backward(
        *(dy_THE[rows_R], q_THE[rows_R], k_TKE[prefix_rows_P], v_TKE[prefix_rows_P], y_THE[rows_R]),
        *(row_sums_HT[:, rows_R].contiguous(), _over_prefixes(shared, call)),
    )
    # No row is named twice: nothing depends on an order.
    for into_TNE, rows, part in zip(
        _parts(grad_qkv_TO, heads, kv_heads), (rows_R, prefix_rows_P, prefix_rows_P), grads, strict=True
    ):
        into_TNE[rows] += part


def flash_forward(q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor, call: _Call) -> tuple[Tensor, Tensor]:
    """What queries gather [T, H, E], and logarithms of their rows' sums [H, T]."""
    y_THE, sums_HT, *_ = torch.ops.aten._flash_attention_forward(
        *(q_THE, k_TKE, v_TKE, call.starts_q, call.starts_k, call.longest_q, call.longest_k, 0.0, call.causal, False),
        scale=call.scale,
        window_size_left=call.window,
        window_size_right=0 if call.causal else -1,
    )
    return y_THE, sums_HT


def flash_backward(
    dy_THE: Tensor, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor, y_THE: Tensor, sums_HT: Tensor, call: _Call
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    no_state = torch.zeros(2, dtype=torch.uint64, device=q_THE.device)
    with _in_one_order():
        dq_THE, dk_TKE, dv_TKE = torch.ops.aten._flash_attention_backward(
            *(dy_THE, q_THE, k_TKE, v_TKE, y_THE, sums_HT, call.starts_q, call.starts_k),
            *(call.longest_q, call.longest_k, 0.0, call.causal, no_state, torch.empty(0, device=q_THE.device)),
            scale=call.scale,
            window_size_left=call.window,
            window_size_right=0 if call.causal else -1,
        )
    return dq_THE, dk_TKE, dv_TKE


@contextmanager
def _in_one_order() -> Iterator[None]:
    """Deterministic algorithms for one call, without filling all new memory first."""
    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fills = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
        memory.fill_uninitialized_memory = fills


def _parts(qkv_TO: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of queries [T, H, E], keys and values [T, K, E]."""
    all_TNE = qkv_TO.unflatten(1, (heads + 2 * kv_heads, -1))
    return all_TNE[:, :heads], all_TNE[:, heads : heads + kv_heads], all_TNE[:, heads + kv_heads :]


def _weights(part_HR: Tensor, whole_HR: Tensor) -> Tensor:
    """A part's share of the softmax: [R, H, 1]."""
    return (part_HR - whole_HR).exp().t()[..., None]


def _own(spans: tuple[Span, ...], scoring: Scoring, q_THE: Tensor) -> _Call:
    starts, longest = _starts(spans, q_THE.device)
    window = scoring.window - 1 if 0 < scoring.window < longest else -1
    return _Call(starts, starts, longest, longest, True, scoring.factor(q_THE.shape[-1]), window)


def _over_prefixes(shared: _Shared, call: _Call) -> _Call:
    return _Call(shared.starts_q, shared.starts_k, shared.longest_q, shared.longest_k, False, call.scale, -1)


@lru_cache(maxsize=8)
def _starts(spans: tuple[Span, ...], device: torch.device) -> tuple[Tensor, int]:
    """Offsets of documents, int32, and the length of the longest."""
    offsets = [*(span.start for span in spans), spans[-1].end]
    longest = max(end - start for start, end in pairwise(offsets))
    return upload(torch.tensor(offsets, dtype=torch.int32), device), longest


@lru_cache(maxsize=8)
def _shared(spans: tuple[Span, ...], device: torch.device) -> _Shared | None:
    """The documents of each prefix together; None where nothing is shared."""
    followers: dict[tuple[int, int], list[range]] = {}
    for span in spans:
        if span.prefix_end > span.prefix_start:
            prefix = (span.prefix_start, span.prefix_end)
            followers.setdefault(prefix, []).append(range(span.start, span.end))
    if not followers:
        return None
    queries = [sum(map(len, documents)) for documents in followers.values()]
    keys = [end - start for start, end in followers]
    rows = list(chain.from_iterable(chain.from_iterable(followers.values())))
    prefix_rows = list(chain.from_iterable(range(*prefix) for prefix in followers))
    return _Shared(
        upload(torch.tensor(rows), device),
        upload(torch.tensor(prefix_rows), device),
        _offsets(queries, device),
        _offsets(keys, device),
        max(queries),
        max(keys),
    )


def _offsets(lengths: list[int], device: torch.device) -> Tensor:
    return upload(torch.tensor([0, *lengths]).cumsum(0).to(torch.int32), device)
