"""The memory of a training step, laid out before it begins: every tensor that the engine writes to, by name and shape.

The engine takes its memory from here and from nowhere else, and the plan's forecast adds up the same list: what is
promised is what is allocated. Nothing is allocated during a step and nothing is returned after it, so that memory stays
flat and no page is faulted in twice.

A layer keeps one of three grades of its forward pass for its backward pass:

    none          everything a gradient is made of
    elementwise   not the norms' results and the gated product: they are cheap to make again
    layer         its input alone: the layer is computed a second time, in memory that all such layers share; the input
                  may lie in the machine's memory (`strop.model.host_inputs`)

Shapes: T tokens of the largest pack, N learned tokens of it (the last layer goes on with those alone after attention),
D hidden, Q = H · E queries, P = Q + 2 K · E queries, keys and values side by side, F intermediate, I the widest input
of an adapter, S ranks of a group's adapters side by side, C the loss chunk, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from strop.model.host_inputs import HostInputs
from strop.model.spec import (
    ATTENTION_INPUTS,
    ATTENTION_NORM,
    ATTENTION_OUTPUT,
    ATTENTION_OUTPUT_NORM,
    GROUPS,
    MLP_INPUTS,
    MLP_NORM,
    MLP_OUTPUT,
    MLP_OUTPUT_NORM,
    DecoderSpec,
)

_Sizes = dict[str, tuple[tuple[int, ...], torch.dtype]]

GRADES = ("none", "elementwise", "layer")

PLACES = ("place.0", "place.1")
"""Where the inputs of layers are that keep them in the machine's memory (`strop.model.host_inputs`)."""

# Weights of the head that are widened to the compute dtype at a time where it is stored in 16 bits. 4,096 rows of 4,096
# weights are 64 MiB in float32.
WIDENED_WEIGHTS = 1 << 24


@dataclass(frozen=True, slots=True)
class Work:
    """The most that a pack asks for, and what is kept of it.

    Attributes:
        tokens: tokens of the largest pack.
        learned: learned tokens of the pack that has most of them.
        whole_layers: layers, from the bottom, of grade "layer".
        elementwise_layers: layers above those of grade "elementwise"; the rest is "none".
        loss_chunk: learned tokens whose logits exist at one time.
        targets: projections that have adapters.
        rank: rank of the adapters.
        dropout: whether the adapters' inputs are dropped out.
        dense_head: whether the head is in memory in the compute dtype; else it is widened in blocks.
        dtype: dtype of activations.
        host_inputs: whether layers of grade "layer" keep their input in the machine's memory
            (`strop.model.host_inputs`).
    """

    tokens: int
    learned: int
    whole_layers: int
    elementwise_layers: int
    loss_chunk: int
    targets: tuple[str, ...]
    rank: int
    dropout: bool
    dense_head: bool = True
    dtype: torch.dtype = torch.float32
    host_inputs: bool = False

    def grade(self, layer: int) -> str:
        """What a layer keeps."""
        if layer < self.whole_layers:
            return "layer"
        return "elementwise" if layer < self.whole_layers + self.elementwise_layers else "none"


