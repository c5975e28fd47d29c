"""How long a step's operations take beside its matrix products: each is run a few times with made-up numbers.

    loss, NF4, adapters, optimiser, answers; what a layer does (`strop.plan.timing_layer`) ──▶ seconds a number

The operations are the engine's own (`strop.kernels`); the device decides which implementation runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from math import prod

import torch

from strop.kernels import blas, nf4
from strop.kernels.cross_entropy import softmax_gradient_
from strop.kernels.qlora_linear import FrozenGroup, WeightBuffer
from strop.kernels.widen import widen
from strop.model.spec import DecoderSpec
from strop.plan.bench import Bench, Ring
from strop.plan.machine import Rates, block_rows
from strop.plan.timing_layer import attention_rates, layer_rates


def rates(spec: DecoderSpec, rank: int, bench: Bench, attention: Mapping[str, float] | None = None) -> Rates:
    """All of them; attention's are timed where they are not given."""
    ring = Ring(bench)
    adapter, adapter_backward = _adapter(spec, rank, ring)
    return Rates(
        **_nf4(spec, ring),
        **layer_rates(spec, ring),
        **(attention or attention_rates(spec, ring)),
        softmax=_softmax(spec, ring),
        adapter=adapter,
        adapter_backward=adapter_backward,
        optimise=_optimise(ring),
        answer=_answer(spec, ring),
    )


def _nf4(spec: DecoderSpec, ring: Ring) -> dict[str, float]:
    bench = ring.bench
    rows = max(64, min(block_rows(spec.hidden), bench.numbers // spec.hidden))
    half_OI = bench.full(rows, spec.hidden, dtype=torch.bfloat16)
    count, layers = half_OI.numel(), cycle(_made_up_layers(spec, bench))
    weights = _layer_weights(spec)

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
    size = _layer_weights(spec) // 2
    buffer = WeightBuffer()
    return [
        [
            FrozenGroup([made_up(spec.projection_shape(name), bench.device) for name in names], None, buffer)
            for names in spec.groups
        ]
        for _ in range(max(1, min(spec.layers, 4 * bench.numbers // size)))
    ]


def _layer_weights(spec: DecoderSpec) -> int:
    """Weights of a layer with every group of projections that a layer can have."""
    return sum(prod(spec.projection_shape(name)) for name in spec.projections)


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


def _softmax(spec: DecoderSpec, ring: Ring) -> float:
    rows = max(1, min(256, ring.bench.numbers // spec.vocabulary))
    targets_N = torch.zeros(rows, dtype=torch.int64, device=ring.bench.device)

    def run() -> None:
        softmax_gradient_(ring.take(rows, spec.vocabulary, dtype=torch.float32), targets_N)

    return ring.time(run) / (rows * spec.vocabulary)


def _adapter(spec: DecoderSpec, rank: int, ring: Ring) -> tuple[float, float]:
    """A multiplication and addition of the products of an adapter on a square projection, forward and backward."""
    rows, width, full = ring.bench.rows(spec.hidden), spec.hidden, ring.bench.full
    a_RI, b_OR = full(rank, width), full(width, rank)
    down_TR, back_TR = full(rows, rank), full(rows, rank)
    grad_b_OR, grad_a_RI = full(width, rank, dtype=torch.float32), full(rank, width, dtype=torch.float32)

    def accumulate(left_TM: torch.Tensor, right_TN: torch.Tensor, into_MN: torch.Tensor) -> None:
        blas.product(left_TM, right_TN, into_MN, transpose_a=True, add=True)

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
