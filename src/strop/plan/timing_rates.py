"""How long a step's operations take beside its matrix products: each is run a few times with made-up numbers.

    norms, gated product, rotation, dropout, attention, loss, NF4, adapters, optimiser ──▶ seconds a number

The operations are the engine's own (`strop.kernels`); the device decides which implementation runs.
"""

from __future__ import annotations

from itertools import cycle

import torch

from strop.kernels import blas, nf4
from strop.kernels.attention import Scoring, Span, attend, attend_backward
from strop.kernels.attention_choice import available, using
from strop.kernels.cross_entropy import softmax_gradient_
from strop.kernels.dropout import dropout_into, token_keys
from strop.kernels.qlora_linear import FrozenGroup, WeightBuffer
from strop.kernels.rms_norm import normalize, normalize_backward
from strop.kernels.rope import rotate_
from strop.kernels.swiglu import gate, gate_backward_
from strop.kernels.widen import widen
from strop.model.spec import DecoderSpec
from strop.plan.bench import Bench, Ring
from strop.plan.machine import Rates, block_rows

_DOCUMENTS = (64, 512)  # lengths of documents that attention is timed on
_WHOLE_PACKS = ("triton", "varlen")


def rates(spec: DecoderSpec, rank: int, bench: Bench) -> Rates:
    """All of them."""
    ring = Ring(bench)
    attention, backward = attention_rates(spec, ring)
    adapter, adapter_backward = _adapter(spec, rank, ring)
    return Rates(
        **_nf4(spec, ring),
        **_element_wise(spec, ring),
        softmax=_softmax(spec, ring),
        attend=attention[0],
        attend_pair=attention[1],
        attend_backward=backward[0],
        attend_backward_pair=backward[1],
        adapter=adapter,
        adapter_backward=adapter_backward,
        optimise=_optimise(ring),
        answer=_answer(spec, ring),
    )


def fastest_attention(spec: DecoderSpec, bench: Bench) -> tuple[str, dict[str, float]]:
    """What computes attention fastest on a device, by name, and its rates by theirs.

    One document after another, or all scores of one, is only a way out where no kernel takes a pack whole.
    """
    scoring = Scoring(spec.attention_scale, spec.attention_softcap, max(spec.windows or (0,)))
    names = [
        name for name in available(bench.device, scoring, dtype=bench.dtype, width=spec.head_size) if name != "native"
    ]
    whole = [name for name in names if name in _WHOLE_PACKS] or names[:1]
    found: dict[str, dict[str, float]] = {}
    for name in whole:
        with using(name):
            forward, backward = attention_rates(spec, Ring(bench))
        found[name] = {
            "attend": forward[0],
            "attend_pair": forward[1],
            "attend_backward": backward[0],
            "attend_backward_pair": backward[1],
        }
    best = min(found, key=lambda name: _typical(found[name]))
    return best, found[best]


def _typical(of: dict[str, float]) -> float:
    """Seconds of a position in a document of the longer kind that was timed."""
    seen = max(_DOCUMENTS) / 2
    return of["attend"] + of["attend_backward"] + seen * (of["attend_pair"] + of["attend_backward_pair"])


