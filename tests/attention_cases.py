"""Packs of documents, kinds of scores, and attention over them by autograd: what attention's tests share."""

import itertools

from strop.kernels.attention import PLAIN, Scoring, Span, attention
from strop.kernels.attention_scores import alibi_slopes

SCORINGS = {
    "scale": Scoring(scale=0.3),
    "cap": Scoring(softcap=2.0),
    "window": Scoring(window=5),
    "window longer than any": Scoring(window=10_000),
    "alibi": Scoring(slopes_H=alibi_slopes(6)),
    "all": Scoring(scale=0.3, softcap=2.0, window=70, slopes_H=alibi_slopes(6)),
}


def documents(lengths) -> list[Span]:
    starts = [0, *itertools.accumulate(lengths)]
    return [Span(start, end, start, start) for start, end in itertools.pairwise(starts)]


def families(*members: list[int]) -> list[Span]:
    """Each list: the length of a prefix, then of those that continue it."""
    spans, row = [], 0
    for prefix, *lengths in members:
        root = row
        spans.append(Span(root, root + prefix, root, root))
        row += prefix
        for length in lengths:
            spans.append(Span(row, row + length, root, root + prefix))
            row += length
    return spans


def reference(qkv, grad, spans, heads, kv_heads, width, scoring=PLAIN):
    """Every prefix repeated before each document that continues it; autograd adds up its gradients."""
    leaf = qkv.double().requires_grad_()
    rows, own, starts = [], [], [0]
    for span in spans:
        prefix = list(range(span.prefix_start, span.prefix_end))
        own += range(len(rows) + len(prefix), len(rows) + len(prefix) + span.end - span.start)
        rows += [*prefix, *range(span.start, span.end)]
        starts.append(len(rows))
    parts = leaf[rows].split([heads * width, kv_heads * width, kv_heads * width], dim=1)
    q, k, v = (part.unflatten(1, (-1, width)) for part in parts)
    y = attention(q, k, v, starts, scoring)[own].flatten(1)
    y.backward(grad.double())
    return y.detach(), leaf.grad
