"""What a layer does beside its products, timed as the model has it: norms, activation, rotation, scores, experts.

The operations are the engine's own (`strop.kernels`); the device decides which implementation runs.
"""

from __future__ import annotations

import torch

from strop.kernels import activation
from strop.kernels.attention import PLAIN, Scoring, Span, attend, attend_backward
from strop.kernels.attention_choice import available, using
from strop.kernels.attention_scores import alibi_slopes
from strop.kernels.dropout import dropout_into, token_keys
from strop.kernels.rope import rotate_
from strop.model.norms import Norm
from strop.model.spec import DecoderSpec
from strop.plan.bench import Bench, Ring

_DOCUMENTS = (64, 512)  # lengths of documents that attention is timed on
_WHOLE_PACKS = ("triton", "varlen")


def layer_rates(spec: DecoderSpec, ring: Ring) -> dict[str, float]:
    """Rates by their names in `strop.plan.machine.Rates`, attention's left out."""
    return {**_element_wise(spec, ring), "expert": _expert(spec, ring.bench) if spec.experts else 0.0}


def attention_rates(spec: DecoderSpec, ring: Ring) -> dict[str, float]:
    """Attention's, with plain scores and with the model's own where it has others."""
    plain, plain_back = _attention(spec, ring, PLAIN)
    scoring = _scoring(spec, ring.bench.device)
    scored, scored_back = _attention(spec, ring, scoring) if scoring else ((0.0, 0.0), (0.0, 0.0))
    return {
        **dict(zip(("attend", "attend_pair"), plain, strict=True)),
        **dict(zip(("attend_backward", "attend_backward_pair"), plain_back, strict=True)),
        **dict(zip(("scored", "scored_pair"), scored, strict=True)),
        **dict(zip(("scored_backward", "scored_backward_pair"), scored_back, strict=True)),
    }


def fastest_attention(spec: DecoderSpec, bench: Bench) -> tuple[str, dict[str, float]]:
    """What computes attention fastest on a device, by name, and its rates by theirs.

    One document after another, or all scores of one, is only a way out where no kernel takes a pack whole.
    """
    scoring = _scoring(spec, bench.device) or Scoring(spec.attention_scale)
    names = [
        name for name in available(bench.device, scoring, dtype=bench.dtype, width=spec.head_size) if name != "native"
    ]
    whole = [name for name in names if name in _WHOLE_PACKS] or names[:1]
    found: dict[str, dict[str, float]] = {}
    for name in whole:
        with using(name):
            found[name] = attention_rates(spec, Ring(bench))
    best = min(found, key=lambda name: _typical(spec, found[name]))
    return best, found[best]


def _typical(spec: DecoderSpec, of: dict[str, float]) -> float:
    """Seconds of a position of all layers in a document of the longer kind that was timed."""
    seen = max(_DOCUMENTS) / 2
    plain, scored = (
        of[name] + of[f"{name}_backward"] + seen * (of[f"{name}_pair"] + of[f"{name}_backward_pair"])
        for name in ("attend", "scored")
    )
    other = sum(spec.has_scores(layer) for layer in range(spec.layers))
    return plain * (spec.layers - other) + scored * other


