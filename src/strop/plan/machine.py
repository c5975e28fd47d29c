"""What this machine is and how fast it does what a step is made of: timed for a few seconds, on the model's own shapes.

    probe()        the device, its cores and its free memory, at once
    probe(spec)    and the rates: matrix products in both directions and by each library, and everything between them

Each thing is done a few times and the fastest counts: others on the machine make it slower, nothing makes it faster. A
product of m rows takes a + b m seconds, the b from two counts of rows; so a rate grows with the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from strop.kernels.qlora_linear import BLOCK_WEIGHTS
from strop.model.spec import DecoderSpec

if TYPE_CHECKING:
    from strop.plan.precision import Speeds


class Shape(NamedTuple):
    """A product [m, k] · [k, n]; ``transposed`` where the second operand is stored [n, k], as in the forward pass."""

    m: int
    k: int
    n: int
    transposed: bool


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds that things take.

    Attributes:
        dequantise: a weight, NF4 to the compute dtype.
        quantise: a weight, to NF4.
        widen: a weight, 16 bits to float32.
        norm: a number.
        norm_backward: a number.
        gate: a number of the gated product.
        gate_backward: a number of the gated product.
        head_norm: a number of queries and keys under norms of their own.
        head_norm_backward: the same, backward.
        rotate: a number of queries and keys.
        dropout: a number.
        softmax: a logit, its loss and its gradient.
        attend: a position's queries of one layer, beside its pairs.
        attend_pair: a position and one that it sees, in one layer.
        attend_backward: as attend.
        attend_backward_pair: as attend_pair.
        scored: as attend, where scores are not plain: caps, windows, ALiBi.
        scored_pair: as attend_pair, likewise.
        scored_backward: as scored.
        scored_backward_pair: as scored_pair.
        expert: a call of an expert, beside its products and its rows.
        adapter: a multiplication and addition of an adapter's products, forward.
        adapter_backward: the same, backward.
        optimise: a parameter: clipping and AdamW.
        answer: a weight of a product of a few rows, as answers are made of.
    """

    dequantise: float
    quantise: float
    widen: float
    norm: float
    norm_backward: float
    gate: float
    gate_backward: float
    head_norm: float
    head_norm_backward: float
    rotate: float
    dropout: float
    softmax: float
    attend: float
    attend_pair: float
    attend_backward: float
    attend_backward_pair: float
    scored: float
    scored_pair: float
    scored_backward: float
    scored_backward_pair: float
    expert: float
    adapter: float
    adapter_backward: float
    optimise: float
    answer: float


