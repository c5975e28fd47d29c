"""Adapters under the names of a family's own modules, so that PEFT finds them: fused modules included.

Our adapters are of projections. Where the family's tree has one module for several, their adapters go into one that
gives the same sums. For two parts with (A₁, B₁) and (A₂, B₂), and rows of the module in the order of its parts:

    A = ( A₁ )      B = ( B₁  0  )      B A x = ( B₁ A₁ x )
        ( A₂ )          ( 0   B₂ )              ( B₂ A₂ x )

The rank is that of all parts together, and alpha grows with it, so that alpha / rank stays; PEFT is told by
``rank_pattern`` and ``alpha_pattern``. Back, B is cut along its blocks. An adapter that PEFT made has one A for all
parts: each gets that A and its own rows of B, which is the same function.

Canonical names are those of `strop.model.spec.module_path`. On the general path they are those of transformers' tree
itself, which PEFT's files have as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from strop.model.general.spec import GeneralSpec
from strop.model.spec import DecoderSpec, Module, module_path, rows_of

PREFIX = "base_model.model."
Pair = tuple[Tensor, Tensor]


def modules_of(spec: DecoderSpec) -> tuple[Module, ...]:
    """The linear modules of a layer in the family's tree."""
    if spec.modules:
        return spec.modules
    start = len(module_path(0, "")) - len("mlp.")
    return tuple(Module(module_path(0, name)[start:], (name,)) for name in spec.adaptable)


def tree_settings(spec: DecoderSpec | GeneralSpec, targets: Sequence[str], rank: int, alpha: float) -> dict[str, Any]:
    """The settings of adapter_config.json that depend on the tree: target_modules, rank_pattern, alpha_pattern."""
    if isinstance(spec, GeneralSpec):
        transposed = any(linear.transposed and linear.name in targets for linear in spec.linears)
        # Whole paths: a last word alone might stand for modules that have no adapter.
        names = [path for path, _, _ in spec.adapted(targets)]
        return {"target_modules": names, "rank_pattern": {}, "alpha_pattern": {}, "fan_in_fan_out": transposed}
    names, ranks, alphas = [], {}, {}
    for module in modules_of(spec):
        count = sum(part in targets for part in module.parts)
        if count:
            names.append(_short(spec, module))
        if count > 1:
            ranks[names[-1]], alphas[names[-1]] = count * rank, count * alpha
    return {"target_modules": names, "rank_pattern": ranks, "alpha_pattern": alphas}


def to_tree(spec: DecoderSpec | GeneralSpec, matrices: Mapping[str, Pair]) -> dict[str, Tensor]:
    """Canonical matrices under the names that PEFT gives them on disk."""
    tensors = {}
    if isinstance(spec, GeneralSpec):
        for path, pair in matrices.items():
            for letter, matrix in zip("AB", pair, strict=True):
                tensors[f"{PREFIX}{path}.lora_{letter}.weight"] = matrix
        return tensors
    for layer, module in _places(spec):
        pairs = {part: matrices[path] for part in module.parts if (path := module_path(layer, part)) in matrices}
        if pairs:
            pair = _joined(spec, module, pairs)
            for letter, matrix in zip("AB", pair, strict=True):
                tensors[f"{_on_disk(spec, layer, module)}.lora_{letter}.weight"] = matrix
    return tensors


def from_tree(
    spec: DecoderSpec | GeneralSpec, tensors: Mapping[str, Tensor], targets: Sequence[str], rank: int
) -> dict[str, Tensor]:
    """Tensors of an adapter's file under canonical names; those that belong nowhere keep theirs.

    Args:
        spec: the decoder.
        tensors: the file's.
        targets: projections that have adapters.
        rank: of each.
    """
    found = dict(tensors)
    if isinstance(spec, GeneralSpec):
        return found
    for layer, module in _places(spec):
        names = [f"{_on_disk(spec, layer, module)}.lora_{letter}.weight" for letter in "AB"]
        parts = [part for part in module.parts if part in targets]
        if not all(name in found for name in names) or not parts:
            continue
        a_SI, b_OS = (found.pop(name) for name in names)
        shared = len(module.parts) > 1 and len(a_SI) == rank and b_OS.shape[1:] == (rank,) and len(parts) > 1
        for number, part in enumerate(parts):
            ranks = slice(0, None) if shared or len(parts) == 1 else slice(number * rank, (number + 1) * rank)
            whole = len(module.parts) == 1 or len(b_OS) != _outputs(spec, module)
            rows = slice(None) if whole else module_rows(spec, module)[part]
            path = PREFIX + module_path(layer, part)
            found[f"{path}.lora_A.weight"] = a_SI[ranks].clone()
            found[f"{path}.lora_B.weight"] = b_OS[rows, ranks].clone()
    return found


def targets_of(spec: DecoderSpec | GeneralSpec, names: Sequence[str] | str) -> tuple[str, ...]:
    """The projections of the modules that ``target_modules`` names."""
    chosen: list[str] = []
    if isinstance(spec, GeneralSpec):
        words = set(names)
        named = {one.name for one in spec.linears if names == "all-linear" or one.name in words or one.path in words}
        return tuple(name for name in spec.adaptable if name in named)
    for module in modules_of(spec):
        last = module.path.rsplit(".", 1)[-1]
        if names == "all-linear" or module.path in names or last in names:
            chosen += module.parts
    return tuple(name for name in spec.adaptable if name in chosen)


def module_rows(spec: DecoderSpec, module: Module) -> dict[str, Tensor]:
    """The rows of a module that each of its parts has: int64."""
    return {
        part: torch.cat([torch.arange(start, end) for start, end in rows_of(spec, module, part)])
        for part in module.parts
    }


def _joined(spec: DecoderSpec, module: Module, pairs: Mapping[str, Pair]) -> Pair:
    """One pair for the adapters of a module's parts."""
    if len(module.parts) == 1:
        return next(iter(pairs.values()))
    matrices = [a_RI.detach() for a_RI, _ in pairs.values()]
    b_OS = matrices[0].new_zeros(_outputs(spec, module), sum(len(a_RI) for a_RI in matrices))
    rows, first = module_rows(spec, module), 0
    for part, (_, b_PR) in pairs.items():
        b_OS[rows[part].to(b_OS.device), first : first + b_PR.shape[1]] = b_PR.detach()
        first += b_PR.shape[1]
    return torch.cat(matrices), b_OS


def _outputs(spec: DecoderSpec, module: Module) -> int:
    return sum(spec.projection_shape(part)[0] for part in module.parts)


def _places(spec: DecoderSpec) -> Iterator[tuple[int, Module]]:
    for layer in range(spec.layers):
        for module in modules_of(spec):
            yield layer, module


def _on_disk(spec: DecoderSpec, layer: int, module: Module) -> str:
    return f"{PREFIX}{spec.layers_path}.{layer}.{module.path}"


def _short(spec: DecoderSpec, module: Module) -> str:
    """The last word of a module's path where no other module of a layer has it."""
    last = module.path.rsplit(".", 1)[-1]
    twins = [other for other in modules_of(spec) if other.path.rsplit(".", 1)[-1] == last]
    return last if len(twins) == 1 else module.path
