"""How long the parts of a step take on this machine: each is run a few times with made-up numbers.

    spec ──▶ its products in both directions, by each library ──▶ floating-point operations per second
         ──▶ what lies between them (`strop.plan.timing_rates`) ──▶ seconds a number
         ──▶ on a GPU: copies to and from it, and launches

The same code times both kinds of device: a `Bench` says where the operands lie, how large they are, and by which clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product as combinations

import psutil
import torch

from strop.kernels import blas, library
from strop.kernels.rms_norm import normalize
from strop.model.spec import DecoderSpec
from strop.plan import gpu, precision
from strop.plan.allocator import return_large_blocks
from strop.plan.bench import Bench, Ring
from strop.plan.clocks import EventClock, wall_clock
from strop.plan.machine import Machine, Shape, block_rows
from strop.plan.timing_layer import fastest_attention
from strop.plan.timing_rates import rates

# Seconds that all matrix products together may take.
_PRODUCTS_SECONDS = 1.6
_SECONDS = 0.02
# Numbers of an operation's largest operand; the ring holds six: 96 MiB on a CPU, where this counts float32 numbers,
# 384 MiB in bfloat16 on a GPU, whose cache holds 50 MB.
_NUMBERS = 1 << 22
_GPU_NUMBERS = 1 << 25
# Rows that a GPU's products are timed with.
_GPU_ROWS = (1024, 8192)
_COPIED_BYTES = 1 << 28
_LAUNCHES = 256


def time_cpu(machine: Machine, spec: DecoderSpec, rank: int, dtypes: tuple[str, ...], threads: int) -> Machine:
    """The machine with its rates, for a model on the CPU.

    Args:
        machine: as it was looked at.
        spec: the model.
        rank: of the adapters.
        dtypes: of the products, the first also of what lies between them; none for what this CPU is faster in.
        threads: threads of the CPU.
    """
    return_large_blocks()
    with _threads(threads), torch.no_grad():
        speeds = None if dtypes == ("float32",) else precision.compare(spec.products)
        dtypes = dtypes or (precision.taken(speeds),)
        dtype = getattr(torch, dtypes[0])
        bench = Bench(torch.device("cpu"), dtype, _NUMBERS * 4 // dtype.itemsize, _SECONDS, wall_clock)
        matmul = _products(spec, dtypes, bench)
        measured = rates(spec, rank, bench)
        launch = 0.0 if dtype is torch.float32 else launch_seconds(bench)
        bandwidth = _bandwidth(bench, 1 << 26)
    held = int(psutil.Process().memory_info().rss)
    return replace(
        machine,
        matmul=matmul,
        rates=measured,
        bandwidth=bandwidth,
        speeds=speeds,
        launch=launch,
        library_bytes=max(0, held - machine.process_bytes),
    )


def time_gpu(
    machine: Machine,
    spec: DecoderSpec,
    rank: int,
    dtypes: tuple[str, ...],
    bench: Bench | None = None,
    held: Callable[[], int] | None = None,
) -> Machine:
    """The machine with its rates, for a model on a GPU.

    Args:
        machine: as it was looked at.
        spec: the model.
        rank: of the adapters.
        dtypes: of the products.
        bench: where and how to time; by default on the machine's device by its own events.
        held: what this process holds of the device's memory; by default as the driver says.
    """
    bench = bench or _gpu_bench(machine, getattr(torch, dtypes[0]))
    with torch.no_grad():
        matmul = {"torch": {dtype: _gpu_products(spec, getattr(torch, dtype), bench) for dtype in dtypes}}
        attention, attention_rates = fastest_attention(spec, bench)
        measured = rates(spec, rank, bench, attention_rates)
        bandwidth = _bandwidth(bench, 2 * bench.numbers)
        upload, download = _link(bench)
        launch = launch_seconds(bench)
    return replace(
        machine,
        matmul=matmul,
        rates=measured,
        bandwidth=bandwidth,
        upload=upload,
        download=download,
        launch=launch,
        attention=attention,
        library_bytes=max(0, (held or (lambda: _left(machine.device)))() - machine.process_bytes),
    )


def _gpu_bench(machine: Machine, dtype: torch.dtype) -> Bench:
    """Operands beyond the caches of any card, or what a small one has room for."""
    numbers = min(_GPU_NUMBERS, machine.free_bytes // 64)
    return Bench(torch.device(machine.device), dtype, numbers, _SECONDS, EventClock())


def _left(device: str) -> int:
    """What stays held once what was timed is gone: the context, and the workspaces of libraries."""
    gpu.give_back(device)
    gpu.forget_peak(device)
    return gpu.used_bytes(device)


def _weights(spec: DecoderSpec) -> set[tuple[int, int]]:
    """(inputs, outputs) of every product with a frozen weight, as large as it is done at a time; the head's too."""
    sizes = {*spec.products, (spec.hidden, spec.vocabulary)}
    return {(inputs, min(outputs, block_rows(inputs))) for inputs, outputs in sizes}


def _shape(rows: int, inputs: int, outputs: int, *, forward: bool) -> Shape:
    return Shape(rows, inputs, outputs, True) if forward else Shape(rows, outputs, inputs, False)


