"""How long the parts of a step take on this machine: each is run a few times with made-up numbers.

    spec ──▶ its products in both directions, by each library ──▶ floating-point operations per second
         ──▶ norms, gated product, rotation, attention, loss, NF4, adapters, optimiser ──▶ seconds a number

Everything but the products is as fast as memory (`strop.plan.stopwatch`). What depends on the kind of layer is timed in
`strop.plan.timing_layer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle
from itertools import product as combinations
from math import prod

import psutil
import torch

from strop.kernels import blas, library, nf4
from strop.kernels.cross_entropy import softmax_gradient_
from strop.kernels.qlora_linear import FrozenGroup, WeightBuffer
from strop.kernels.widen import widen
from strop.model.spec import DecoderSpec
from strop.plan import stopwatch
from strop.plan.allocator import return_large_blocks
from strop.plan.machine import Machine, Rates, Shape, block_rows
from strop.plan.stopwatch import Ring, numbers, rows_of, typical
from strop.plan.timing_layer import layer_rates

# Seconds that all matrix products together may take.
_PRODUCTS_SECONDS = 1.6
# Seconds of an expert's calls on a GPU, beside its products: some fifteen kernels are started.
_GPU_EXPERT = 1e-4


def time_cpu(machine: Machine, spec: DecoderSpec, rank: int, dtypes: tuple[str, ...], threads: int) -> Machine:
    """The machine with its rates, for a model on the CPU."""
    return_large_blocks()
    with _threads(threads), torch.no_grad():
        matmul = _products(spec, dtypes)
        rates = _rates(spec, rank)
        bandwidth = _bandwidth()
    held = int(psutil.Process().memory_info().rss)
    return replace(
        machine,
        matmul=matmul,
        rates=rates,
        bandwidth=bandwidth,
        library_bytes=max(0, held - machine.process_bytes),
    )


def time_gpu(machine: Machine, spec: DecoderSpec, rank: int, dtypes: tuple[str, ...]) -> Machine:
    """The machine with its rates, for a model on a GPU: products are timed, the rest is what its memory can do."""
    matmul: dict[str, dict[str, dict[Shape, float]]] = {"torch": {}}
    for dtype, (inputs, outputs), rows in combinations(dtypes, sorted(_weights(spec)), (1024, 8192)):
        for forward in (True, False):
            shape = _shape(rows, inputs, outputs, forward=forward)
            kind = getattr(torch, dtype)
            a_MK = torch.empty(shape.m, shape.k, dtype=kind, device=machine.device).normal_()
            b_KN = torch.empty(outputs, inputs, dtype=kind, device=machine.device).normal_()
            seconds = _gpu_seconds(lambda a=a_MK, b=b_KN.T if forward else b_KN: a @ b)  # type: ignore[misc]
            matmul["torch"].setdefault(dtype, {})[shape] = 2.0 * shape.m * shape.k * shape.n / seconds
    source = torch.empty(1 << 28, dtype=torch.uint8, device=machine.device).zero_()
    bandwidth = 2.0 * source.nbytes / _gpu_seconds(source.clone)
    byte = 1.0 / bandwidth
    pair = 4.0 * spec.heads * spec.head_size / max(matmul["torch"][dtypes[0]].values())
    rates = Rates(
        dequantise=2.6 * byte,
        quantise=20 * byte,
        widen=6 * byte,
        norm=12 * byte,
        norm_backward=24 * byte,
        gate=12 * byte,
        gate_backward=24 * byte,
        head_norm=12 * byte,
        head_norm_backward=24 * byte,
        rotate=8 * byte,
        dropout=12 * byte,
        softmax=20 * byte,
        attend=16 * byte * spec.heads * spec.head_size,
        attend_pair=2 * pair,
        attend_backward=32 * byte * spec.heads * spec.head_size,
        attend_backward_pair=5 * pair,
        # Scores are written and read several times over instead of staying inside a kernel.
        scored=16 * byte * spec.heads * spec.head_size,
        scored_pair=2 * pair + 60 * byte * spec.heads,
        scored_backward=32 * byte * spec.heads * spec.head_size,
        scored_backward_pair=5 * pair + 120 * byte * spec.heads,
        expert=_GPU_EXPERT,
        adapter=4 * byte / rank,
        adapter_backward=6 * byte / rank,
        optimise=40 * byte,
        answer=2 * byte,
    )
    return replace(machine, matmul=matmul, rates=rates, bandwidth=bandwidth)


def _weights(spec: DecoderSpec) -> set[tuple[int, int]]:
    """(inputs, outputs) of every product with a frozen weight, as large as it is done at a time; the head's too."""
    sizes = {*spec.products, (spec.hidden, spec.vocabulary)}
    return {(inputs, min(outputs, block_rows(inputs))) for inputs, outputs in sizes}


