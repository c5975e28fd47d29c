"""What a GPU waits for: the host runs ahead of it, and copies run beside it, so that only what they take longer counts.

    waiting = max(0, copies − computing, launches − computing)        a layer, both directions

Copies of the base and of layers' inputs share the way up; inputs go down while the base comes up. An operation of the
engine is launched in `Machine.launch` seconds; their number follows from the projections and adapters alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.model.spec import DecoderSpec
from strop.model.workspace import GRADES
from strop.plan.gpu_memory import layer_stream_bytes
from strop.plan.job import Job
from strop.plan.machine import Machine
from strop.plan.memory import plan_item
from strop.plan.plan import Plan

if TYPE_CHECKING:
    from strop.plan.layer_time import LayerTime, Totals

# Of an expert beside its products: a comparison, its rows' places, the rows, the activation, weights, a product, a sum.
_EXPERT_CALLS = 7


def waiting(job: Job, plan: Plan, machine: Machine, asked: Totals, layer: LayerTime, number: int) -> dict[str, float]:
    """Seconds by grade that a GPU waits in a layer, given its time and its number, for all packs that are asked for."""
    base = 0.0
    if plan.base == "host":
        base = 2 * asked.packs * layer_stream_bytes(job.spec, number) / machine.upload
    inputs = asked.tokens * job.spec.hidden * plan_item(plan) if plan.checkpoints == "host" else 0.0
    found = {}
    for grade in GRADES:
        computing = layer.products + layer.attention + layer.elementwise + layer.dequantise
        computing += layer.again[grade] + layer.again_dequantise[grade]
        up, down = (inputs / machine.upload, inputs / machine.download) if inputs and grade == "layer" else (0.0, 0.0)
        launches = machine.launch * asked.packs * calls(job, grade, number)
        found[grade] = max(base + up - computing, down - computing, launches - computing, 0.0)
    return found


def forward_with_waiting(job: Job, plan: Plan, machine: Machine, packs: float, computing: float) -> float:
    """Seconds of passes up, of which the computing is known."""
    if not machine.on_gpu:
        return computing
    layers = range(job.spec.layers)
    base = 0.0
    if plan.base == "host":
        base = packs * sum(layer_stream_bytes(job.spec, layer) for layer in layers) / machine.upload
    launches = machine.launch * packs * sum(sum(_forward_calls(job, layer)) for layer in layers)
    return max(computing, base, launches)


def calls(job: Job, grade: str, layer: int = 0) -> int:
    """Operations that a layer launches in both directions: products, dequantising, adapters, and what lies between."""
    groups, other = _forward_calls(job, layer)
    count = groups + other + _backward_calls(job, layer)
    if grade == "layer":
        count += groups + other
    return count


def _forward_calls(job: Job, layer: int) -> tuple[int, int]:
    """(of the projections, of the rest)."""
    groups = 0
    for names in job.spec.groups_of(layer):
        targeted = sum(name in job.targets for name in names)
        # Each weight dequantised, one product; the adapters' x A is one product of their A side by side.
        groups += len(names) + 1 + (2 + targeted if targeted else 0)
    return groups, _between(job.spec, layer)


def _backward_calls(job: Job, layer: int) -> int:
    count = _between(job.spec, layer)
    for names in job.spec.groups_of(layer):
        targeted = sum(name in job.targets for name in names)
        # Each adapter: the gradient of x A, of B, of A (a product and a sum each), and its part of the input's.
        count += len(names) + 1 + (2 + 6 * targeted if targeted else 0)
    return count


def _between(spec: DecoderSpec, layer: int) -> int:
    """Norms, rotation, attention, two copies of the residual stream; the gated product, or every expert's part."""
    count = len(spec.norms) + 4
    if spec.experts is None or not spec.has_experts(layer):
        return count + 1
    # Each dequantises its matrices for two products; its rows are found, gathered, weighed and added.
    return count + spec.experts.count * (len(spec.expert_shapes) + 2 + _EXPERT_CALLS)
