"""How long the parts of a step take on this machine: each is run a few times with made-up numbers.

    spec ──▶ its products in both directions, by each library ──▶ floating-point operations per second
         ──▶ norms, gated product, rotation, attention, loss, NF4, adapters, optimiser ──▶ seconds a number

Operands are larger than a core's caches, as a step finds them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product as combinations

import psutil
import torch
from torch import Tensor

from strop.kernels import blas, library, nf4
from strop.kernels.attention import Span, attend, attend_backward
from strop.kernels.cross_entropy import softmax_gradient_
from strop.kernels.dropout import dropout_into, token_keys
from strop.kernels.rms_norm import normalize, normalize_backward
from strop.kernels.rope import rotate_
from strop.kernels.swiglu import gate, gate_backward_
from strop.kernels.widen import widen
from strop.model.spec import GROUPS, DecoderSpec
from strop.plan.machine import Machine, Rates, Shape, block_rows

# Seconds that all matrix products together may take, and the repetitions of one operation.
_PRODUCTS_SECONDS = 1.6
_SECONDS = 0.02
# Numbers of an operation's largest operand: 16 MiB in float32 are more than a core's caches hold.
_NUMBERS = 1 << 22
_DOCUMENTS = ((8, 64), (1, 512))  # documents and their lengths that attention is timed on


def time_cpu(machine: Machine, spec: DecoderSpec, rank: int, dtypes: tuple[str, ...], threads: int) -> Machine:
    """The machine with its rates, for a model on the CPU."""
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
        rotate=8 * byte,
        dropout=12 * byte,
        softmax=20 * byte,
        attend=16 * byte * spec.heads * spec.head_size,
        attend_pair=2 * pair,
        attend_backward=32 * byte * spec.heads * spec.head_size,
        attend_backward_pair=5 * pair,
        adapter=4 * byte / rank,
        adapter_backward=6 * byte / rank,
        optimise=40 * byte,
    )
    return replace(machine, matmul=matmul, rates=rates, bandwidth=bandwidth)


def _weights(spec: DecoderSpec) -> set[tuple[int, int]]:
    """(inputs, outputs) of every product with a frozen weight, as large as it is done at a time; the head's too."""
    sizes = {
        (spec.projection_shape(names[0])[1], sum(spec.projection_shape(name)[0] for name in names)) for names in GROUPS
    }
    sizes.add((spec.hidden, spec.vocabulary))
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
        return _least(lambda: blas.product(a_MK, weight_OI, out_MN, transpose_b=forward), seconds)

    # Three repetitions of the many rows, and a quarter of that for the few.
    rows, trial = 64, timed(64, 0.002)
    while rows < 1024 and trial * 2 * 3.75 < seconds:
        rows, trial = rows * 2, trial * 2
    points = {count: timed(count, seconds / 2) for count in (rows // 4, rows)}
    return {
        _shape(count, inputs, outputs, forward=forward): 2.0 * count * inputs * outputs / least
        for count, least in points.items()
    }


def _rates(spec: DecoderSpec, rank: int) -> Rates:
    attention, backward = _attention(spec)
    adapter, adapter_backward = _adapter(spec, rank)
    return Rates(
        **_nf4(spec),
        **_element_wise(spec),
        softmax=_softmax(spec),
        attend=attention[0],
        attend_pair=attention[1],
        attend_backward=backward[0],
        attend_backward_pair=backward[1],
        adapter=adapter,
        adapter_backward=adapter_backward,
        optimise=_optimise(),
    )


def _nf4(spec: DecoderSpec) -> dict[str, float]:
    rows = max(64, min(block_rows(spec.hidden), _NUMBERS // spec.hidden))
    weight_OI, half_OI = _numbers(rows, spec.hidden), _numbers(rows, spec.hidden).bfloat16()
    packed, count = nf4.quantize(weight_OI), weight_OI.numel()
    return {
        "dequantise": _least(lambda: nf4.dequantize(packed, out=weight_OI)) / count,
        "quantise": _least(lambda: nf4.quantize(half_OI)) / count,
        "widen": _least(lambda: widen(half_OI, weight_OI)) / count,
    }


def _element_wise(spec: DecoderSpec) -> dict[str, float]:
    width, middle, head = spec.hidden, spec.intermediate, spec.head_size
    heads = spec.heads + spec.kv_heads
    x_TD, y_TD, grad_TD = (_numbers(_rows(width), width) for _ in range(3))
    gate_up_T2F, gated_TF = _numbers(_rows(2 * middle), 2 * middle), _numbers(_rows(2 * middle), middle)
    heads_THE = _numbers(_rows(heads * head), heads, head)
    cos_TE, sin_TE = _numbers(len(heads_THE), head // 2), _numbers(len(heads_THE), head // 2)
    weight_D, places_T = _numbers(width), torch.arange(len(x_TD))
    keys_T = token_keys(1, places_T, places_T)
    seconds = {
        "norm": _least(lambda: normalize(x_TD, weight_D, 1e-5, y_TD)) / x_TD.numel(),
        "norm_backward": _least(lambda: normalize_backward(y_TD, x_TD, weight_D, 1e-5, grad_TD)) / x_TD.numel(),
        "gate": _least(lambda: gate(gate_up_T2F, gated_TF)) / gated_TF.numel(),
        "rotate": _least(lambda: rotate_(heads_THE, cos_TE, sin_TE)) / heads_THE.numel(),
        "dropout": _least(lambda: dropout_into(x_TD, keys_T, 7, 0.1, y_TD)) / x_TD.numel(),
    }
    # Last: its operand shrinks towards zero, and denormal numbers would be slow.
    seconds["gate_backward"] = _least(lambda: gate_backward_(gated_TF, gate_up_T2F)) / gated_TF.numel()
    return seconds


def _softmax(spec: DecoderSpec) -> float:
    rows = max(1, min(256, _NUMBERS // spec.vocabulary))
    logits_NV, targets_N = _numbers(rows, spec.vocabulary), torch.zeros(rows, dtype=torch.int64)
    return _least(lambda: softmax_gradient_(logits_NV, targets_N)) / logits_NV.numel()


def _attention(spec: DecoderSpec) -> tuple[tuple[float, float], tuple[float, float]]:
    """(a position, a pair) forward and backward: from short documents and a long one of as many positions."""
    queries, keys = spec.heads * spec.head_size, spec.kv_heads * spec.head_size
    points = []
    for documents, length in _DOCUMENTS:
        rows = documents * length
        spans = [Span(start, start + length, start, start) for start in range(0, rows, length)]
        qkv_TP, grad_TP = _numbers(rows, queries + 2 * keys), torch.empty(rows, queries + 2 * keys)
        y_TQ, sums_HT, grad_TQ = torch.empty(rows, queries), torch.empty(spec.heads, rows), _numbers(rows, queries)
        shape = (spec.heads, spec.kv_heads)
        forward = _least(lambda: attend(qkv_TP, spans, *shape, y_TQ, sums_HT))  # noqa: B023
        backward = _least(lambda: attend_backward(qkv_TP, y_TQ, grad_TQ, sums_HT, spans, *shape, grad_TP))  # noqa: B023
        points.append((rows, documents * length * (length + 1) // 2, forward, backward))
    (rows, few, *short), (_, many, *long) = points
    fits = []
    for near, far in zip(short, long, strict=True):
        pair = max((far - near) / (many - few), 0.1 * far / many)
        fits.append((max(near - pair * few, 0.0) / rows, pair))
    return fits[0], fits[1]


def _adapter(spec: DecoderSpec, rank: int) -> tuple[float, float]:
    """A multiplication and addition of the products of an adapter on a square projection, forward and backward."""
    rows, width = _rows(spec.hidden), spec.hidden
    x_TI, grad_TO, into_TI, out_TO = (_numbers(rows, width) for _ in range(4))
    a_RI, b_OR, down_TR, back_TR = _numbers(rank, width), _numbers(width, rank), *_numbers(2, rows, rank)
    grad_b_OR, grad_a_RI = torch.zeros(width, rank), torch.zeros(rank, width)

    def forward() -> None:
        blas.product(x_TI, a_RI, down_TR, transpose_b=True)
        blas.product(down_TR, b_OR, out_TO, transpose_b=True, alpha=0.5, add=True)

    def backward() -> None:
        blas.product(x_TI, a_RI, down_TR, transpose_b=True)
        blas.product(grad_TO, b_OR, back_TR)
        grad_b_OR.addmm_(grad_TO.T, down_TR, alpha=0.5)
        grad_a_RI.addmm_(back_TR.T, x_TI, alpha=0.5)
        blas.product(back_TR, a_RI, into_TI, alpha=0.5, add=True)

    sizes = rows * width * rank
    return _least(forward) / (2 * sizes), _least(backward) / (5 * sizes)


def _optimise() -> float:
    """A parameter: the norm of its gradient, the scaling, and AdamW as `strop.training.optimizer` calls it."""
    parameter, grad, first, second = (_numbers(1 << 20) for _ in range(4))
    steps, rates = [torch.ones(())], {"lr": 1e-6, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "eps": 1e-8}
    as_is = {"amsgrad": False, "maximize": False}

    def move() -> None:
        grad.mul_(1.0 / max(1.0, float(torch.linalg.vector_norm(grad))))
        torch._fused_adamw_([parameter], [grad], [first], [second], [], steps, **rates, **as_is)  # type: ignore[call-overload]

    return _least(move) / parameter.numel()


def _bandwidth() -> float:
    source, target = torch.empty(1 << 26, dtype=torch.uint8).zero_(), torch.empty(1 << 26, dtype=torch.uint8)
    return 2.0 * source.numel() / _least(lambda: target.copy_(source))


def _numbers(*shape: int) -> Tensor:
    return torch.full(shape, 0.5)


def _rows(width: int) -> int:
    return max(64, min(2048, _NUMBERS // width))


def _least(run: Callable[[], object], seconds: float = _SECONDS) -> float:
    """Seconds of the fastest of a few runs; the first does not count where there is time for another."""
    best, began, runs = float("inf"), time.perf_counter(), 0
    while True:
        start = time.perf_counter()
        run()
        end = time.perf_counter()
        best, runs = end - start if runs == 1 else min(best, end - start), runs + 1
        # A machine that is busy with something else must not hold up the plan: three times the time is the end of it.
        if end - began >= (seconds if runs > 3 else 3 * seconds):
            return best


def _gpu_seconds(run: Callable[[], object]) -> float:
    def whole() -> None:
        run()
        torch.cuda.synchronize()

    return _least(whole)


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