def _shape(rows: int, inputs: int, outputs: int, *, forward: bool) -> Shape:
    return Shape(rows, inputs, outputs, True) if forward else Shape(rows, outputs, inputs, False)


def _products(spec: DecoderSpec, dtypes: tuple[str, ...]) -> dict[str, dict[str, dict[Shape, float]]]:
    """Rates of the model's products, at two counts of rows: as many as the time allows, and a quarter of them."""
    kinds = [(name, dtype) for dtype in dtypes for name in (blas.libraries() if dtype == "float32" else ("torch",))]
    weights = sorted(_weights(spec))
    each = _PRODUCTS_SECONDS / (len(kinds) * len(weights) * 2)
    matmul: dict[str, dict[str, dict[Shape, float]]] = {}
    for (name, dtype), (inputs, outputs) in combinations(kinds, weights):
        found = matmul.setdefault(name, {}).setdefault(dtype, {})
        with blas.using(name):
            for forward in (True, False):
                found.update(_product(inputs, outputs, getattr(torch, dtype), forward, each))
    return matmul


def _product(inputs: int, outputs: int, dtype: torch.dtype, forward: bool, seconds: float) -> dict[Shape, float]:
    weight_OI = torch.full((outputs, inputs), 0.5, dtype=dtype)
    width, columns = (inputs, outputs) if forward else (outputs, inputs)

    def timed(rows: int, seconds: float) -> float:
        a_MK, out_MN = torch.full((rows, width), 0.5, dtype=dtype), torch.empty(rows, columns, dtype=dtype)
        return typical(lambda: blas.product(a_MK, weight_OI, out_MN, transpose_b=forward), seconds)

    # Three repetitions of the many rows, and a quarter of that for the few.
    rows, trial = 64, timed(64, 0.002)
    while rows < 1024 and trial * 2 * 3.75 < seconds:
        rows, trial = rows * 2, trial * 2
    points = {count: timed(count, seconds / 2) for count in (rows // 4, rows)}
    return {
        _shape(count, inputs, outputs, forward=forward): 2.0 * count * inputs * outputs / each
        for count, each in points.items()
    }


def _rates(spec: DecoderSpec, rank: int) -> Rates:
    ring = Ring()
    adapter, adapter_backward = _adapter(spec, rank, ring)
    return Rates(
        **_nf4(spec, ring),
        **layer_rates(spec, ring),
        softmax=_softmax(spec, ring),
        adapter=adapter,
        adapter_backward=adapter_backward,
        optimise=_optimise(ring),
        answer=_answer(spec, ring),
    )


def _nf4(spec: DecoderSpec, ring: Ring) -> dict[str, float]:
    rows = max(64, min(block_rows(spec.hidden), stopwatch.NUMBERS // spec.hidden))
    half_OI = numbers(rows, spec.hidden).bfloat16()
    count, layers = half_OI.numel(), cycle(_made_up_layers(spec))
    weights = _layer_weights(spec)

    def dequantise() -> None:
        for group in next(layers):
            for _ in group.blocks(torch.float32):
                pass

    return {
        "dequantise": typical(dequantise) / weights,
        "quantise": typical(lambda: nf4.quantize(half_OI)) / count,
        "widen": ring.time(lambda: widen(half_OI, ring.take(rows, spec.hidden))) / count,
    }


def _made_up_layers(spec: DecoderSpec) -> list[list[FrozenGroup]]:
    """Groups of a layer's weights in NF4, so many layers that they are out of the caches when they come again."""
    size = _layer_weights(spec) // 2
    buffer = WeightBuffer()
    return [
        [FrozenGroup([_made_up(spec.projection_shape(name)) for name in names], None, buffer) for names in spec.groups]
        for _ in range(max(1, min(spec.layers, 4 * stopwatch.NUMBERS // size)))
    ]


def _layer_weights(spec: DecoderSpec) -> int:
    """Weights of a layer with every group of projections that a layer can have."""
    return sum(prod(spec.projection_shape(name)) for name in spec.projections)


def _made_up(shape: tuple[int, int]) -> nf4.NF4Tensor:
    blocks = -(-shape[0] * shape[1] // nf4.BLOCK)
    return nf4.NF4Tensor(
        torch.full((-(-shape[0] * shape[1] // 2),), 0x5A, dtype=torch.uint8),
        torch.full((blocks,), 0x5A, dtype=torch.uint8),
        torch.ones(-(-blocks // nf4.NESTED_BLOCK)),
        torch.tensor(0.5),
        shape,
    )


def _softmax(spec: DecoderSpec, ring: Ring) -> float:
    rows = max(1, min(256, stopwatch.NUMBERS // spec.vocabulary))
    targets_N = torch.zeros(rows, dtype=torch.int64)
    return ring.time(lambda: softmax_gradient_(ring.take(rows, spec.vocabulary), targets_N)) / (rows * spec.vocabulary)


def _adapter(spec: DecoderSpec, rank: int, ring: Ring) -> tuple[float, float]:
    """A multiplication and addition of the products of an adapter on a square projection, forward and backward."""
    rows, width = rows_of(spec.hidden), spec.hidden
    a_RI, b_OR, down_TR, back_TR = numbers(rank, width), numbers(width, rank), *numbers(2, rows, rank)
    grad_b_OR, grad_a_RI = torch.zeros(width, rank), torch.zeros(rank, width)

    def forward() -> None:
        blas.product(ring.take(rows, width), a_RI, down_TR, transpose_b=True)
        blas.product(down_TR, b_OR, ring.take(rows, width), transpose_b=True, alpha=1e-3, add=True)

    def backward() -> None:
        x_TI, grad_TO = ring.take(rows, width), ring.take(rows, width)
        blas.product(x_TI, a_RI, down_TR, transpose_b=True)
        blas.product(grad_TO, b_OR, back_TR)
        blas.product(grad_TO, down_TR, grad_b_OR, transpose_a=True, add=True)
        blas.product(back_TR, x_TI, grad_a_RI, transpose_a=True, add=True)
        blas.product(back_TR, a_RI, ring.take(rows, width), alpha=1e-3, add=True)

    sizes = rows * width * rank
    return ring.time(forward) / (2 * sizes), ring.time(backward) / (5 * sizes)


def _optimise(ring: Ring) -> float:
    """A parameter: the norm of its gradient, the scaling, and AdamW as `strop.training.optimizer` calls it."""
    count, steps = 1 << 18, [torch.ones(())]
    rates = {"lr": 1e-6, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "eps": 1e-8}
    as_is = {"amsgrad": False, "maximize": False}

    def move() -> None:
        parameter, grad, first, second = (ring.take(count) for _ in range(4))
        grad.mul_(1.0 / max(1.0, float(torch.linalg.vector_norm(grad))))
        torch._fused_adamw_([parameter], [grad], [first], [second], [], steps, **rates, **as_is)  # type: ignore[call-overload]

    return ring.time(move) / count


def _answer(spec: DecoderSpec, ring: Ring) -> float:
    """A weight of a product with a token of each of three answers: the weights come from memory."""
    x_BI, columns = numbers(3, spec.hidden), stopwatch.NUMBERS // spec.hidden
    out_BO = torch.empty(3, columns)
    take = ring.take
    return ring.time(lambda: blas.product(x_BI, take(columns, spec.hidden), out_BO, transpose_b=True)) / (
        columns * spec.hidden
    )


def _bandwidth() -> float:
    source, target = torch.empty(1 << 26, dtype=torch.uint8).zero_(), torch.empty(1 << 26, dtype=torch.uint8)
    return 2.0 * source.numel() / typical(lambda: target.copy_(source))


def _gpu_seconds(run: Callable[[], object]) -> float:
    def whole() -> None:
        run()
        torch.cuda.synchronize()

    return typical(whole)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads everywhere, and as many as before afterwards."""
    before, native = torch.get_num_threads(), library.threads()
    torch.set_num_threads(count)
    blas.set_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        blas.set_threads(native)
