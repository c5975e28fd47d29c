"""The time that a run needs under a plan: what a step is made of, times how fast this machine does each.

Everything is linear: a product of m rows takes a + b m seconds (`strop.plan.machine`), so that a step is told by its
packs, positions, learned tokens and pairs alone. A layer's time is the sum of

    products       forward and backward of its four groups, with their adapters
    dequantising   its weights once in each direction, unless the layer has a dequantised copy
    attention, element-wise
    again          under "layer": all of it but the last product, forward; under "elementwise": norms and gated product

In the last layer only learned tokens go on after attention; in the lowest, nothing below its lowest adapter is
differentiated. `layer_times` gives these by grade, which is what the search adds up; `forecast_time` sums one plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from strop.model.workspace import GRADES, WIDENED_WEIGHTS
from strop.plan.job import Job
from strop.plan.machine import Line, Machine, Rates
from strop.plan.memory import plan_item
from strop.plan.plan import Plan
from strop.plan.workload import Packs, Workload

PARTS = ("loading", "steps", "watching")
STEP_PARTS = (
    "matrix products",
    "head and loss",
    "attention",
    "element-wise",
    "dequantising",
    "computing again",
    "optimiser",
)
_QKV, _OUT, _GATE_UP, _DOWN = range(4)

# Bytes per second at which a model's files are read: a plain solid-state disk.
_READ_RATE = 1.5e9


@dataclass(frozen=True, slots=True)
class Totals:
    """What packs ask for together: how many they are, their positions, learned tokens, pairs, chunks of the loss."""

    packs: float
    tokens: float
    learned: float
    pairs: float
    chunks: float

    def scaled(self, times: float) -> Totals:
        """So many of them."""
        return Totals(*(getattr(self, item.name) * times for item in fields(self)))


@dataclass(frozen=True, slots=True)
class LayerTime:
    """Seconds of one layer.

    Attributes:
        products: both directions.
        attention: both directions.
        elementwise: both directions.
        dequantise: both directions, without a dequantised copy.
        again: grade → seconds, without dequantising.
        again_dequantise: grade → seconds, without a dequantised copy.
    """

    products: float
    attention: float
    elementwise: float
    dequantise: float
    again: Mapping[str, float]
    again_dequantise: Mapping[str, float]


def totals(packs: Packs, plan: Plan, steps: float = 1.0) -> Totals:
    """What packs ask for, a mean of ``steps``."""
    return Totals(
        packs=float(len(packs.tokens_P)),
        tokens=float(packs.tokens_P.sum()),
        learned=float(packs.learned_P.sum()),
        pairs=float(packs.pairs_P.sum()),
        chunks=float(packs.chunks(plan.loss_chunk)),
    ).scaled(1 / steps)


def layer_times(job: Job, plan: Plan, machine: Machine, asked: Totals) -> list[LayerTime]:
    """The time of each layer, in both directions, for what is asked."""
    spec, found = job.spec, {}
    kinds = [(layer == 0, layer == spec.layers - 1, spec.has_experts(layer)) for layer in range(spec.layers)]
    for layer, kind in enumerate(kinds):
        if kind not in found:
            found[kind] = _layer_time(job, plan, machine, asked, layer)
    return [found[kind] for kind in kinds]


def step_parts(job: Job, plan: Plan, machine: Machine, workload: Workload) -> dict[str, float]:
    """Seconds of a mean step, by kind of work."""
    asked = totals(workload.packs, plan, workload.packed_steps)
    parts = dict.fromkeys(STEP_PARTS, 0.0)
    for index, layer in enumerate(layer_times(job, plan, machine, asked)):
        grade = grade_of(plan, index)
        parts["matrix products"] += layer.products
        parts["attention"] += layer.attention
        parts["element-wise"] += layer.elementwise
        parts["computing again"] += layer.again[grade]
        if index >= plan.dense_layers:
            parts["dequantising"] += layer.dequantise
            parts["computing again"] += layer.again_dequantise[grade]
    parts["head and loss"] = head_seconds(job, plan, machine, asked)
    parts["element-wise"] += ends_seconds(job, plan, machine, asked)
    parts["optimiser"] = job.parameters * rates_of(machine).optimise
    return parts


def forecast_time(
    job: Job, plan: Plan, workload: Workload, machine: Machine
) -> tuple[dict[str, float], dict[str, float]]:
    """(seconds of a mean step by kind of work, seconds of the whole run by part)."""
    by_kind = step_parts(job, plan, machine, workload)
    parts = {
        "loading": _loading(job, machine),
        "steps": sum(by_kind.values()) * job.steps,
        "watching": _watching(job, plan, machine, workload),
    }
    return by_kind, parts


def grade_of(plan: Plan, layer: int) -> str:
    """What a layer keeps under a plan, as `strop.model.workspace.Work.grade` has it."""
    whole, elementwise = plan.recompute_layers, plan.recompute_elementwise
    return GRADES[2] if layer < whole else GRADES[1] if layer < whole + elementwise else GRADES[0]


def rates_of(machine: Machine) -> Rates:
    """The rates of a machine that was timed."""
    if machine.rates is None:
        raise ValueError("time needs the rates of a machine that was timed: probe(spec)")
    return machine.rates


def head_seconds(job: Job, plan: Plan, machine: Machine, asked: Totals, *, backward: bool = True) -> float:
    """The head and the loss of learned tokens, in chunks."""
    spec, rates = job.spec, rates_of(machine)
    blocks = 1.0
    if plan.head == "stored":
        blocks = max(spec.vocabulary * spec.hidden / WIDENED_WEIGHTS, 1.0)
    seconds = rates.softmax * asked.learned * spec.vocabulary
    for forward in (True, False) if backward else (True,):
        line = machine.product_seconds(plan.matmul, plan.dtype, spec.hidden, spec.vocabulary, forward=forward)
        seconds += line.seconds(asked.chunks, asked.learned)
        if plan.head == "stored":
            seconds += rates.widen * spec.vocabulary * spec.hidden * asked.chunks
            if not forward and blocks > 1:
                # Each block adds to what the ones before it gave.
                seconds += blocks * _copy(machine, asked.learned * spec.hidden, plan)
    return seconds


def ends_seconds(job: Job, plan: Plan, machine: Machine, asked: Totals) -> float:
    """The embedding, the last norm, and both ends' copies."""
    rates, hidden = rates_of(machine), job.spec.hidden
    norms = (rates.norm + rates.norm_backward) * asked.learned * hidden
    read = asked.tokens * hidden * job.embedding_item / _READ_RATE if plan.embedding == "file" else 0.0
    return norms + read + _copy(machine, 2 * asked.tokens * hidden, plan)


