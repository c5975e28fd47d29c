"""A check that every weight that belongs into NF4 is there: what is asked of the spec, what is looked at the decoder.

    spec ──▶ every projection of every layer, three matrices of every expert        must be NF4Tensors of their shapes
    decoder ──▶ what its groups and experts multiply with                           nothing else, nothing missing

A module that a quantiser passes over still computes, only in four times the memory: nothing else shows it. Libraries
that replace modules by their class pass over experts that are kept as one tensor. Here the walk is over what the
decoder holds, so that it sees any way of loading: quantised now, read from the cache, taken from a file in NF4.

Head, embedding, norms, biases and routers stay as they are (arXiv:2305.14314, section 4; routers as in Mixtral's
published checkpoints).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch

from strop.errors import ModelError
from strop.kernels import nf4
from strop.model.decoder import Decoder, Layer
from strop.model.general.spec import GeneralSpec
from strop.model.spec import MLP_INPUTS, MLP_OUTPUT, DecoderSpec, module_path


@dataclass(frozen=True, slots=True)
class InFourBits:
    """What of a base is in NF4.

    Attributes:
        projections: matrices of projections.
        experts: matrices of experts.
        weights: weights of all of them.
        bytes: what they take, scales included.
    """

    projections: int
    experts: int
    weights: int
    bytes: int

    def __str__(self) -> str:
        experts = f" and all {self.experts:,} matrices of experts" if self.experts else ""
        return (
            f"all {self.projections:,} projections{experts} in NF4, {8 * self.bytes / self.weights:.2f} bits a weight"
        )

    def __add__(self, other: InFourBits) -> InFourBits:
        return InFourBits(*(getattr(self, name) + getattr(other, name) for name in asdict(self)))


def should_be(spec: DecoderSpec | GeneralSpec, layers: Iterable[int] | None = None) -> dict[str, tuple[int, ...]]:
    """Path and shape of every matrix that belongs into NF4; of some layers alone where they are named."""
    if isinstance(spec, GeneralSpec):
        return {linear.path: (linear.outputs, linear.inputs) for linear in spec.linears}
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(spec.layers) if layers is None else layers:
        shapes |= {module_path(layer, name): spec.projection_shape(name) for name in spec.projections_of(layer)}
        if spec.experts is not None and spec.has_experts(layer):
            for expert in range(spec.experts.count):
                paths = (_expert_path(layer, expert, name) for name in MLP_INPUTS + MLP_OUTPUT)
                shapes |= zip(paths, spec.expert_shapes, strict=True)
    return shapes


def in_four_bits(spec: DecoderSpec | GeneralSpec) -> InFourBits:
    """What `should_be` comes to."""
    shapes = should_be(spec)
    experts = 0
    if isinstance(spec, DecoderSpec) and spec.experts is not None:
        experts = spec.expert_layers * spec.experts.count * len(spec.expert_shapes)
    sizes = [prod(shape) for shape in shapes.values()]
    return InFourBits(len(shapes) - experts, experts, sum(sizes), sum(map(nf4.size_bytes, sizes)))


def check_four_bits(decoder: Decoder, place: object) -> InFourBits:
    """Holds what a decoder multiplies with to what belongs into NF4: paths, shapes, and the size of every part.

    Args:
        decoder: as it was loaded.
        place: the model, for messages.

    Raises:
        ModelError: a matrix is missing, is there beside those, or is not in NF4; with its path.
    """
    check_matrices(should_be(decoder.spec), dict(_held(decoder.spec, decoder.layers)), place)
    return in_four_bits(decoder.spec)


def check_layer(spec: DecoderSpec, layer: Layer, place: object) -> None:
    """`check_four_bits` of a layer alone: before its weights go where nothing but their bytes is kept."""
    check_matrices(should_be(spec, [layer.index]), dict(_held(spec, [layer])), place)


def check_matrices(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, object], place: object) -> None:
    """Holds matrices, by their paths, to what is expected.

    Raises:
        ModelError: `check_four_bits`.
    """
    odd = sorted(expected.keys() ^ found.keys())
    wrong = {path: "missing" if path in expected else "there, and no such matrix is known" for path in odd}
    wrong |= {path: said for path, shape in expected.items() if path in found and (said := _wrong(found[path], shape))}
    if wrong:
        path, said = next(iter(wrong.items()))
        raise ModelError(
            f"{place}: {len(wrong)} of {len(expected)} matrices of the base are not in NF4 as they should be",
            expected=f"{path} in NF4, shape {list(expected.get(path, ()))}",
            found=said,
            do="load it again with STROP_NF4_CACHE=off; if that does not help, report it: it is a fault of Strop's",
        )


def as_facts(found: InFourBits) -> dict[str, Any]:
    """For `--json` and the manifest."""
    return {**asdict(found), "bits_per_weight": round(8 * found.bytes / found.weights, 3)}


def _held(spec: DecoderSpec, layers: Iterable[Layer]) -> Iterator[tuple[str, object]]:
    """Path → what is multiplied with there."""
    for layer in layers:
        paths = [module_path(layer.index, name) for name in spec.projections_of(layer.index)]
        yield from _named(paths, (weight for group in layer.groups for weight in group.weights))
        if layer.experts is not None:
            for groups, names in ((layer.experts.gate_up, MLP_INPUTS), (layer.experts.down, MLP_OUTPUT)):
                for expert, group in enumerate(groups):
                    yield from _named([_expert_path(layer.index, expert, name) for name in names], group.weights)


def _named(paths: list[str], weights: Iterable[object]) -> Iterator[tuple[str, object]]:
    """Weights with their paths; any beyond those with a path that nobody knows."""
    for number, weight in enumerate(weights):
        yield paths[number] if number < len(paths) else f"{paths[-1]} and {number - len(paths) + 1} more", weight


def _wrong(weight: object, shape: tuple[int, ...]) -> str:
    """What is wrong with a matrix; empty where nothing is."""
    if not isinstance(weight, nf4.NF4Tensor):
        kind = f"{weight.dtype} {list(weight.shape)}" if isinstance(weight, torch.Tensor) else type(weight).__name__
        return f"{kind}, not quantised"
    if weight.shape != shape:
        return f"shape {list(weight.shape)}"
    blocks = -(-prod(shape) // nf4.BLOCK)
    parts = {
        "packed": (torch.uint8, -(-prod(shape) // 2)),
        "absmax8": (torch.uint8, blocks),
        "nested_absmax": (torch.float32, -(-blocks // nf4.NESTED_BLOCK)),
        "offset": (torch.float32, 1),
    }
    for name, (dtype, count) in parts.items():
        part = getattr(weight, name)
        if part.dtype is not dtype or part.numel() != count:
            return f"{name}: {part.numel():,} numbers, {part.dtype}"
    return ""


def _expert_path(layer: int, expert: int, name: str) -> str:
    return f"model.layers.{layer}.mlp.experts.{expert}.{name}"
