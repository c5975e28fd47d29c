"""The time that a run needs under a plan: what a step is made of, times how fast this machine does each.

Everything is linear: a product of m rows takes a + b m seconds (`strop.plan.machine`), so that a step is told by its
packs, positions, learned tokens and pairs alone. A layer's time (`strop.plan.layer_time`) is the sum of

    products       forward and backward of its groups, with their adapters, and of its experts
    dequantising   its weights once in each direction, unless the layer has a dequantised copy
    attention, element-wise
    again          under "layer": all of it but the last product, forward; under "elementwise": norms and gated product
    waiting        what a GPU waits for: copies from the machine's memory, or launches, where they take longer than a
                   layer's own computing, beside which they run

`layer_times` gives these by grade, which is what the search adds up; `forecast_time` sums one plan.
"""

from __future__ import annotations

from strop.model.spec import DecoderSpec
from strop.model.workspace import GRADES, WIDENED_WEIGHTS
from strop.plan.job import Job
from strop.plan.layer_time import Totals, copy_seconds, forward_seconds, layer_times, rates_of, scored_windows
from strop.plan.machine import Machine
from strop.plan.plan import Plan
from strop.plan.waiting import forward_with_waiting
from strop.plan.workload import Packs, Workload

PARTS = ("loading", "steps", "watching")
STEP_PARTS = (
    "matrix products",
    "head and loss",
    "attention",
    "element-wise",
    "dequantising",
    "computing again",
    "waiting",
    "optimiser",
)
# Bytes per second at which a model's files are read: a plain solid-state disk.
_READ_RATE = 1.5e9


def totals(spec: DecoderSpec, packs: Packs, plan: Plan, steps: float = 1.0) -> Totals:
    """What packs ask for, a mean of ``steps``."""
    longer = {window: packs.longest_P > window for window in scored_windows(spec)}
    return Totals(
        packs=float(len(packs.tokens_P)),
        tokens=float(packs.tokens_P.sum()),
        learned=float(packs.learned_P.sum()),
        pairs=float(packs.pairs_P.sum()),
        chunks=float(packs.chunks(plan.loss_chunk)),
        scored={w: (float(packs.tokens_P[some].sum()), float(packs.pairs_P[some].sum())) for w, some in longer.items()},
    ).scaled(1 / steps)


def step_parts(job: Job, plan: Plan, machine: Machine, workload: Workload) -> dict[str, float]:
    """Seconds of a mean step, by kind of work."""
    asked = totals(job.spec, workload.packs, plan, workload.packed_steps)
    parts = dict.fromkeys(STEP_PARTS, 0.0)
    for index, layer in enumerate(layer_times(job, plan, machine, asked)):
        grade = grade_of(plan, index)
        parts["matrix products"] += layer.products
        parts["attention"] += layer.attention
        parts["element-wise"] += layer.elementwise
        parts["computing again"] += layer.again[grade]
        parts["waiting"] += layer.waiting[grade]
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


def head_seconds(job: Job, plan: Plan, machine: Machine, asked: Totals, *, backward: bool = True) -> float:
    """The head and the loss of learned tokens, in chunks."""
    spec, rates = job.spec, rates_of(machine)
    blocks = 1.0
    if plan.head == "stored":
        blocks = max(spec.vocabulary * spec.hidden / WIDENED_WEIGHTS, 1.0)
    seconds = rates.softmax * asked.learned * spec.vocabulary
    if backward and plan.dtype != "float32":
        # The logits' gradient is rounded for the product.
        seconds += 1.5 * copy_seconds(machine, asked.learned * spec.vocabulary, plan)
    for forward in (True, False) if backward else (True,):
        line = machine.product_seconds(plan.matmul, plan.dtype, spec.hidden, spec.vocabulary, forward=forward)
        seconds += line.seconds(asked.chunks, asked.learned)
        if plan.head == "stored":
            seconds += rates.widen * spec.vocabulary * spec.hidden * asked.chunks
            if not forward and blocks > 1:
                # Each block adds to what the ones before it gave.
                seconds += blocks * copy_seconds(machine, asked.learned * spec.hidden, plan)
    return seconds


def ends_seconds(job: Job, plan: Plan, machine: Machine, asked: Totals) -> float:
    """The embedding, the last norm, and both ends' copies."""
    rates, hidden = rates_of(machine), job.spec.hidden
    norms = (rates.norm + rates.norm_backward) * asked.learned * hidden
    places = {"file": _READ_RATE, "host": machine.upload or machine.bandwidth}
    read = asked.tokens * hidden * job.embedding_item / places[plan.embedding] if plan.embedding in places else 0.0
    return norms + read + copy_seconds(machine, 2 * asked.tokens * hidden, plan)


def _loading(job: Job, machine: Machine) -> float:
    """Reading, checking and quantising the weights."""
    return (
        job.file_bytes * (1 / _READ_RATE + 2 / machine.bandwidth)
        + (job.spec.linear_weights + job.spec.expert_weights) * rates_of(machine).quantise
    )


def _watching(job: Job, plan: Plan, machine: Machine, workload: Workload) -> float:
    """All held-out losses and sample answers of the run."""
    asked = totals(job.spec, workload.held_out, plan).scaled(workload.held_out_scale)
    loss = _forward(job, plan, machine, asked) + head_seconds(job, plan, machine, asked, backward=False)
    return job.looks * (loss + _answers(job, plan, machine))


def _forward(job: Job, plan: Plan, machine: Machine, asked: Totals) -> float:
    """One pass up."""
    computing = forward_seconds(job, plan, machine, asked) + _dequantise_pass(job, plan, machine, asked.packs)
    return forward_with_waiting(job, plan, machine, asked.packs, computing)


def _dequantise_pass(job: Job, plan: Plan, machine: Machine, times: float) -> float:
    """The base's weights once, but for layers that have a copy."""
    copied = job.spec.weights_below(min(plan.dense_layers, job.spec.layers))
    return times * rates_of(machine).dequantise * (job.spec.linear_weights - copied)


def _answers(job: Job, plan: Plan, machine: Machine) -> float:
    """Sample answers: the prompts as one pack, then a token of each at a time, for which every weight is multiplied."""
    if not job.prompts or not job.answer_tokens:
        return 0.0
    spec = job.spec
    tokens, pairs, longest = sum(job.prompts), sum(count * count / 2 for count in job.prompts), max(job.prompts)
    scored = {window: (tokens, pairs) if longest > window else (0.0, 0.0) for window in scored_windows(spec)}
    prompts = Totals(1, tokens, len(job.prompts), pairs, 1, scored)
    active = spec.expert_weights * spec.experts.active // spec.experts.count if spec.experts else 0
    products = (spec.linear_weights + active + spec.vocabulary * spec.hidden) * rates_of(machine).answer
    widen = rates_of(machine).widen * spec.vocabulary * spec.hidden if plan.head == "stored" else 0.0
    experts = rates_of(machine).dequantise * active
    token = products + widen + experts + _dequantise_pass(job, plan, machine, 1.0)
    token = forward_with_waiting(job, plan, machine, 1.0, token)
    return _forward(job, plan, machine, prompts) + job.answer_tokens * token