def _products(spec: DecoderSpec, dtypes: tuple[str, ...], bench: Bench) -> dict[str, dict[str, dict[Shape, float]]]:
    """Rates of the model's products, at two counts of rows: as many as the time allows, and a quarter of them.

    In bfloat16 a weight and the result come from memory, as in a step: from the caches products seem a third faster.
    """
    kinds = [(name, dtype) for dtype in dtypes for name in _libraries(dtype)]
    weights = sorted(_weights(spec))
    each = _PRODUCTS_SECONDS / (len(kinds) * len(weights) * 2)
    ring = Ring(bench) if "bfloat16" in dtypes else None
    matmul: dict[str, dict[str, dict[Shape, float]]] = {}
    for (name, dtype), (inputs, outputs) in combinations(kinds, weights):
        found = matmul.setdefault(name, {}).setdefault(dtype, {})
        with blas.using(name):
            for forward in (True, False):
                found.update(_product(inputs, outputs, getattr(torch, dtype), forward, each, ring))
    return matmul


def _libraries(dtype: str) -> tuple[str, ...]:
    """What is timed: torch's bfloat16 only where there is nothing else, for it keeps code for every shape it meets."""
    names = blas.libraries(getattr(torch, dtype))
    return names if dtype == "float32" else names[:1]


def _product(
    inputs: int, outputs: int, dtype: torch.dtype, forward: bool, seconds: float, ring: Ring | None
) -> dict[Shape, float]:
    # Three repetitions of the many rows, and a quarter of that for the few.
    low = dtype is torch.bfloat16
    bench = Bench(torch.device("cpu"), dtype, 0, seconds, wall_clock)
    ring = ring if low else None
    rows, trial = 64, _product_seconds(bench, 64, inputs, outputs, forward, 0.002, ring)
    while rows < (2048 if low else 1024) and trial * 2 * 3.75 < seconds:
        rows, trial = rows * 2, trial * 2
    counts = (rows // 4, rows)
    points = {count: _product_seconds(bench, count, inputs, outputs, forward, seconds / 2, ring) for count in counts}
    return {
        _shape(count, inputs, outputs, forward=forward): 2.0 * count * inputs * outputs / each
        for count, each in points.items()
    }


def _gpu_products(spec: DecoderSpec, dtype: torch.dtype, bench: Bench) -> dict[Shape, float]:
    """Rates of the model's products in both layouts, at two counts of rows."""
    there = replace(bench, dtype=dtype)
    return {
        _shape(rows, inputs, outputs, forward=forward): 2.0
        * (rows * inputs * outputs)
        / _product_seconds(there, rows, inputs, outputs, forward, bench.seconds)
        for (inputs, outputs), rows, forward in combinations(sorted(_weights(spec)), _GPU_ROWS, (True, False))
    }


def _product_seconds(
    bench: Bench, rows: int, inputs: int, outputs: int, forward: bool, seconds: float, ring: Ring | None = None
) -> float:
    """Seconds of a product of a frozen weight [outputs, inputs] in one direction; weight and result from a ring."""
    # Random numbers on a GPU: with equal ones it draws less power and runs faster than it ever will.
    width, columns = (inputs, outputs) if forward else (outputs, inputs)
    a_MK = _operand(bench, rows, width)
    if ring is not None:

        def cold() -> None:
            blas.product(a_MK, ring.take(outputs, inputs), ring.take(rows, columns), transpose_b=forward)

        return bench.clock(cold, seconds)
    weight_OI, out_MN = _operand(bench, outputs, inputs), bench.full(rows, columns)
    return bench.clock(lambda: blas.product(a_MK, weight_OI, out_MN, transpose_b=forward), seconds)


def _operand(bench: Bench, rows: int, columns: int) -> torch.Tensor:
    return bench.full(rows, columns) if bench.device.type == "cpu" else bench.full(rows, columns).normal_()


def _bandwidth(bench: Bench, count: int) -> float:
    """Bytes per second, read and written, of a copy in the device's memory."""
    source = torch.empty(count, dtype=torch.uint8, device=bench.device).zero_()
    target = torch.empty(count, dtype=torch.uint8, device=bench.device)
    return 2.0 * source.numel() / bench.clock(lambda: target.copy_(source), bench.seconds)


def _link(bench: Bench) -> tuple[float, float]:
    """Bytes per second from the machine's pinned memory to the device, and back."""
    count = min(_COPIED_BYTES, 8 * bench.numbers)
    pinned = bench.device.type == "cuda"
    host = torch.zeros(count, dtype=torch.uint8, pin_memory=pinned)
    there = torch.zeros(count, dtype=torch.uint8, device=bench.device)
    up = bench.clock(lambda: there.copy_(host, non_blocking=pinned), bench.seconds)
    down = bench.clock(lambda: host.copy_(there, non_blocking=pinned), bench.seconds)
    return count / up, count / down


def launch_seconds(bench: Bench, now: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that the host takes for an operation of the engine too small for the device to notice."""
    x_TD, out_TD, weight_D = bench.full(1, 64), bench.full(1, 64), bench.full(64, dtype=torch.float32)
    a_MK, b_KN, c_MN = bench.full(1, 64), bench.full(64, 64), bench.full(1, 64)

    def run() -> None:
        normalize(x_TD, weight_D, 1e-5, out_TD)
        blas.product(a_MK, b_KN, c_MN)

    run()
    began = now()
    for _ in range(_LAUNCHES // 2):
        run()
    return (now() - began) / _LAUNCHES


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
