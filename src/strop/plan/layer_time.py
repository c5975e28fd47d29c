"""The time of a layer, in both directions: what its kind computes, times how fast this machine does each.

    groups of projections, with their adapters      norms, as many as there are, and of q and k
    experts                                         rotation, activation, sums of the residual stream
    attention: plain, or with scores of its own     dequantising

In the last layer only learned tokens go on after attention; in the lowest, nothing below its lowest adapter is
differentiated. Layers that are alike are computed once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

from strop.model.spec import (
    ATTENTION_NORM,
    ATTENTION_OUTPUT_NORM,
    MLP_NORM,
    MLP_OUTPUT_NORM,
    DecoderSpec,
)
from strop.model.workspace import GRADES
from strop.plan.job import Job
from strop.plan.machine import Line, Machine, Rates
from strop.plan.memory import plan_item
from strop.plan.plan import Plan
from strop.plan.waiting import calls, waiting

_QKV, _OUT, _GATE_UP, _DOWN = range(4)


@dataclass(frozen=True, slots=True)
class Totals:
    """What packs ask for together: how many they are, their positions, learned tokens, pairs, chunks of the loss.

    Attributes:
        scored: window → positions and pairs of the packs in which a document is longer.
    """

    packs: float
    tokens: float
    learned: float
    pairs: float
    chunks: float
    scored: Mapping[int, tuple[float, float]] = field(default_factory=dict)

    def scaled(self, times: float) -> Totals:
        """So many of them."""
        numbers = {item.name: getattr(self, item.name) * times for item in fields(self) if item.name != "scored"}
        scored = {window: (tokens * times, pairs * times) for window, (tokens, pairs) in self.scored.items()}
        return Totals(**numbers, scored=scored)


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
        waiting: grade → seconds that a GPU waits.
    """

    products: float
    attention: float
    elementwise: float
    dequantise: float
    again: Mapping[str, float]
    again_dequantise: Mapping[str, float]
    waiting: Mapping[str, float]


def layer_times(job: Job, plan: Plan, machine: Machine, asked: Totals) -> list[LayerTime]:
    """The time of each layer, in both directions, for what is asked."""
    found: dict[tuple[object, ...], LayerTime] = {}
    times = []
    for layer in range(job.spec.layers):
        kind = (layer == 0, layer == job.spec.layers - 1, *_kind(job.spec, layer))
        if kind not in found:
            found[kind] = _Layer(job, plan, machine, asked, layer).time()
        times.append(found[kind])
    return times


def forward_seconds(job: Job, plan: Plan, machine: Machine, asked: Totals) -> float:
    """All layers up, every position through all of each; without dequantising projections."""
    asked = replace(asked, learned=asked.tokens)
    found: dict[tuple[object, ...], float] = {}
    seconds = 0.0
    for layer in range(job.spec.layers):
        kind = _kind(job.spec, layer)
        if kind not in found:
            found[kind] = _Layer(job, plan, machine, asked, layer).forward()
        seconds += found[kind]
    return seconds


def copy_seconds(machine: Machine, numbers: float, plan: Plan) -> float:
    """A copy of so many numbers of the plan's dtype."""
    return 2.0 * numbers * plan_item(plan) / machine.bandwidth


def rates_of(machine: Machine) -> Rates:
    """The rates of a machine that was timed."""
    if machine.rates is None:
        raise ValueError("time needs the rates of a machine that was timed: probe(spec)")
    return machine.rates


def scored_window(spec: DecoderSpec, layer: int) -> int | None:
    """Documents longer than this have scores that are not plain in a layer; None where no document has."""
    if not spec.has_scores(layer):
        return None
    return 0 if spec.alibi or spec.attention_softcap is not None or not spec.windows else spec.windows[layer]


def scored_windows(spec: DecoderSpec) -> set[int]:
    """`scored_window` of all layers that have one."""
    found = (scored_window(spec, layer) for layer in range(spec.layers))
    return {window for window in found if window is not None}