@dataclass(frozen=True, slots=True, eq=False)
class Machine:
    """What a plan is made for.

    Attributes:
        device: "cpu", "cuda" or "cuda:N".
        name: of the processor or the GPU, for people.
        cores: physical cores that this process may use.
        total_bytes: memory of the device.
        free_bytes: what is left of it for this process, what it already holds included.
        process_bytes: what this process held on the device before anything was timed.
        library_bytes: what the matrix and other libraries took for themselves while they were timed, and keep.
        bandwidth: bytes per second, read and written, of a copy in the device's memory; 0 where nothing was timed.
        upload: bytes per second from the machine's pinned memory to a GPU; 0 on a CPU.
        download: bytes per second the other way.
        launch: seconds that the host takes for an operation itself, which a GPU computes meanwhile and a CPU does not;
            0 on a CPU in float32, where it does not show.
        host_free_bytes: what is free of the machine's own memory, beside a GPU's.
        attention: what computes attention fastest on a GPU (`Plan.attention`).
        speeds: products of a CPU in float32 and in bfloat16; None where they were not compared.
        matmul: library → dtype → shape → floating-point operations per second.
        rates: the rest; None where nothing was timed.
    """

    device: str
    name: str
    cores: int
    total_bytes: int
    free_bytes: int
    process_bytes: int
    library_bytes: int = 0
    bandwidth: float = 0.0
    matmul: Mapping[str, Mapping[str, Mapping[Shape, float]]] | None = None
    rates: Rates | None = None
    upload: float = 0.0
    download: float = 0.0
    launch: float = 0.0
    host_free_bytes: int = 0
    attention: str = "native"
    speeds: Speeds | None = None

    @property
    def dtype(self) -> str:
        """What was timed; empty where nothing was."""
        timed = [dtype for by_dtype in (self.matmul or {}).values() for dtype in by_dtype]
        return timed[0] if timed else ""

    @property
    def on_gpu(self) -> bool:
        """Whether it is a CUDA device."""
        return self.device.startswith("cuda")

    def product_seconds(self, library: str, dtype: str, inputs: int, outputs: int, *, forward: bool) -> Line:
        """Seconds of a product with a frozen weight [outputs, inputs], by rows.

        Where the library was not timed in this dtype, because it is not here or does not know it, the times are
        another's.

        Raises:
            KeyError: no such product was timed.
        """
        columns = min(outputs, block_rows(inputs))
        k, n = (inputs, columns) if forward else (columns, inputs)
        by_library = self.matmul or {}
        others = [by_dtype[dtype] for by_dtype in by_library.values() if dtype in by_dtype]
        timed = by_library.get(library, {}).get(dtype) or (others[-1] if others else {})
        points = sorted((s.m, 2.0 * s.m * k * n / rate) for s, rate in timed.items() if s[1:] == (k, n, forward))
        if not points:
            raise KeyError((library, dtype, k, n, forward))
        return _line(points).scaled(outputs / columns)

    def as_dict(self) -> dict[str, Any]:
        """The machine, for `--json` and the record."""
        return {
            "device": self.device,
            "name": self.name,
            "cores": self.cores,
            "total_bytes": self.total_bytes,
            "free_bytes": self.free_bytes,
            "process_bytes": self.process_bytes,
            "bandwidth_bytes_per_s": self.bandwidth,
            "upload_bytes_per_s": self.upload,
            "download_bytes_per_s": self.download,
            "launch_seconds": self.launch,
            "host_free_bytes": self.host_free_bytes,
            "attention": self.attention,
            "dtypes": {"float32": self.speeds.float32, "bfloat16": self.speeds.bfloat16} if self.speeds else {},
            "matmul": [
                {"library": library, "dtype": dtype, **shape._asdict(), "flops_per_s": rate}
                for library, by_dtype in (self.matmul or {}).items()
                for dtype, by_shape in by_dtype.items()
                for shape, rate in by_shape.items()
            ],
            "rates": {item.name: getattr(self.rates, item.name) for item in fields(Rates)} if self.rates else {},
        }


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds of an operation on m rows: fixed + each · m."""

    fixed: float
    each: float

    def scaled(self, times: float) -> Line:
        """So many of them."""
        return Line(self.fixed * times, self.each * times)

    def seconds(self, calls: float, rows: float) -> float:
        """All of ``calls`` operations that have ``rows`` rows together."""
        return self.fixed * calls + self.each * rows


def _line(points: Sequence[tuple[int, float]]) -> Line:
    """The line through the seconds at the fewest and the most rows; neither part of it is negative."""
    (few, fast), (many, slow) = points[0], points[-1]
    if many == few:
        return Line(0.0, slow / many)
    each = min(max((slow - fast) / (many - few), 0.5 * slow / many), slow / many)
    return Line(max(slow - each * many, 0.0), each)


def block_rows(inputs: int) -> int:
    """Rows of a weight that a product takes at most at a time: larger ones are dequantised in blocks."""
    return max(BLOCK_WEIGHTS // inputs // 64, 1) * 64


def probe(
    spec: DecoderSpec | None = None,
    *,
    device: str | None = None,
    rank: int = 16,
    dtypes: tuple[str, ...] = (),
    threads: int | None = None,
) -> Machine:
    """Looks at the machine; with a model, times what its steps are made of, in about three seconds.

    Args:
        spec: the model; None to time nothing.
        device: "cpu", "cuda" or "cuda:N"; by default a GPU where there is one.
        rank: of the adapters.
        dtypes: what to time in; by default what a CPU is faster in (`strop.plan.precision`), bfloat16 on a GPU.
        threads: of the CPU; by default all cores.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda"):
        from strop.plan import gpu

        gpu.prepare(device)
        machine = _look_at_gpu(device)
        if spec is None:
            return machine
        from strop.plan.timing import time_gpu

        return time_gpu(machine, spec, rank, dtypes or (gpu.default_dtype(device),))
    machine = _look_at_cpu()
    if spec is None:
        return machine
    from strop.plan.timing import time_cpu

    return time_cpu(machine, spec, rank, dtypes, threads or machine.cores)


def _look_at_gpu(device: str) -> Machine:
    import psutil
    import torch

    from strop.plan import gpu

    total, ours = gpu.memory(device)
    name, held = torch.cuda.get_device_name(device), gpu.used_bytes(device)
    free = int(psutil.virtual_memory().available)
    limit = _container_limit()
    host_free = free if limit is None else min(free, limit[1])
    return Machine(device, name, _cores(), total, ours, held, host_free_bytes=host_free)


def _look_at_cpu() -> Machine:
    import psutil

    memory, held = psutil.virtual_memory(), int(psutil.Process().memory_info().rss)
    total, free = int(memory.total), int(memory.available) + held
    limit = _container_limit()
    if limit is not None:
        total, free = min(total, limit[0]), min(free, limit[1] + held)
    return Machine("cpu", _processor_name(), _cores(), total, free, held)


def _cores() -> int:
    """Physical cores that this process may use."""
    import psutil

    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    usable = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else cores
    return min(cores, usable)


def _processor_name() -> str:
    """The processor as the system calls it."""
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (named or [platform.processor()])[0] or platform.machine()


def _container_limit(root: Path = Path("/sys/fs/cgroup")) -> tuple[int, int] | None:
    """(limit, what is left of it) of a Linux container, which the system's own figures do not know; None without one.

    Pages of files that nobody uses count as used there and are given up at once when memory is asked for.
    """
    names = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
    for limit_name, used_name in names:
        try:
            limit, used = int((root / limit_name).read_text()), int((root / used_name).read_text())
            facts = dict(
                line.split() for line in (root / used_name).with_name("memory.stat").read_text().splitlines() if line
            )
        except (OSError, ValueError):
            continue
        idle = int(facts.get("inactive_file", 0))
        if limit < 1 << 60:  # more is how version 1 says "no limit"
            return limit, max(limit - used + idle, 0)
    return None