def _element_wise(spec: DecoderSpec, ring: Ring) -> dict[str, float]:
    bench = ring.bench
    width, middle, head = spec.hidden, spec.intermediate, spec.head_size
    heads, wide = spec.heads + spec.kv_heads, (1 + spec.gated_mlp) * spec.intermediate
    rows, gated_rows, head_rows = bench.rows(width), bench.rows(wide), bench.rows(heads * head)
    take, kind, gated = ring.take, spec.activation, spec.gated_mlp
    turned = (spec.rope.rotary_size or head) // 2
    cos_TE, sin_TE = (bench.full(head_rows, turned, dtype=torch.float32) for _ in range(2))
    weight_D, bias_D = (bench.full(width, dtype=torch.float32) for _ in range(2))
    norm = Norm(weight_D, 1e-5, bias_D if spec.norm == "layer" else None)
    head_norm = Norm(bench.full(heads * head if spec.qk_norm == "full" else head, dtype=torch.float32), 1e-5)
    places_T = torch.arange(rows, device=bench.device)
    keys_T = token_keys(1, places_T, places_T)

    def gate() -> None:
        activation.apply(take(gated_rows, wide), kind, take(gated_rows, middle), gated=gated)

    def gate_backward() -> None:
        grad_TF, inputs_TG = take(gated_rows, middle), take(gated_rows, wide)
        if bench.device.type == "cpu" and (not gated or kind != "silu"):
            # Autograd's: gradients of gradients of gradients would be denormal soon, and fifty times as slow.
            grad_TF.fill_(0.5)
            inputs_TG.fill_(0.5)
        activation.apply_backward_(grad_TF, inputs_TG, kind, gated=gated)

    def rotate() -> None:
        rotate_(take(head_rows, heads, head), cos_TE, sin_TE, interleaved=spec.rope.interleaved)

    def timed(norm: Norm, rows: int, width: int) -> tuple[float, float]:
        forward = ring.time(lambda: norm.write(take(rows, width), take(rows, width)))
        return forward, ring.time(lambda: norm.backward(*(take(rows, width) for _ in range(3))))

    seconds = dict(zip(("norm", "norm_backward"), timed(norm, rows, width), strict=True))
    seconds |= {
        "gate": ring.time(gate),
        "gate_backward": ring.time(gate_backward),
        "rotate": ring.time(rotate),
        "dropout": ring.time(lambda: dropout_into(take(rows, width), keys_T, 7, 0.1, take(rows, width))),
    }
    counts = dict.fromkeys(seconds, rows * width)
    counts["gate"] = counts["gate_backward"] = gated_rows * middle
    counts["rotate"] = head_rows * heads * head
    each = {name: one / counts[name] for name, one in seconds.items()}
    both = timed(head_norm, head_rows, heads * head) if spec.qk_norm else (0.0, 0.0)
    each["head_norm"], each["head_norm_backward"] = (one / (head_rows * heads * head) for one in both)
    return each


def _expert(spec: DecoderSpec, bench: Bench) -> float:
    """A call of an expert, as `strop.model.experts_block` makes it, with a row: what its calls of torch cost."""
    x_TD, weights_TX = bench.full(8, spec.hidden), torch.zeros(8, 4, device=bench.device)
    weights_TX[2, 1] = 1.0
    x_RD, stream_TD = bench.full(1, spec.hidden), bench.full(8, spec.hidden)
    inputs_RG, hidden_RF = bench.full(1, 128), bench.full(1, 64)

    def call() -> None:
        rows_R = weights_TX[:, 1].nonzero()[:, 0]
        torch.index_select(x_TD, 0, rows_R, out=x_RD)
        activation.apply(inputs_RG, "silu", hidden_RF, gated=True)
        stream_TD.index_add_(0, rows_R, x_RD.mul_(weights_TX[rows_R, 1, None]))

    call()
    return bench.clock(call, bench.seconds)


def _scoring(spec: DecoderSpec, device: torch.device) -> Scoring | None:
    """How scores are made in layers where they are not plain; None where they are in all.

    A window is a mask, and costs the same whatever its length; here it is shorter than every document.
    """
    if not any(map(spec.has_scores, range(spec.layers))):
        return None
    slopes_H = alibi_slopes(spec.heads).to(device) if spec.alibi else None
    windows = [window for window in spec.windows or () if window]
    window = min(*windows, min(_DOCUMENTS) - 1) if windows else 0
    return Scoring(spec.attention_scale, spec.attention_softcap, window, slopes_H)


def _attention(spec: DecoderSpec, ring: Ring, scoring: Scoring) -> tuple[tuple[float, float], tuple[float, float]]:
    """(a position, a pair) forward and backward: from short documents and from long ones of as many positions."""
    queries, keys = spec.heads * spec.head_size, spec.kv_heads * spec.head_size
    width, longest = queries + 2 * keys, max(_DOCUMENTS)
    rows = max(longest, min(ring.bench.rows(width), ring.bench.numbers // width) // longest * longest)
    sums_HT = ring.bench.full(spec.heads, rows, dtype=torch.float32)
    shape, take = (spec.heads, spec.kv_heads), ring.take
    points = []
    for length in _DOCUMENTS:
        spans = [Span(start, start + length, start, start) for start in range(0, rows, length)]

        def forward(spans: list[Span] = spans) -> None:
            attend(take(rows, width), spans, *shape, take(rows, queries), sums_HT, scoring)

        def backward(spans: list[Span] = spans) -> None:
            given = take(rows, width), take(rows, queries), take(rows, queries)
            attend_backward(*given, sums_HT, spans, *shape, take(rows, width), scoring)

        points.append((rows * (length + 1) // 2, ring.time(forward), ring.time(backward)))
    (few, *short), (many, *long) = points
    fits = []
    for near, far in zip(short, long, strict=True):
        pair = max((far - near) / (many - few), 0.1 * far / many)
        fits.append((max(near - pair * few, 0.0) / rows, pair))
    return fits[0], fits[1]