def _layer_time(job: Job, plan: Plan, machine: Machine, asked: Totals, layer: int) -> LayerTime:
    spec, rates = job.spec, rates_of(machine)
    rows = asked.learned if layer == spec.layers - 1 else asked.tokens
    passed = _passes_gradient(job, layer)
    group_rows = (asked.tokens, rows, rows, rows)
    weights = [
        sum(spec.projection_shape(name)[0] * spec.projection_shape(name)[1] for name in names)
        for names in spec.groups_of(layer)
    ]
    products = again = 0.0
    for group, names in enumerate(spec.groups_of(layer)):
        forward = _group(job, plan, machine, asked.packs, group_rows[group], names, forward=True)
        products += forward + _group(
            job, plan, machine, asked.packs, group_rows[group], names, forward=False, passed=passed[group]
        )
        again += forward if group != _DOWN else 0.0
    dequantise = rates.dequantise * asked.packs
    # The passes of a gradient are needed down to the lowest adapter, attention's with those of q, k and v.
    below = passed[_QKV] or _targeted(job, layer, _QKV)
    experts, experts_dequantise = _experts(job, plan, machine, layer, asked.packs, rows, backward=passed[_GATE_UP])
    norms, gated = rates.norm * (asked.tokens + rows) * spec.hidden, rates.gate * rows * spec.activated(layer)
    turned = rates.rotate * asked.tokens * (spec.heads + spec.kv_heads) * spec.head_size
    seen = rates.attend * asked.tokens + rates.attend_pair * asked.pairs
    seen_backward = rates.attend_backward * asked.tokens + rates.attend_backward_pair * asked.pairs
    back = (
        rates.gate_backward * rows * spec.activated(layer) * (passed[_DOWN])
        + rates.norm_backward * spec.hidden * (rows * passed[_GATE_UP] + asked.tokens * passed[_QKV])
        + turned * below
    )
    copies = _copy(machine, 2 * rows * spec.hidden, plan)
    made_again = rates.norm * spec.hidden * (
        asked.tokens * _targeted(job, layer, _QKV) + rows * _targeted(job, layer, _GATE_UP)
    ) + gated * _targeted(job, layer, _DOWN)
    whole = made_again + again + norms + turned + seen + copies / 2
    return LayerTime(
        products=products + experts,
        attention=seen + seen_backward * below,
        elementwise=norms + gated + turned + copies + back,
        dequantise=dequantise * (sum(weights) + sum(w for w, down in zip(weights, passed, strict=False) if down))
        + experts_dequantise,
        again={"none": 0.0, "elementwise": made_again, "layer": whole},
        again_dequantise={"none": 0.0, "elementwise": 0.0, "layer": dequantise * sum(weights[:_DOWN])},
    )


