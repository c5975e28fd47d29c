"""Every plan that could be taken, and those that nothing beats in both memory and time.

    packings × places (of base and layers' inputs, on a GPU) × ends (head, embedding, loss chunk)
        × a grid over layers (computed again, made again, dense copies)

For one packing and place, memory and time are sums over layers: all plans of a model of 32 layers are a few additions
of arrays, and each is looked at. Where the ends are only shifts both, so that the grid is made once. Models of more
than 64 layers try every second count.

Shapes: L layers, R pairs of counts of layers computed or made again, C counts of copies, G plans that are left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product as combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from strop.model.workspace import GRADES, layout
from strop.plan.duration import forecast_time, step_parts, totals
from strop.plan.gpu_memory import host_bytes
from strop.plan.job import Job
from strop.plan.layer_time import layer_times
from strop.plan.machine import Machine
from strop.plan.memory import buffer_weights, forecast_memory, loading_peak, plan_item, plan_work
from strop.plan.plan import Plan
from strop.plan.workload import Workload, measure, pack_candidates

if TYPE_CHECKING:
    import numpy.typing as npt

Levers = Mapping[str, "str | int"]

# Loss chunks that are tried.
_CHUNKS = (32, 64, 128, 256, 512, 1024)
# Counts of layers that are tried: all of them up to here.
_GRID = 64
# The share of the machine's free memory that may be pinned for a GPU.
_HOST_SHARE = 0.8
# Layers' inputs that are on the device where they are kept outside.
_ON_DEVICE = 2
# Pack lengths that are tried at most: a GPU's products go on getting faster.
_LONGEST, _LONGEST_ON_GPU = 8192, 32768
# Sharing beginnings has to save this part of all positions.
_WORTH = 0.005


@dataclass(frozen=True, slots=True)
class Point:
    """A plan of the search, with what it costs: peak bytes, and seconds of the whole run."""

    bytes: int
    seconds: float
    plan: Plan
    workload: Workload


def front(job: Job, machine: Machine, start: Plan, levers: Levers) -> list[Point]:
    """All plans that nothing beats in both memory and time, the smallest memory first.

    Args:
        job: what is asked for.
        machine: what computes it, timed.
        start: a plan that keeps all and copies nothing; it says device, dtype and threads.
        levers: levers set by hand.
    """
    found: list[_Family] = []
    for plan, workload in _places(job, machine, start, levers):
        bytes_G, seconds_G, counts_G3 = _layer_grid(job, plan, workload, machine, levers)
        for ends in _ends(job, plan, workload, levers):
            components = forecast_memory(job, ends, workload, machine)
            shift = sum(components.values()) - components["loading"]
            seconds = seconds_G + sum(forecast_time(job, ends, workload, machine)[1].values())
            total_G = np.maximum(bytes_G + shift, loading_peak(job, components))
            held_G = _host_holds(job, machine, ends, workload, counts_G3[:, 0])
            some_G = held_G[_undominated(total_G[held_G], seconds[held_G])]
            found.append(_Family(ends, workload, total_G[some_G], seconds[some_G], counts_G3[some_G]))
    bytes_N, seconds_N = (
        np.concatenate(parts) for parts in zip(*((f.bytes_G, f.seconds_G) for f in found), strict=True)
    )
    place_N = np.concatenate([np.full(len(f.bytes_G), number) for number, f in enumerate(found)])
    first_F = np.cumsum([0, *(len(f.bytes_G) for f in found)])
    return [
        found[family].point(int(index - first_F[family]), levers)
        for index in _undominated(bytes_N, seconds_N)
        for family in [int(place_N[index])]
    ]


@dataclass(frozen=True, slots=True, eq=False)
class _Family:
    """Plans that differ in their layers alone: `plan` with any of the counts."""

    plan: Plan
    workload: Workload
    bytes_G: npt.NDArray[Any]
    seconds_G: npt.NDArray[Any]
    counts_G3: npt.NDArray[Any]

    def point(self, index: int, levers: Levers) -> Point:
        """One of them."""
        names = ("recompute_layers", "recompute_elementwise", "dense_layers")
        layers = dict(zip(names, self.counts_G3[index].tolist(), strict=True))
        plan = replace(self.plan, **{name: levers.get(name, count) for name, count in layers.items()})
        return Point(int(self.bytes_G[index]), float(self.seconds_G[index]), plan, self.workload)


def _places(job: Job, machine: Machine, start: Plan, levers: Levers) -> Iterator[tuple[Plan, Workload]]:
    """Every packing, with what a GPU may leave in the machine's memory there or here."""
    words = ("device", "host") if machine.on_gpu and machine.upload else ("device",)
    bases = [str(levers["base"])] if "base" in levers else words
    # With two layers or fewer there is nothing to leave outside: two inputs are on the device.
    inputs = words if job.spec.layers > _ON_DEVICE else words[:1]
    inputs = (str(levers["checkpoints"]),) if "checkpoints" in levers else inputs
    for plan, workload in _packings(job, machine, start, levers):
        for base, checkpoints in combinations(bases, inputs):
            yield replace(plan, base=base, checkpoints=checkpoints), workload


