"""The plan of a run on the general path: fewer levers, and forecasts from layers that were run, not from a list.

    GeneralTensors ─▶ costs of its layers (`strop.plan.general_costs`) ─┐
    Dataset, Recipe ─▶ packs of each length worth trying ───────────────┴─▶ plans that nothing beats ─▶ Choice

Levers are the length of packs, how many layers are computed again, the loss's chunk and, by hand, dequantised copies.
The others are what transformers' code makes of them: no element-wise recompute, head in the compute dtype, embedding in
memory, no shared beginnings, torch's products. Where documents cannot be told apart in a pack, each is a pass.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from strop.errors import UsageError
from strop.kernels import nf4
from strop.kernels.qlora_linear import BLOCK_WEIGHTS
from strop.model.base import AHEAD_BYTES
from strop.model.general.files import GeneralTensors
from strop.model.general.spec import GeneralSpec
from strop.model.lora import adapter_size, parse_targets
from strop.model.paths import SLOWER
from strop.plan.budget import usable
from strop.plan.choose import default_plan, free_share, reason_of, too_small
from strop.plan.forecast import Choice, Forecast
from strop.plan.general_costs import GeneralCosts, measure_costs
from strop.plan.job import data_bytes, looks_of, questions_of
from strop.plan.machine import Machine, probe
from strop.plan.memory import COMPONENTS, plan_item
from strop.plan.plan import GENERAL, Plan
from strop.plan.workload import Workload, measure, pack_candidates

if TYPE_CHECKING:
    from strop.data.examples import Dataset
    from strop.recipe import Recipe

_CHUNKS = (64, 256)
# Steps of the count of layers computed again.
_GRID = 8
# Parts of the loss's memory: logits, what their softmax is made in (twice), their gradient.
_LOGITS = 4
# What kernels and the matrix library take inside beyond what is counted, on SmolLM2 (docs/log.md).
_LIBRARY_BYTES = 160 << 20
_READ_RATE = 1.5e9
_ADAPTER_BYTES = 16
_OPTIMISE_SECONDS = 2e-9  # a parameter


@dataclass(frozen=True, slots=True)
class _Job:
    """What a run asks for."""

    tensors: GeneralTensors
    dataset: Dataset
    recipe: Recipe
    steps: int
    targets: tuple[str, ...]
    prompts: tuple[int, ...]
    looks: int
    machine: Machine
    costs: GeneralCosts

    @property
    def spec(self) -> GeneralSpec:
        return self.tensors.spec

    @property
    def parameters(self) -> int:
        """Numbers of the adapter."""
        return adapter_size(self.spec, self.targets, self.recipe.adapter.rank)


def choose_general(
    tensors: GeneralTensors,
    dataset: Dataset,
    recipe: Recipe,
    *,
    steps: int,
    budget_bytes: int | None = None,
    levers: Mapping[str, str | int] | None = None,
    plan: Plan | None = None,
) -> Choice:
    """The fastest plan that fits; the arguments are those of `strop.plan.choose.choose`.

    Raises:
        UsageError: a lever is set by hand that the general path has not.
        BudgetError: no plan fits the budget.
    """
    levers = dict(levers or {})
    _check_levers(levers)
    if plan is not None:
        levers = {name: getattr(plan, name) for name in ("device", "dtype", "threads")}
    device = levers.get("device")
    machine = probe(device=str(device) if device else None)
    start = replace(default_plan(tensors.spec, machine), dense_layers=0)
    start = replace(start, **{name: levers[name] for name in ("dtype", "threads") if name in levers})  # type: ignore[arg-type]
    job = _read_job(tensors, dataset, recipe, steps, machine, start)
    budget, source = budget_bytes, "--memory"
    if budget is None:
        budget, source = int(machine.free_bytes * free_share(machine)), "share of free memory"
    points = _front(job, start, levers)
    packings = tuple({id(workload): workload for _, workload in points}.values())
    curve = tuple(forecast for forecast, _ in points)
    if plan is not None:
        workload = _packed(job, plan)
        forecast, reason = _forecast(job, plan, workload), "The plan that the run began with."
    else:
        fitting = [point for point in points if point[0].peak_bytes <= usable(budget)]
        if not fitting:
            raise too_small(curve[0], budget, source, levers, free_share(machine))
        forecast, workload = fitting[-1]
        reason = reason_of(forecast, curve, budget, source)
    # In the reason too: it is what the run's record and report say of its plan.
    reason += f" {SLOWER[0].upper()}{SLOWER[1:]}."
    return Choice(forecast, curve, budget, source, reason, machine, workload, (workload, *packings), SLOWER)


def _check_levers(levers: Mapping[str, str | int]) -> None:
    for name, value in levers.items():
        if name in GENERAL and value != GENERAL[name]:
            raise UsageError(
                f"--plan.{name} is no lever of the general path",
                expected=f"{name} {GENERAL[name]}: the model's own code, of transformers, decides it",
                found=str(value),
                do=f"leave --plan.{name} out",
            )


def _read_job(
    tensors: GeneralTensors, dataset: Dataset, recipe: Recipe, steps: int, machine: Machine, start: Plan
) -> _Job:
    targets = parse_targets(recipe.adapter.targets, tensors.spec.adaptable)
    costs = measure_costs(
        json.dumps(tensors.config),
        tensors.reader.folder / "config.json",
        tensors.spec,
        rank=recipe.adapter.rank,
        dropout=recipe.adapter.dropout,
        targets=targets,
        device=start.device,
        dtype=start.dtype,
        threads=start.threads,
    )
    prompts, looks = questions_of(dataset, recipe), looks_of(recipe, steps)
    return _Job(tensors, dataset, recipe, steps, targets, prompts, looks, machine, costs)


def _front(job: _Job, start: Plan, levers: Mapping[str, str | int]) -> list[tuple[Forecast, Workload]]:
    """The plans that nothing beats in both memory and time, the smallest memory first."""
    found = [
        (_forecast(job, plan, workload), workload)
        for plan, workload in _packings(job, start, levers)
        for plan in _layers(job, plan, levers)
    ]
    found.sort(key=lambda point: (point[0].peak_bytes, point[0].seconds))
    best: list[tuple[Forecast, Workload]] = []
    for point in found:
        if not best or point[0].seconds < best[-1][0].seconds * (1 - 1e-3):
            best.append(point)
    return best


def _packings(job: _Job, start: Plan, levers: Mapping[str, str | int]) -> Iterator[tuple[Plan, Workload]]:
    learned, train = job.dataset.learned, job.recipe.train
    sizes = pack_candidates(learned, steps=job.steps, samples_per_step=train.samples_per_step, seed=train.seed)
    if not job.spec.packs:
        sizes = [1]  # a longer sample has a pack of its own, so that each has
    if "pack_tokens" in levers:
        sizes = [int(levers["pack_tokens"])]
    for size in sizes:
        plan = replace(start, pack_tokens=size)
        workload = _packed(job, plan)
        yield plan, workload


def _layers(job: _Job, plan: Plan, levers: Mapping[str, str | int]) -> Iterator[Plan]:
    """How many layers are computed again, and how the loss is cut."""
    layers = job.spec.layers
    agains: Sequence[int] = sorted({layers * part // _GRID for part in range(_GRID + 1)})
    if "recompute_layers" in levers:
        agains = [min(int(levers["recompute_layers"]), layers)]
    chunks = [int(levers["loss_chunk"])] if "loss_chunk" in levers else _CHUNKS
    dense = min(int(levers.get("dense_layers", 0)), layers)
    for again in agains:
        for chunk in chunks:
            yield replace(plan, recompute_layers=again, loss_chunk=chunk, dense_layers=dense)


def _packed(job: _Job, plan: Plan) -> Workload:
    recipe = job.recipe
    return measure(
        job.dataset.learned,
        job.dataset.held_out,
        steps=job.steps,
        samples_per_step=recipe.train.samples_per_step,
        seed=recipe.train.seed,
        pack_tokens=plan.pack_tokens,
        prefixes=plan.prefixes,
        dropout=recipe.adapter.dropout,
    )


def _forecast(job: _Job, plan: Plan, workload: Workload) -> Forecast:
    by_kind, parts = _seconds(job, plan, workload)
    step = sum(by_kind.values())
    return Forecast(plan, _memory(job, plan, workload), step, parts, by_kind, workload.read_tokens / step)


def _memory(job: _Job, plan: Plan, workload: Workload) -> dict[str, int]:
    """Bytes by component."""
    spec, costs, item = job.spec, job.costs, plan_item(plan)
    tokens, ends = workload.largest_pack, spec.vocabulary * spec.hidden
    again = plan.recompute_layers / spec.layers
    whole, inputs = (1 - again) * costs.kept.of(tokens), again * costs.kept_again.of(tokens)
    # Layers are computed again when those above, which keep all, have given it back.
    working = max(costs.working.of(tokens), costs.working_again.of(tokens) - whole if again else 0.0)
    largest = max(min(one.outputs * one.inputs, BLOCK_WEIGHTS) for one in spec.linears)
    logits = min(plan.loss_chunk, workload.most_learned) * spec.vocabulary * 4 * _LOGITS
    stored = job.tensors.item_bytes(f"{spec.embedding}.weight")
    bytes_of = dict.fromkeys(COMPONENTS, 0)
    bytes_of |= {
        "runtime": max(job.machine.process_bytes - data_bytes(job.dataset), 0),
        "data": data_bytes(job.dataset),
        "base in NF4": sum(
            nf4.size_bytes(one.outputs * one.inputs) + 4 * one.outputs * one.bias for one in spec.linears
        )
        + spec.other_weights * item,
        "head": ends * item,
        "embedding": 0 if spec.tied_head else ends * stored,
        "dequantised copies": plan.dense_layers * spec.linear_weights // spec.layers * item,
        "weight buffer": 0 if plan.dense_layers == spec.layers else largest * item,
        "adapters and optimiser": job.parameters * _ADAPTER_BYTES,
        "saved activations": int(whole + inputs),
        "working memory": int(working),
        "loss chunk": logits,
        "attention and product buffers": _LIBRARY_BYTES,
        "sample answers": _answer_bytes(job, item),
    }
    weight = max(one.outputs * one.inputs for one in spec.linears) * job.tensors.weight_item
    read = weight + min(AHEAD_BYTES + weight, spec.linear_weights * job.tensors.weight_item)
    base = sum(bytes_of[name] for name in ("runtime", "data", "base in NF4", "head", "embedding"))
    bytes_of["loading"] = max(base + read - sum(bytes_of.values()), 0)
    return bytes_of


def _answer_bytes(job: _Job, item: int) -> int:
    """The cache of one answer, and the pass of the longest prompt."""
    if not job.prompts or not job.recipe.watch.answer_tokens:
        return 0
    spec, longest = job.spec, max(job.prompts)
    cache = 2 * spec.layers * spec.hidden * (longest + job.recipe.watch.answer_tokens) * item
    # A prompt is hardly ever longer than a pack, whose memory is free by then: only what a cache needs comes on top.
    return cache + 2 * spec.vocabulary * 4


def _seconds(job: _Job, plan: Plan, workload: Workload) -> tuple[dict[str, float], dict[str, float]]:
    """(seconds of a mean step by kind of work, seconds of the whole run by part)."""
    spec, costs, steps = job.spec, job.costs, workload.packed_steps
    passes = workload.packs.tokens_P
    both = sum(costs.both.of(int(tokens)) for tokens in passes) / steps
    forward = sum(costs.forward.of(int(tokens)) for tokens in passes) / steps
    head = 4.0 * workload.learned_tokens * spec.vocabulary * spec.hidden / costs.flops
    by_kind = {
        "matrix products": both,
        "head and loss": head,
        "computing again": forward * plan.recompute_layers / spec.layers,
        "optimiser": job.parameters * _OPTIMISE_SECONDS,
    }
    held_out = sum(costs.forward.of(int(tokens)) for tokens in workload.held_out.tokens_P) * workload.held_out_scale
    answers = sum(costs.forward.of(prompt) for prompt in job.prompts)
    answers += len(job.prompts) * job.recipe.watch.answer_tokens * costs.forward.of(1)
    weights = spec.linear_weights
    parts = {
        "loading": weights * (job.tensors.weight_item / _READ_RATE + costs.quantise),
        "steps": sum(by_kind.values()) * job.steps,
        "watching": job.looks * (held_out + answers),
    }
    return by_kind, parts
