"""How scores of attention are made where they are not plain: a scale of their own, a cap, a window, ALiBi.

    s_tu = cap · tanh(q_t · k_u · scale / cap) − slope · (t − u)        seen where 0 ≤ t − u < window

The cap is Gemma 2's (arXiv:2408.00118, section 2), the window Mistral's (arXiv:2310.06825), ALiBi is Press et al. 2021
(arXiv:2108.12409); distances are counted inside a document, its prefix included.

`explicit_attention` is the differentiable reference. `attend_blocks` and `attend_blocks_backward` are the pair of the
training engine: plain torch, a block of queries at a time, so that no more scores exist than `BLOCK_SCORES`. With s the
scores before the cap, and P and ℓ as in `strop.kernels.attention`:

    ds_tu = P_tu (dy_t · v_u − dy_t · y_t) · (1 − tanh²(s_tu / cap))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Scores of all heads that exist at one time: 8 MiB in float32, three times over.
BLOCK_SCORES = 1 << 21


@dataclass(frozen=True, slots=True)
class Span:
    """A document of a pack and the prefix that it continues.

    Attributes:
        start: its first row.
        end: the row after its last.
        prefix_start: first row of the prefix, which is a span of its own earlier in the pack.
        prefix_end: the row after the prefix's last; equal to ``prefix_start`` where there is no prefix.
    """

    start: int
    end: int
    prefix_start: int
    prefix_end: int

    @property
    def seen(self) -> int:
        """Rows that its last row sees."""
        return self.end - self.start + self.prefix_end - self.prefix_start


@dataclass(frozen=True, slots=True, eq=False)
class Scoring:
    """What becomes of q · k.

    Attributes:
        scale: its factor; None for 1 / √E.
        softcap: largest magnitude, reached by tanh; None for none.
        window: how many tokens a token sees, itself included; 0 for all.
        slopes_H: float32 [H], what a score loses for each token of distance; None for nothing.
    """

    scale: float | None = None
    softcap: float | None = None
    window: int = 0
    slopes_H: Tensor | None = None

    def is_causal(self, longest: int) -> bool:
        """Whether nothing but the scale is left of it for documents up to ``longest`` tokens."""
        return self.softcap is None and self.slopes_H is None and not 0 < self.window < longest

    def factor(self, width: int) -> float:
        """The factor of q · k for heads of a width."""
        return width**-0.5 if self.scale is None else self.scale

    def visible(self, distance: Tensor) -> Tensor:
        """Whether a key is seen from a distance."""
        seen = distance >= 0
        return seen & (distance < self.window) if self.window else seen

    def scores(self, products_KGRV: Tensor, distance_RV: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores [K, G, R, V] of scaled products, −∞ where nothing is seen, and the slope that the cap gives them.

        Args:
            products_KGRV: scale · q · k, for K key-value heads with G queries each; may be overwritten.
            distance_RV: how far each key lies behind each query.
        """
        slope_KGRV = None
        if self.softcap is not None:
            capped_KGRV = torch.tanh(products_KGRV / self.softcap)
            slope_KGRV = 1 - capped_KGRV.square()
            products_KGRV = capped_KGRV * self.softcap
        if self.slopes_H is not None:
            slopes_KG11 = self.slopes_H.view(*products_KGRV.shape[:2], 1, 1)
            products_KGRV = products_KGRV - slopes_KG11 * distance_RV
        return products_KGRV.masked_fill(~self.visible(distance_RV), float("-inf")), slope_KGRV


PLAIN = Scoring()