def _host_holds(
    job: Job, machine: Machine, plan: Plan, workload: Workload, whole_G: npt.NDArray[Any]
) -> npt.NDArray[np.int64]:
    """Of plans with so many layers computed again, those for which the machine's memory has room."""
    if not machine.on_gpu:
        return np.arange(len(whole_G))
    counts = sorted(set(whole_G.tolist())) if plan.checkpoints == "host" else [0]
    needed = [
        host_bytes(job, some, plan_work(job, some, workload))
        for some in (replace(plan, recompute_layers=count) for count in counts)
    ]
    fits = np.array(needed) <= machine.host_free_bytes * _HOST_SHARE
    return np.flatnonzero(fits[np.searchsorted(counts, whole_G)] if len(counts) > 1 else fits[np.zeros_like(whole_G)])


def packed(job: Job, plan: Plan) -> Workload:
    """The packs of a run under a plan."""
    return measure(
        job.learned,
        job.held_out,
        steps=job.steps,
        samples_per_step=job.samples_per_step,
        seed=job.seed,
        pack_tokens=plan.pack_tokens,
        prefixes=plan.prefixes,
        dropout=job.dropout,
    )


def _packings(job: Job, machine: Machine, start: Plan, levers: Levers) -> Iterator[tuple[Plan, Workload]]:
    """Every pack length worth trying, with nothing computed again and no copies."""
    candidates = pack_candidates(
        job.learned,
        steps=job.steps,
        samples_per_step=job.samples_per_step,
        seed=job.seed,
        longest=_LONGEST_ON_GPU if machine.on_gpu else _LONGEST,
    )
    plan = replace(start, attention=str(levers.get("attention", machine.attention)))
    plan = replace(plan, **{"pack_tokens": candidates[-1], **_given(levers, "pack_tokens")})
    plan = replace(plan, prefixes=_prefixes(job, plan, levers))
    first = packed(job, plan)
    plan = replace(plan, matmul=_matmul(job, plan, first, machine, levers))
    yield plan, first
    if "pack_tokens" not in levers:
        for size in candidates[:-1]:
            shorter = replace(plan, pack_tokens=size)
            yield shorter, packed(job, shorter)


def _prefixes(job: Job, plan: Plan, levers: Levers) -> str:
    """Whether sharing common beginnings saves positions."""
    if "prefixes" in levers:
        return str(levers["prefixes"])
    counts = {}
    for word in ("repeated", "shared"):
        workload = packed(job, replace(plan, prefixes=word))
        looked = workload.held_out.tokens_P.sum() * workload.held_out_scale * job.looks
        # A pass without gradients is a third of a step's work.
        counts[word] = workload.computed_tokens * job.steps + looked / 3
    return "shared" if counts["shared"] < counts["repeated"] * (1 - _WORTH) else "repeated"


def _matmul(job: Job, plan: Plan, workload: Workload, machine: Machine, levers: Levers) -> str:
    """The library whose products take the least time."""
    if "matmul" in levers:
        return str(levers["matmul"])
    timed = [name for name, by_dtype in (machine.matmul or {}).items() if plan.dtype in by_dtype]
    return min(timed, key=lambda name: sum(step_parts(job, replace(plan, matmul=name), machine, workload).values()))


def _ends(job: Job, plan: Plan, workload: Workload, levers: Levers) -> Iterator[Plan]:
    """Where head and embedding may be, and how the loss may be cut."""
    narrow = plan.dtype == "float32" and job.head_item == 2
    heads = [levers["head"]] if "head" in levers else ["dense", "stored"] if narrow else ["dense"]
    places = ["memory"] if job.spec.tied_head else ["memory", "host" if plan.on_gpu else "file"]
    places = [str(levers["embedding"])] if "embedding" in levers else places
    shorter = [size for size in _CHUNKS if size < workload.most_learned]
    chunks = [levers["loss_chunk"]] if "loss_chunk" in levers else _CHUNKS[: len(shorter) + 1]
    for head, embedding, chunk in combinations(heads, places, chunks):
        yield replace(plan, head=str(head), embedding=embedding, loss_chunk=int(chunk))