def _kind(spec: DecoderSpec, layer: int) -> tuple[object, ...]:
    rotated = spec.rope_layers is None or spec.rope_layers[layer]
    return spec.has_experts(layer), scored_window(spec, layer), rotated


class _Layer:
    """One layer of a job under a plan.

    Args:
        job: what is asked for.
        plan: how it is computed.
        machine: how fast that is here.
        asked: what the packs ask for.
        layer: its number.
    """

    def __init__(self, job: Job, plan: Plan, machine: Machine, asked: Totals, layer: int) -> None:
        self.job, self.plan, self.machine, self.asked = job, plan, machine, asked
        self.spec, self.rates, self.layer = job.spec, rates_of(machine), layer
        self.groups = job.spec.groups_of(layer)
        self.tokens = asked.tokens
        self.rows = asked.learned if layer == job.spec.layers - 1 else asked.tokens
        self.passed = self._passes_gradient()
        # The passes of a gradient are needed down to the lowest adapter, attention's with those of q, k and v.
        self.below = self.passed[_QKV] or self._targeted(_QKV)

    def time(self) -> LayerTime:
        """Both directions."""
        weights = [sum(rows * columns for rows, columns in self._shapes(names)) for names in self.groups]
        dequantise = self.rates.dequantise * self.asked.packs
        back = sum(weight for weight, down in zip(weights, self.passed, strict=False) if down)
        experts, experts_dequantise = self._experts(backward=self.passed[_GATE_UP])
        made_again = self._made_again
        # What the last product gives is needed only where a norm is over it, whose result is not.
        given = MLP_OUTPUT_NORM in self.spec.norms
        groups = len(self.groups) if given else min(len(self.groups), _DOWN)
        first = sum(self._group(group, forward=True) for group in range(groups)) + self._activation * given
        norms = self._norms - self.rates.norm * self.spec.hidden * self.rows * given
        whole = made_again + first + norms + self._turned + self._seen[0] + self._sums[0] / 2
        layer = LayerTime(
            products=self._products + experts,
            attention=self._seen[0] + self._seen[1] * self.below,
            elementwise=self._norms + self._activation + self._turned + self._sums[0] + self._elementwise_back,
            dequantise=dequantise * (sum(weights) + back) + experts_dequantise,
            again={"none": 0.0, "elementwise": made_again, "layer": whole},
            again_dequantise={"none": 0.0, "elementwise": 0.0, "layer": dequantise * sum(weights[:groups])},
            waiting=dict.fromkeys(GRADES, 0.0),
        )
        if not self.machine.on_gpu:
            return self._called(layer)
        return replace(layer, waiting=waiting(self.job, self.plan, self.machine, self.asked, layer, self.layer))

    def _called(self, layer: LayerTime) -> LayerTime:
        """With what a CPU's own calls take, of what is done in each grade."""
        each = self.machine.launch * self.asked.packs
        count = {grade: calls(self.job, grade, self.layer) for grade in GRADES}
        again = {grade: layer.again[grade] + each * (count[grade] - count["none"]) for grade in GRADES}
        return replace(layer, elementwise=layer.elementwise + each * count["none"], again=again)

    def forward(self) -> float:
        """The way up, without dequantising projections."""
        products = sum(self._group(group, forward=True) for group in range(len(self.groups)))
        elementwise = self._norms + self._activation + self._turned + self._sums[0]
        return products + sum(self._experts(backward=False)) + self._seen[0] + elementwise

    # Products.

    @property
    def _products(self) -> float:
        ways = [(group, forward) for group in range(len(self.groups)) for forward in (True, False)]
        return sum(self._group(group, forward=forward) for group, forward in ways)

    def _group(self, group: int, *, forward: bool) -> float:
        """A group of projections in one direction, its adapters included."""
        names, rows = self.groups[group], self.tokens if group == _QKV else self.rows
        shapes = self._shapes(names)
        outputs, inputs = sum(shape[0] for shape in shapes), shapes[0][1]
        line = Line(0.0, 0.0)
        if forward or self.passed[group]:
            line = self._line(inputs, outputs, forward=forward)
        seconds = line.seconds(self.asked.packs, rows)
        for name, shape in zip(names, shapes, strict=True):
            if name in self.job.targets:
                seconds += self._adapter(rows, shape, forward=forward, passed=self.passed[group])
        return seconds

    def _adapter(self, rows: float, shape: tuple[int, int], *, forward: bool, passed: bool) -> float:
        """An adapter's products; backward, x A is made a second time."""
        (outputs, inputs), rates = shape, self.rates
        through, dropped = rows * self.job.rank, rates.dropout * rows * inputs if self.job.dropout else 0.0
        if forward:
            return rates.adapter * through * (inputs + outputs) + dropped
        back = rates.adapter_backward * through * (2 * inputs + 2 * outputs + inputs * passed)
        return back + dropped * (2 + passed)

    def _experts(self, *, backward: bool) -> tuple[float, float]:
        """(products and what goes with them, dequantising): each expert has its share of tokens and all its weights.

        Backward, the first product and the activation are made again.
        """
        experts = self.spec.experts
        if experts is None or not self.spec.has_experts(self.layer):
            return 0.0, 0.0
        seconds = dequantise = 0.0
        calls, chosen = self.asked.packs * experts.count, self.rows * experts.active
        for number, (inputs, outputs) in enumerate(self.spec.products[len(self.spec.groups) :]):
            ways = [True, *((False,) if backward else ()), *((True,) if backward and number == 0 else ())]
            for forward in ways:
                seconds += self._line(inputs, outputs, forward=forward).seconds(calls, chosen)
                dequantise += self.rates.dequantise * calls * inputs * outputs
        # Rows are gathered, weighed and added up: about two copies and a half of them a way.
        seconds += (1 + backward) * (self.rates.expert * calls + self._copy(2.5 * chosen * self.spec.hidden))
        if backward:
            wide = chosen * experts.intermediate
            seconds += (self.rates.gate + self.rates.gate_backward) * wide + self._copy(2 * wide)
        return seconds, dequantise

    def _line(self, inputs: int, outputs: int, *, forward: bool) -> Line:
        return self.machine.product_seconds(self.plan.matmul, self.plan.dtype, inputs, outputs, forward=forward)

    def _shapes(self, names: tuple[str, ...]) -> list[tuple[int, int]]:
        return [self.spec.projection_shape(name) for name in names]

    # Attention.

    @cached_property
    def _seen(self) -> tuple[float, float]:
        """Attention forward and backward: of packs whose scores are plain here, and of the others."""
        rates, asked, window = self.rates, self.asked, scored_window(self.spec, self.layer)
        tokens, pairs = (0.0, 0.0) if window is None else asked.scored[window]
        plain, plain_pairs = asked.tokens - tokens, asked.pairs - pairs
        forward = rates.attend * plain + rates.attend_pair * plain_pairs
        backward = rates.attend_backward * plain + rates.attend_backward_pair * plain_pairs
        forward += rates.scored * tokens + rates.scored_pair * pairs
        return forward, backward + rates.scored_backward * tokens + rates.scored_backward_pair * pairs

    # Element-wise.

    @cached_property
    def _norms(self) -> float:
        """Norms of the stream and of queries and keys, forward."""
        return self.rates.norm * self.spec.hidden * sum(self._norm_rows.values()) + self._heads(self.rates.head_norm, 1)

    @cached_property
    def _norm_rows(self) -> dict[str, float]:
        """Rows of each norm of the stream."""
        rows = {ATTENTION_NORM: self.tokens}
        rows |= dict.fromkeys((ATTENTION_OUTPUT_NORM, MLP_NORM, MLP_OUTPUT_NORM), self.rows)
        return {name: rows[name] for name in self.spec.norms if name in rows}

    def _heads(self, rate: float, copies: float) -> float:
        """Norms of queries and keys at a rate, with copies of what they were."""
        if not self.spec.qk_norm:
            return 0.0
        return rate * self._rotated + self._copy(copies * self._rotated)

    @property
    def _rotated(self) -> float:
        """Numbers of queries and keys."""
        return self.tokens * (self.spec.heads + self.spec.kv_heads) * self.spec.head_size

    @property
    def _turned(self) -> float:
        """Rotation, one way."""
        here = not self.spec.alibi and (self.spec.rope_layers is None or self.spec.rope_layers[self.layer])
        return self.rates.rotate * self._rotated * here

    @property
    def _activation(self) -> float:
        return self.rates.gate * self.rows * self.spec.activated(self.layer)

    @cached_property
    def _sums(self) -> tuple[float, float]:
        """The residual stream forward and backward: copied twice; what is normed or scaled first is added apart."""
        numbers, spec = self.rows * self.spec.hidden, self.spec
        normed = sum(name in spec.norms for name in (ATTENTION_OUTPUT_NORM, MLP_OUTPUT_NORM))
        scaled = 2 * (spec.residual_scale != 1.0)
        # In 16 bits what a group with adapters gives is made first and added by itself.
        apart = (self.plan.dtype != "float32") * (self._targeted(_OUT) + self._targeted(_DOWN))
        forward = 2 * numbers + 1.5 * max(normed, scaled, apart) * numbers
        backward = 0.5 * normed * numbers + scaled * numbers
        if spec.norm_placement == "parallel":
            backward += 1.5 * self.tokens * spec.hidden
        if spec.norm_placement == "post":
            backward += 1.5 * (numbers + self.tokens * spec.hidden)
        return self._copy(forward), self._copy(backward)

    @property
    def _elementwise_back(self) -> float:
        mlp = 0.0 if self.spec.has_experts(self.layer) else self.rows * self.spec.activated(self.layer)
        reached = {
            ATTENTION_NORM: self.passed[_QKV],
            ATTENTION_OUTPUT_NORM: self.passed[_GATE_UP],
            MLP_NORM: self.passed[_GATE_UP],
            MLP_OUTPUT_NORM: True,
        }
        rows = sum(count for name, count in self._norm_rows.items() if reached[name])
        back = self.rates.gate_backward * mlp * self.passed[_DOWN] + self.rates.norm_backward * self.spec.hidden * rows
        turned = self._turned + self._heads(self.rates.head_norm_backward, 1.5)
        return back + turned * self.below + self._sums[1]

    @cached_property
    def _made_again(self) -> float:
        """Norms' results and the gated product, where an adapter's gradient needs them and they are not kept."""
        parallel = self.spec.norm_placement == "parallel"
        attention = (self._targeted(_QKV) + parallel * self._targeted(_GATE_UP)) * (ATTENTION_NORM in self.spec.norms)
        mlp = MLP_NORM in self.spec.norms and self._targeted(_GATE_UP)
        norms = self.rates.norm * self.spec.hidden * (self.tokens * attention + self.rows * mlp)
        return norms + self._activation * self._targeted(_DOWN)

    def _copy(self, numbers: float) -> float:
        return copy_seconds(self.machine, numbers, self.plan)

    def _targeted(self, group: int) -> bool:
        return group < len(self.groups) and any(name in self.job.targets for name in self.groups[group])

    def _passes_gradient(self) -> tuple[bool, ...]:
        """Whether each group's backward pass makes the gradient of its input: not below the lowest adapter."""
        if self.layer > 0:
            return (True, True, True, True)
        return tuple(any(self._targeted(below) for below in range(group)) for group in range(_DOWN + 1))