def _nf4(spec: DecoderSpec, ring: Ring) -> dict[str, float]:
    bench = ring.bench
    rows = max(64, min(block_rows(spec.hidden), bench.numbers // spec.hidden))
    half_OI = bench.full(rows, spec.hidden, dtype=torch.bfloat16)
    count, layers = half_OI.numel(), cycle(_made_up_layers(spec, bench))
    weights = spec.linear_weights // spec.layers

    def dequantise() -> None:
        for group in next(layers):
            for _ in group.blocks(bench.dtype):
                pass

    return {
        "dequantise": bench.clock(dequantise, bench.seconds) / weights,
        "quantise": bench.clock(lambda: nf4.quantize(half_OI), bench.seconds) / count,
        "widen": ring.time(lambda: widen(half_OI, ring.take(rows, spec.hidden, dtype=torch.float32))) / count,
    }


def _made_up_layers(spec: DecoderSpec, bench: Bench) -> list[list[FrozenGroup]]:
    """Groups of a layer's weights in NF4, so many layers that they are out of the caches when they come again."""
    size = spec.linear_weights // spec.layers // 2
    buffer = WeightBuffer()
    return [
        [
            FrozenGroup([made_up(spec.projection_shape(name), bench.device) for name in names], None, buffer)
            for names in spec.groups
        ]
        for _ in range(max(1, min(spec.layers, 4 * bench.numbers // size)))
    ]


def made_up(shape: tuple[int, int], device: torch.device) -> nf4.NF4Tensor:
    """A weight in NF4 that was never any other: to be timed, not to be right."""
    blocks = -(-shape[0] * shape[1] // nf4.BLOCK)
    return nf4.NF4Tensor(
        torch.full((-(-shape[0] * shape[1] // 2),), 0x5A, dtype=torch.uint8, device=device),
        torch.full((blocks,), 0x5A, dtype=torch.uint8, device=device),
        torch.ones(-(-blocks // nf4.NESTED_BLOCK), device=device),
        torch.tensor(0.5, device=device),
        shape,
    )


def _element_wise(spec: DecoderSpec, ring: Ring) -> dict[str, float]:
    bench = ring.bench
    width, middle, head = spec.hidden, spec.intermediate, spec.head_size
    heads = spec.heads + spec.kv_heads
    rows, gated_rows, head_rows = bench.rows(width), bench.rows(2 * middle), bench.rows(heads * head)
    take = ring.take
    cos_TE, sin_TE = (bench.full(head_rows, head // 2, dtype=torch.float32) for _ in range(2))
    weight_D, places_T = bench.full(width, dtype=torch.float32), torch.arange(rows, device=bench.device)
    keys_T = token_keys(1, places_T, places_T)

    def norm_backward() -> None:
        normalize_backward(take(rows, width), take(rows, width), weight_D, 1e-5, take(rows, width))

    seconds = {
        "norm": ring.time(lambda: normalize(take(rows, width), weight_D, 1e-5, take(rows, width))),
        "norm_backward": ring.time(norm_backward),
        "gate": ring.time(lambda: gate(take(gated_rows, 2 * middle), take(gated_rows, middle))),
        "gate_backward": ring.time(lambda: gate_backward_(take(gated_rows, middle), take(gated_rows, 2 * middle))),
        "rotate": ring.time(lambda: rotate_(take(head_rows, heads, head), cos_TE, sin_TE)),
        "dropout": ring.time(lambda: dropout_into(take(rows, width), keys_T, 7, 0.1, take(rows, width))),
    }
    numbers = dict.fromkeys(seconds, rows * width)
    numbers["gate"] = numbers["gate_backward"] = gated_rows * middle
    numbers["rotate"] = head_rows * heads * head
    return {name: each / numbers[name] for name, each in seconds.items()}


def _softmax(spec: DecoderSpec, ring: Ring) -> float:
    rows = max(1, min(256, ring.bench.numbers // spec.vocabulary))
    targets_N = torch.zeros(rows, dtype=torch.int64, device=ring.bench.device)

    def run() -> None:
        softmax_gradient_(ring.take(rows, spec.vocabulary, dtype=torch.float32), targets_N)

    return ring.time(run) / (rows * spec.vocabulary)


def attention_rates(spec: DecoderSpec, ring: Ring) -> tuple[tuple[float, float], tuple[float, float]]:
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
            attend(take(rows, width), spans, *shape, take(rows, queries), sums_HT)

        def backward(spans: list[Span] = spans) -> None:
            given = take(rows, width), take(rows, queries), take(rows, queries)
            attend_backward(*given, sums_HT, spans, *shape, take(rows, width))

        points.append((rows * (length + 1) // 2, ring.time(forward), ring.time(backward)))
    (few, *short), (many, *long) = points
    fits = []
    for near, far in zip(short, long, strict=True):
        pair = max((far - near) / (many - few), 0.1 * far / many)
        fits.append((max(near - pair * few, 0.0) / rows, pair))
    return fits[0], fits[1]


def _adapter(spec: DecoderSpec, rank: int, ring: Ring) -> tuple[float, float]:
    """A multiplication and addition of the products of an adapter on a square projection, forward and backward."""
    rows, width, full = ring.bench.rows(spec.hidden), spec.hidden, ring.bench.full
    a_RI, b_OR = full(rank, width), full(width, rank)
    down_TR, back_TR = full(rows, rank), full(rows, rank)
    grad_b_OR, grad_a_RI = full(width, rank, dtype=torch.float32), full(rank, width, dtype=torch.float32)

    def accumulate(left_TM: torch.Tensor, right_TN: torch.Tensor, into_MN: torch.Tensor) -> None:
        if into_MN.dtype is left_TM.dtype:
            blas.product(left_TM, right_TN, into_MN, transpose_a=True, add=True)
        else:
            into_MN.add_((left_TM.T @ right_TN).to(into_MN.dtype))

    def forward() -> None:
        blas.product(ring.take(rows, width), a_RI, down_TR, transpose_b=True)
        blas.product(down_TR, b_OR, ring.take(rows, width), transpose_b=True, alpha=1e-3, add=True)

    def backward() -> None:
        x_TI, grad_TO = ring.take(rows, width), ring.take(rows, width)
        blas.product(x_TI, a_RI, down_TR, transpose_b=True)
        blas.product(grad_TO, b_OR, back_TR)
        accumulate(grad_TO, down_TR, grad_b_OR)
        accumulate(back_TR, x_TI, grad_a_RI)
        blas.product(back_TR, a_RI, ring.take(rows, width), alpha=1e-3, add=True)

    sizes = rows * width * rank
    return ring.time(forward) / (2 * sizes), ring.time(backward) / (5 * sizes)


def _optimise(ring: Ring) -> float:
    """A parameter: the norm of its gradient, the scaling, and AdamW as `strop.training.optimizer` calls it."""
    count, steps = max(64, min(1 << 18, ring.bench.numbers)), [torch.ones((), device=ring.bench.device)]
    betas = {"lr": 1e-6, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "eps": 1e-8}
    as_is = {"amsgrad": False, "maximize": False}

    def move() -> None:
        parameter, grad, first, second = (ring.take(count, dtype=torch.float32) for _ in range(4))
        grad.mul_(1.0 / torch.linalg.vector_norm(grad).clamp(min=1.0))
        torch._fused_adamw_([parameter], [grad], [first], [second], [], steps, **betas, **as_is)  # type: ignore[call-overload]

    return ring.time(move) / count


def _answer(spec: DecoderSpec, ring: Ring) -> float:
    """A weight of a product with a token of each of three answers: the weights come from memory."""
    x_BI, columns = ring.bench.full(3, spec.hidden), max(1, ring.bench.numbers // spec.hidden)
    out_BO = ring.bench.full(3, columns)
    take = ring.take

    def run() -> None:
        blas.product(x_BI, take(columns, spec.hidden), out_BO, transpose_b=True)

    return ring.time(run) / (columns * spec.hidden)