def score_bytes(heads: int, longest: int) -> int:
    """Most bytes that `attend_blocks_backward` works in: scores, their gradients, and what leads from one to the other.

    Args:
        heads: query heads.
        longest: tokens of the longest document, its prefix included.
    """
    rows = min(longest, max(1, BLOCK_SCORES // (heads * longest)))
    return 5 * heads * rows * longest * 4


def alibi_slopes(heads: int) -> Tensor:
    """Slopes of Press et al., powers of 2^(−8/heads): float32 [heads].

    Where heads is no power of two, those of the next lower power, then every second one of the next higher.
    """
    lower = 1 << (heads.bit_length() - 1)
    first = [2 ** (-8 * (index + 1) / lower) for index in range(lower)]
    between = [2 ** (-4 * (index + 1) / lower) for index in range(0, 2 * (heads - lower), 2)]
    return torch.tensor(first + between)


def explicit_attention(q_LHE: Tensor, k_VKE: Tensor, v_VKE: Tensor, scoring: Scoring) -> Tensor:
    """Attention of a document's L rows over V keys, of which the last L are its own: [L, H, E]; all scores exist."""
    (length, heads, width), (seen, kv_heads, _) = q_LHE.shape, k_VKE.shape
    q_KGLE = q_LHE.unflatten(1, (kv_heads, heads // kv_heads)).permute(1, 2, 0, 3)
    products_KGLV = (q_KGLE @ k_VKE.permute(1, 2, 0)[:, None]) * scoring.factor(width)
    places_V = torch.arange(seen, device=q_LHE.device)
    distance_LV = places_V[seen - length :, None] - places_V
    scores_KGLV, _ = scoring.scores(products_KGLV, distance_LV)
    y_KGLE = scores_KGLV.softmax(dim=-1) @ v_VKE.permute(1, 0, 2)[:, None]
    return y_KGLE.permute(2, 0, 1, 3).flatten(1, 2)


def attend_blocks(
    qkv_TO: Tensor,
    spans: Sequence[Span],
    heads: int,
    kv_heads: int,
    scoring: Scoring,
    out_TQ: Tensor,
    row_sums_HT: Tensor,
) -> None:
    """`strop.kernels.attention.attend` for any scoring; arguments as there."""
    for block in _blocks(qkv_TO, spans, heads, kv_heads, scoring):
        scores_KGRV, _ = block.scores()
        sums_KGR = scores_KGRV.logsumexp(dim=-1)
        y_KGRE = (scores_KGRV.sub_(sums_KGR[..., None]).exp_().flatten(1, 2) @ block.v_KVE).unflatten(1, block.group)
        out_TQ[block.rows] = y_KGRE.permute(2, 0, 1, 3).flatten(1).to(out_TQ.dtype)
        row_sums_HT[:, block.rows] = sums_KGR.flatten(0, 1)


def attend_blocks_backward(
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
    """`strop.kernels.attention.attend_backward` for any scoring; arguments as there."""
    grad_qkv_TO.zero_()
    width = out_TQ.shape[1] // heads
    queries, keys = heads * width, kv_heads * width
    for block in _blocks(qkv_TO, spans, heads, kv_heads, scoring):
        scores_KGRV, slope_KGRV = block.scores()
        sums_KGR = row_sums_HT[:, block.rows].unflatten(0, (kv_heads, -1))
        p_KGRV = scores_KGRV.sub_(sums_KGR[..., None]).exp_()
        dy_KGRE, y_KGRE = (_by_group(part[block.rows], heads, kv_heads) for part in (grad_TQ, out_TQ))
        dp_KGRV = (dy_KGRE.flatten(1, 2) @ block.v_KVE.mT).unflatten(1, block.group)
        ds_KGRV = dp_KGRV.sub_((dy_KGRE * y_KGRE).sum(-1, keepdim=True)).mul_(p_KGRV)
        if slope_KGRV is not None:
            ds_KGRV.mul_(slope_KGRV)
        ds_KMV = ds_KGRV.flatten(1, 2).mul_(scoring.factor(width))
        dq_KGRE = (ds_KMV @ block.k_KVE).unflatten(1, block.group)
        grad_qkv_TO[block.rows, :queries] = dq_KGRE.permute(2, 0, 1, 3).flatten(1).to(grad_qkv_TO.dtype)
        dk_KVE = ds_KMV.mT @ block.q_KGRE.flatten(1, 2)
        dv_KVE = p_KGRV.flatten(1, 2).mT @ dy_KGRE.flatten(1, 2)
        for place, part_KVE in ((queries, dk_KVE), (queries + keys, dv_KVE)):
            part_VO = part_KVE.transpose(0, 1).flatten(1).to(grad_qkv_TO.dtype)
            grad_qkv_TO[:, place : place + keys].index_add_(0, block.seen_V, part_VO)


@dataclass(frozen=True, slots=True)
class _Block:
    """Some queries of a document, all heads, and the keys that any of them sees; float32.

    Attributes:
        rows: the queries' rows of the pack.
        seen_V: the keys' rows of the pack.
        distance_RV: how far each key lies behind each query.
        group: (queries a key-value head, rows).
    """

    rows: slice
    seen_V: Tensor
    distance_RV: Tensor
    group: tuple[int, int]
    q_KGRE: Tensor
    k_KVE: Tensor
    v_KVE: Tensor
    scoring: Scoring

    def scores(self) -> tuple[Tensor, Tensor | None]:
        """`Scoring.scores` of this block."""
        products_KMV = (self.q_KGRE.flatten(1, 2) * self.scoring.factor(self.q_KGRE.shape[-1])) @ self.k_KVE.mT
        return self.scoring.scores(products_KMV.unflatten(1, self.group), self.distance_RV)


def _blocks(qkv_TO: Tensor, spans: Sequence[Span], heads: int, kv_heads: int, scoring: Scoring) -> Iterator[_Block]:
    width = qkv_TO.shape[1] // (heads + 2 * kv_heads)
    device = qkv_TO.device
    for span in spans:
        prefix = span.prefix_end - span.prefix_start
        own_V = torch.arange(span.start, span.end, device=device)
        rows_V = torch.cat([torch.arange(span.prefix_start, span.prefix_end, device=device), own_V])
        step = max(1, BLOCK_SCORES // (heads * span.seen))
        for first in range(prefix, span.seen, step):
            last = min(first + step, span.seen)
            seen_V = rows_V[max(0, first - scoring.window + 1) if scoring.window else 0 : last]
            rows = slice(span.start + first - prefix, span.start + last - prefix)
            places_V = torch.arange(last - len(seen_V), last, device=device)
            distance_RV = torch.arange(first, last, device=device)[:, None] - places_V
            kv_KVE = qkv_TO[seen_V, heads * width :].unflatten(1, (2 * kv_heads, width)).transpose(0, 1).float()
            q_KGRE = _by_group(qkv_TO[rows, : heads * width], heads, kv_heads)
            group = (heads // kv_heads, last - first)
            yield _Block(rows, seen_V, distance_RV, group, q_KGRE, kv_KVE[:kv_heads], kv_KVE[kv_heads:], scoring)


def _by_group(rows_RQ: Tensor, heads: int, kv_heads: int) -> Tensor:
    """[R, H · E] → float32 [K, G, R, E]."""
    rows_RKGE = rows_RQ.float().reshape(len(rows_RQ), kv_heads, heads // kv_heads, -1)
    return rows_RKGE.permute(1, 2, 0, 3)