@dataclass(frozen=True, slots=True)
class Slot:
    """One piece of memory.

    Attributes:
        component: what the forecast counts it as: "saved activations", "working memory" or "loss chunk".
        shape: its sizes.
        dtype: of its numbers.
    """

    component: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Its size."""
        return prod(self.shape) * self.dtype.itemsize


def layout(spec: DecoderSpec, work: Work) -> dict[str, Slot]:
    """Every piece of memory of a step, by name: what a layer keeps is named ``layer.3.qkv``."""
    slots = dict(_kept(spec, work))
    slots.update(_shared(spec, work))
    slots.update(_loss(spec, work))
    return slots


def _kept(spec: DecoderSpec, work: Work) -> Iterator[tuple[str, Slot]]:
    for layer in range(spec.layers):
        last = layer == spec.layers - 1
        rows = work.learned if last else work.tokens
        sizes = _layer(spec, work, work.grade(layer), rows, mlp=not spec.has_experts(layer))
        for name, (shape, dtype) in sizes.items():
            yield f"layer.{layer}.{name}", Slot("saved activations", shape, dtype)


def _layer(spec: DecoderSpec, work: Work, grade: str, rows: int, *, mlp: bool) -> _Sizes:
    """What a layer keeps; ``rows`` go on after attention, into an MLP or experts."""
    tokens, dtype = work.tokens, work.dtype
    sizes: _Sizes = {"input": ((tokens, spec.hidden), dtype)}
    if grade == "layer":
        return {} if work.host_inputs else sizes
    sizes |= _inside(spec, work, rows, mlp=mlp)
    if grade == "none":
        attention = ATTENTION_INPUTS if spec.norm_placement != "parallel" else ATTENTION_INPUTS + MLP_INPUTS
        if ATTENTION_NORM in spec.norms and _targeted(work, attention):
            sizes["attention_normal"] = ((tokens, spec.hidden), dtype)
        if MLP_NORM in spec.norms and _targeted(work, MLP_INPUTS):
            sizes["mlp_normal"] = ((rows, spec.hidden), dtype)
        if _targeted(work, MLP_OUTPUT):
            sizes["gated"] = ((rows, spec.intermediate), dtype)
    return sizes


def _inside(spec: DecoderSpec, work: Work, rows: int, *, mlp: bool) -> _Sizes:
    tokens, dtype = work.tokens, work.dtype
    queries = spec.heads * spec.head_size
    sizes: _Sizes = {
        "qkv": ((tokens, queries + 2 * spec.kv_heads * spec.head_size), dtype),
        "attended": ((tokens, queries), dtype),
        "row_sums": ((spec.heads, tokens), torch.float32),
        "middle": ((rows, spec.hidden), dtype),
    }
    if mlp:
        sizes["gate_up"] = ((rows, (1 + spec.gated_mlp) * spec.intermediate), dtype)
    if spec.qk_norm:
        sizes["raw"] = ((tokens, _rotated(spec)), dtype)
    if ATTENTION_OUTPUT_NORM in spec.norms:
        sizes["attention_given"] = ((rows, spec.hidden), dtype)
    if MLP_OUTPUT_NORM in spec.norms:
        sizes["mlp_given"] = ((rows, spec.hidden), dtype)
    return sizes


def _rotated(spec: DecoderSpec) -> int:
    """Width of queries and keys side by side."""
    return (spec.heads + spec.kv_heads) * spec.head_size


def _shared(spec: DecoderSpec, work: Work) -> Iterator[tuple[str, Slot]]:
    """What all layers use in turn."""
    tokens, dtype = work.tokens, work.dtype
    queries = spec.heads * spec.head_size
    mlp = spec.expert_layers < spec.layers
    sizes: dict[str, tuple[int, ...]] = {
        "normal": (tokens, spec.hidden),
        "gradient": (tokens, spec.hidden),
        # The gated product, later its gradient, later the gradient of what attention gave, or of q and k unnormalised.
        "gated": (
            tokens,
            max(spec.intermediate if mlp else 0, queries, _rotated(spec) if spec.qk_norm else 0),
        ),
        "qkv_gradient": (tokens, queries + 2 * spec.kv_heads * spec.head_size),
        "output": (tokens, spec.hidden),
        "learned_attended": (work.learned, queries),
    }
    if spec.norm_placement == "parallel":
        sizes["learned_normal"] = (work.learned, spec.hidden)
        sizes["normal_gradient"] = (tokens, spec.hidden)
    if spec.experts is not None:
        # An expert that every token chose.
        wide = spec.experts.intermediate
        sizes |= dict.fromkeys(("expert_input", "expert_output", "expert_gradient"), (tokens, spec.hidden))
        sizes |= dict.fromkeys(("expert_hidden", "expert_hidden_gradient"), (tokens, wide))
        sizes["expert_gate_up"] = (tokens, 2 * wide)
    ranks = work.rank * max(sum(name in work.targets for name in group) for group in spec.groups)
    sizes["down"] = sizes["down_gradient"] = (tokens, ranks)
    if work.dropout:
        inputs = {ATTENTION_INPUTS: spec.hidden, ATTENTION_OUTPUT: queries, MLP_INPUTS: spec.hidden}
        inputs[MLP_OUTPUT] = spec.intermediate
        sizes["dropped"] = (tokens, max(inputs[group] for group in GROUPS if _targeted(work, group)))
    if work.whole_layers and work.host_inputs:
        sizes |= dict.fromkeys(PLACES, (tokens, spec.hidden))
    for name, shape in sizes.items():
        yield name, Slot("working memory", shape, dtype)
    if work.whole_layers:
        for name, (shape, kind) in _inside(spec, work, tokens, mlp=mlp).items():
            yield f"again.{name}", Slot("working memory", shape, kind)


def _loss(spec: DecoderSpec, work: Work) -> Iterator[tuple[str, Slot]]:
    chunk = min(work.loss_chunk, work.learned)
    yield "final", Slot("loss chunk", (work.learned, spec.hidden), work.dtype)
    yield "final_gradient", Slot("loss chunk", (work.learned, spec.hidden), work.dtype)
    yield "logits", Slot("loss chunk", (chunk, spec.vocabulary), torch.float32)
    if spec.head_softcap is not None:
        yield "logit_slopes", Slot("loss chunk", (chunk, spec.vocabulary), torch.float32)
    if not work.dense_head:
        rows = min(spec.vocabulary, max(1, WIDENED_WEIGHTS // spec.hidden))
        yield "head_rows", Slot("loss chunk", (rows, spec.hidden), work.dtype)


def _targeted(work: Work, group: tuple[str, ...]) -> bool:
    return any(name in work.targets for name in group)


class Workspace:
    """Memory by the layout's names; made once, grown when a larger pack comes."""

    def __init__(self, spec: DecoderSpec, work: Work, device: torch.device) -> None:
        self.work = work
        with torch.inference_mode(False):
            self._memory = {
                name: torch.empty(prod(slot.shape), dtype=slot.dtype, device=device)
                for name, slot in layout(spec, work).items()
            }
            self.layout = layout(spec, work)
            self.host_inputs: HostInputs | None = None
            if work.whole_layers and work.host_inputs:
                first, second = (self.take(name, work.tokens) for name in PLACES)
                self.host_inputs = HostInputs(min(work.whole_layers, spec.layers), (first, second))

    def take(self, name: str, rows: int, columns: int | None = None) -> Tensor:
        """The first ``rows`` rows of a piece [rows, columns]; narrower than laid out if ``columns`` are named."""
        width = self.layout[name].shape[1] if columns is None else columns
        return self._memory[name][: rows * width].view(rows, width)

    def all(self, name: str) -> Tensor:
        """A whole piece, flat."""
        return self._memory[name]

    def settle(self) -> None:
        """Waits until nothing is copied out of it or into it: before it is given up."""
        if self.host_inputs is not None:
            self.host_inputs.settle()

    def __contains__(self, name: str) -> bool:
        return name in self._memory

    @property
    def bytes(self) -> int:
        """What is held."""
        return sum(memory.nbytes for memory in self._memory.values())