def _targeted(job: Job, layer: int, group: int) -> bool:
    groups = job.spec.groups_of(layer)
    return group < len(groups) and any(name in job.targets for name in groups[group])


def _passes_gradient(job: Job, layer: int) -> tuple[bool, ...]:
    """Whether each group's backward pass makes the gradient of its input: not below the lowest adapter."""
    if layer > 0:
        return (True, True, True, True)
    return tuple(any(_targeted(job, layer, below) for below in range(group)) for group in range(_DOWN + 1))


def _experts(
    job: Job, plan: Plan, machine: Machine, layer: int, packs: float, rows: float, *, backward: bool
) -> tuple[float, float]:
    """Seconds of a layer's experts, (products, dequantising): each has its share of the tokens and all its weights.

    Backward, the first product is made again.
    """
    spec = job.spec
    if spec.experts is None or not spec.has_experts(layer):
        return 0.0, 0.0
    seconds = dequantise = 0.0
    calls, chosen = packs * spec.experts.count, rows * spec.experts.active
    for number, (inputs, outputs) in enumerate(spec.products[len(spec.groups) :]):
        ways = [True, *((False,) if backward else ()), *((True,) if backward and number == 0 else ())]
        for forward in ways:
            line = machine.product_seconds(plan.matmul, plan.dtype, inputs, outputs, forward=forward)
            seconds += line.seconds(calls, chosen)
            dequantise += rates_of(machine).dequantise * calls * inputs * outputs
    return seconds, dequantise


def _group(
    job: Job,
    plan: Plan,
    machine: Machine,
    packs: float,
    rows: float,
    names: tuple[str, ...],
    *,
    forward: bool,
    passed: bool = True,
) -> float:
    """A group of projections in one direction, its adapters included."""
    spec, rates = job.spec, rates_of(machine)
    shapes = {name: spec.projection_shape(name) for name in names}
    outputs, inputs = sum(shape[0] for shape in shapes.values()), shapes[names[0]][1]
    line = Line(0.0, 0.0)
    if forward or passed:
        line = machine.product_seconds(plan.matmul, plan.dtype, inputs, outputs, forward=forward)
    seconds = line.seconds(packs, rows)
    for name in names:
        if name in job.targets:
            seconds += _adapter(job, rates, rows, shapes[name], forward=forward, passed=passed)
    return seconds