def _layer_grid(
    job: Job, plan: Plan, workload: Workload, machine: Machine, levers: Levers
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """All plans of the layers that nothing beats in both, beside one that keeps all and copies nothing.

    Returns:
        Bytes more, seconds more of the whole run, and (recompute_layers, recompute_elementwise, dense_layers).
    """
    layers = job.spec.layers
    counts = sorted({*range(0, layers, -(-layers // _GRID)), layers})
    wholes, elementwises, denses = (
        [min(int(levers[name]), layers)] if name in levers else counts
        for name in ("recompute_layers", "recompute_elementwise", "dense_layers")
    )
    pairs_R2 = np.array(
        sorted({(whole, min(some, layers - whole)) for whole, some in combinations(wholes, elementwises)})
    )
    if plan.base == "host" and "dense_layers" not in levers:
        denses = [0]  # a copy takes four times what the layer itself would
    if plan.checkpoints == "host" and "checkpoints" not in levers and "recompute_layers" not in levers:
        pairs_R2 = pairs_R2[pairs_R2[:, 0] > _ON_DEVICE]
    place_L = np.arange(layers)
    grade_RL = (place_L < pairs_R2.sum(axis=1)[:, None]).astype(int) + (place_L < pairs_R2[:, :1])
    kept_3L, again = _layer_bytes(job, plan, workload)
    base = kept_3L[0].sum()
    memory_R = kept_3L[grade_RL, place_L].sum(axis=1) - base + again * (pairs_R2[:, 0] > 0)
    again_3L, dequantise_3L = _layer_seconds(job, plan, workload, machine)
    # From which layer on there is no copy: the sum over the layers from there to the top.
    passes_RL = dequantise_3L[grade_RL, place_L]
    from_RL1 = np.concatenate([np.cumsum(passes_RL[:, ::-1], axis=1)[:, ::-1], np.zeros((len(passes_RL), 1))], axis=1)
    step_R = again_3L[grade_RL, place_L].sum(axis=1) - again_3L[0].sum() - dequantise_3L[0].sum()
    seconds_RC = (step_R[:, None] + from_RL1[:, denses]) * job.steps + _looking_saved(
        job, plan, workload, machine, denses
    )
    bytes_RC = memory_R[:, None] + _dense_bytes(job, plan, denses)
    best = _undominated(bytes_RC.reshape(-1), seconds_RC.reshape(-1))
    row, column = np.divmod(best, len(denses))
    counts_G3 = np.concatenate([pairs_R2[row], np.array(denses)[column][:, None]], axis=1)
    return bytes_RC.reshape(-1)[best], seconds_RC.reshape(-1)[best], counts_G3


def _layer_bytes(job: Job, plan: Plan, workload: Workload) -> tuple[npt.NDArray[Any], int]:
    """What each layer keeps under each grade [3, L], and what layers that are computed again share."""
    layers = job.spec.layers
    kept_3L, shared = np.zeros((len(GRADES), layers)), []
    for grade, (whole, elementwise) in enumerate(((0, 0), (0, layers), (layers, 0))):
        work = plan_work(job, replace(plan, recompute_layers=whole, recompute_elementwise=elementwise), workload)
        others = 0
        for name, slot in layout(job.spec, work).items():
            parts = name.split(".")
            if parts[0] == "layer":
                kept_3L[grade, int(parts[1])] += slot.bytes
            else:
                others += slot.bytes
        shared.append(others)
    return kept_3L, shared[2] - shared[0]


def _layer_seconds(
    job: Job, plan: Plan, workload: Workload, machine: Machine
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Seconds of a mean step under each grade [3, L]: computing again and waiting; dequantising without a copy."""
    times = layer_times(job, plan, machine, totals(job.spec, workload.packs, plan, workload.packed_steps))
    again = [[layer.again[grade] + layer.waiting[grade] for layer in times] for grade in GRADES]
    passes = [[layer.dequantise + layer.again_dequantise[grade] for layer in times] for grade in GRADES]
    return np.array(again), np.array(passes)


def _looking_saved(
    job: Job, plan: Plan, workload: Workload, machine: Machine, denses: Sequence[int]
) -> npt.NDArray[Any]:
    """Seconds more that looking takes with so many copies, beside none: linear in their weights."""
    none, all_of_them = (
        forecast_time(job, replace(plan, dense_layers=count), workload, machine)[1]["watching"]
        for count in (0, job.spec.layers)
    )
    shares = np.array([job.spec.weights_below(count) for count in denses]) / job.spec.linear_weights
    return shares * (all_of_them - none)


def _dense_bytes(job: Job, plan: Plan, denses: Sequence[int]) -> npt.NDArray[Any]:
    """Bytes more that so many copies take, beside none; where all layers have one there is no buffer."""
    spec, item = job.spec, plan_item(plan)
    more = [spec.weights_below(count) + buffer_weights(spec, count) - buffer_weights(spec) for count in denses]
    return np.array(more) * item


def _undominated(bytes_N: npt.NDArray[Any], seconds_N: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The points that no other beats in both, the fewest bytes first; each is faster than the one before."""
    order = np.lexsort((seconds_N, bytes_N))
    sorted_N = seconds_N[order]
    best_N = np.minimum.accumulate(np.concatenate([[np.inf], sorted_N[:-1]]))
    # Sums of the same numbers in another order are equal here.
    return order[sorted_N < best_N * (1 - 1e-9)]


def _given(levers: Levers, *names: str) -> dict[str, Any]:
    return {name: levers[name] for name in names if name in levers}
