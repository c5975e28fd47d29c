"""From canonical tensors to the parts of a decoder, whatever they are read from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from strop.kernels.nf4 import NF4Tensor
from strop.kernels.qlora_linear import FrozenGroup, WeightBuffer
from strop.model.decoder import Layer
from strop.model.experts_block import Experts
from strop.model.norms import Norm
from strop.model.spec import KEY_NORM, MLP_INPUTS, MLP_OUTPUT, QUERY_NORM, DecoderSpec, module_path

Read = Callable[[str], Tensor]
"""Canonical name → tensor on the decoder's device, in the dtype of the file."""


def make_layer(
    index: int, spec: DecoderSpec, read: Read, read_nf4: Callable[[str], NF4Tensor], buffer: WeightBuffer
) -> Layer:
    """One layer.

    Args:
        index: its number.
        spec: the decoder.
        read: gives norms and biases.
        read_nf4: gives projections, quantised.
        buffer: where weights are dequantised to.
    """
    groups = []
    for names in spec.groups_of(index):
        paths = [module_path(index, name) for name in names]
        weights = [read_nf4(f"{path}.weight") for path in paths]
        biases = [read(f"{path}.bias") for path, name in zip(paths, names, strict=True) if spec.has_bias(name)]
        groups.append(FrozenGroup(weights, torch.cat(biases) if biases else None, buffer))
    norms = {name: make_norm(f"model.layers.{index}.{name}", spec, read) for name in spec.norms}
    return Layer(index, norms, tuple(groups), _make_experts(index, spec, read, read_nf4, buffer))


def _make_experts(
    index: int, spec: DecoderSpec, read: Read, read_nf4: Callable[[str], NF4Tensor], buffer: WeightBuffer
) -> Experts | None:
    if spec.experts is None or not spec.has_experts(index):
        return None

    def group(expert: int, names: tuple[str, ...]) -> FrozenGroup:
        path = f"model.layers.{index}.mlp.experts.{expert}"
        return FrozenGroup([read_nf4(f"{path}.{name}.weight") for name in names], None, buffer)

    router_XD = read(f"model.layers.{index}.mlp.gate.weight").float()
    numbers = range(spec.experts.count)
    gate_up, down = (tuple(group(number, names) for number in numbers) for names in (MLP_INPUTS, MLP_OUTPUT))
    return Experts(spec.experts, router_XD, gate_up, down)


def make_norm(path: str, spec: DecoderSpec, read: Read) -> Norm:
    """A norm by its path without ``.weight``."""
    biased = spec.norm == "layer" and not path.endswith((QUERY_NORM, KEY_NORM))
    return Norm(read(f"{path}.weight").float(), spec.norm_eps, read(f"{path}.bias").float() if biased else None)