def _adapter(job: Job, rates: Rates, rows: float, shape: tuple[int, int], *, forward: bool, passed: bool) -> float:
    """An adapter's products; backward, x A is made a second time."""
    outputs, inputs = shape
    through = rows * job.rank
    if forward:
        seconds = rates.adapter * through * (inputs + outputs)
        return seconds + (rates.dropout * rows * inputs if job.dropout else 0.0)
    seconds = rates.adapter_backward * through * (2 * inputs + 2 * outputs + inputs * passed)
    return seconds + (rates.dropout * rows * inputs * (2 + passed) if job.dropout else 0.0)


def _copy(machine: Machine, numbers: float, plan: Plan) -> float:
    return 2.0 * numbers * plan_item(plan) / machine.bandwidth


def _loading(job: Job, machine: Machine) -> float:
    """Reading, checking and quantising the weights."""
    return (
        job.file_bytes * (1 / _READ_RATE + 2 / machine.bandwidth)
        + (job.spec.linear_weights + job.spec.expert_weights) * rates_of(machine).quantise
    )


def _watching(job: Job, plan: Plan, machine: Machine, workload: Workload) -> float:
    """All held-out losses and sample answers of the run."""
    asked = totals(workload.held_out, plan).scaled(workload.held_out_scale)
    loss = _forward(job, plan, machine, asked) + head_seconds(job, plan, machine, asked, backward=False)
    return job.looks * (loss + _answers(job, plan, machine))


def _forward(job: Job, plan: Plan, machine: Machine, asked: Totals) -> float:
    """One pass up."""
    layers = (_layer_forward(job, plan, machine, asked, layer) for layer in range(job.spec.layers))
    return sum(layers) + _dequantise_pass(job, plan, machine, asked.packs)


def _layer_forward(job: Job, plan: Plan, machine: Machine, asked: Totals, layer: int) -> float:
    """A layer's pass up, but for dequantising its projections."""
    spec, rates = job.spec, rates_of(machine)
    groups = spec.groups_of(layer)
    products = sum(_group(job, plan, machine, asked.packs, asked.tokens, names, forward=True) for names in groups)
    attention = rates.attend * asked.tokens + rates.attend_pair * asked.pairs
    elementwise = asked.tokens * (
        2 * rates.norm * spec.hidden
        + rates.gate * spec.activated(layer)
        + rates.rotate * (spec.heads + spec.kv_heads) * spec.head_size
    ) + _copy(machine, 2 * asked.tokens * spec.hidden, plan)
    experts = sum(_experts(job, plan, machine, layer, asked.packs, asked.tokens, backward=False))
    return products + experts + attention + elementwise


def _dequantise_pass(job: Job, plan: Plan, machine: Machine, times: float) -> float:
    """The base's weights once, but for layers that have a copy."""
    copied = job.spec.weights_below(min(plan.dense_layers, job.spec.layers))
    return times * rates_of(machine).dequantise * (job.spec.linear_weights - copied)


def _answers(job: Job, plan: Plan, machine: Machine) -> float:
    """Sample answers: the prompts as one pack, then a token of each at a time, for which every weight is multiplied."""
    if not job.prompts or not job.answer_tokens:
        return 0.0
    spec = job.spec
    prompts = Totals(1, sum(job.prompts), len(job.prompts), sum(count * count / 2 for count in job.prompts), 1)
    active = spec.expert_weights * spec.experts.active // spec.experts.count if spec.experts else 0
    products = (spec.linear_weights + active + spec.vocabulary * spec.hidden) * rates_of(machine).answer
    widen = rates_of(machine).widen * spec.vocabulary * spec.hidden if plan.head == "stored" else 0.0
    experts = rates_of(machine).dequantise * active
    token = products + widen + experts + _dequantise_pass(job, plan, machine, 1.0)
    return _forward(job, plan, machine, prompts) + job.answer_tokens * token
