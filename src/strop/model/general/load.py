"""From a model folder to a decoder of the general path: each weight goes from its file straight into NF4.

What is in memory at any moment is the NF4 base so far, the weights that are not quantised, and a bounded number of
tensors in full (`strop.model.base`). transformers' model is made without weights and filled; it never loads one itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from strop.errors import ModelError
from strop.kernels.nf4 import NF4Tensor
from strop.kernels.qlora_linear import FrozenGroup, WeightBuffer
from strop.model.base import open_base
from strop.model.four_bit import check_matrices, should_be
from strop.model.general.decoder import GeneralDecoder
from strop.model.general.files import GeneralTensors
from strop.model.general.head import GeneralHead
from strop.model.general.linear import Layer, Pass, QuantizedLinear, StoredEmbedding
from strop.model.general.skeleton import Skeleton, make_skeleton, shared_names
from strop.model.general.spec import GeneralSpec
from strop.model.general.trial import try_out

Progress = Callable[[int, int], None]


def load_general(
    folder: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> GeneralDecoder:
    """Loads the model of a folder as a frozen NF4 base.

    Args:
        folder: config.json and safetensors, of a model that transformers has itself.
        device: where the base lies.
        dtype: dtype of activations.
        progress: called with (layers done, layers).

    Raises:
        ModelError: the folder, its config, a tensor's name, shape or numbers are not right; or the model does not
            compute what a decoder must.
    """
    tensors = GeneralTensors(folder)
    spec, device = tensors.spec, torch.device(device)
    skeleton = make_skeleton(tensors.config, folder / "config.json", spec.attention)
    shared = shared_names(skeleton.model)
    running, buffer = Pass(), WeightBuffer()
    linears: list[QuantizedLinear] = []
    with open_base(tensors, device) as base:
        done = 0
        for linear in spec.linears:
            bias_O = base.read(f"{linear.path}.bias") if linear.bias else None
            frozen = FrozenGroup([base.quantized(f"{linear.path}.weight")], bias_O, buffer)
            linears.append(QuantizedLinear(linear.path, frozen, running))
            replace_module(skeleton.model, linear.path, linears[-1])
            index = spec.layer_of(linear.path)
            if progress and index is not None and index >= done:
                done = index + 1
                progress(done, spec.layers)
        _fill(skeleton, shared, tensors, device, dtype)
    decoder = assemble(spec, skeleton, linears, running, device, dtype, folder)
    held = (module for module in decoder.model.modules() if isinstance(module, QuantizedLinear))
    check_matrices(should_be(spec), {module.path: module.frozen.weights[0] for module in held}, folder)
    return decoder


def assemble(
    spec: GeneralSpec,
    skeleton: Skeleton,
    linears: list[QuantizedLinear],
    running: Pass,
    device: torch.device,
    dtype: torch.dtype,
    folder: Path,
) -> GeneralDecoder:
    """A decoder of a model whose weights are all there, tried out on a few tokens."""
    model, layers = skeleton.model, skeleton.layers
    model.eval()
    model.requires_grad_(False)
    wrapped = [Layer(layer) for layer in layers]
    replace_module(model, spec.layers_path, nn.ModuleList(wrapped))
    head = GeneralHead(model, skeleton.base, model.get_submodule(spec.head).weight.detach())
    decoder = GeneralDecoder(spec, model, skeleton.base, wrapped, linears, head, running, dtype, device)
    try_out(decoder, folder)
    return decoder


def made_up_linears(
    spec: GeneralSpec,
    skeleton: Skeleton,
    make: Callable[[tuple[int, int]], NF4Tensor],
    running: Pass,
    device: torch.device,
) -> None:
    """Puts linears of made-up numbers into the places of a skeleton's: of each shape there is one weight."""
    buffer = WeightBuffer()
    weights = {shape: make(shape) for shape in {(linear.outputs, linear.inputs) for linear in spec.linears}}
    for linear in spec.linears:
        bias_O = torch.zeros(linear.outputs, device=device) if linear.bias else None
        frozen = FrozenGroup([weights[linear.outputs, linear.inputs]], bias_O, buffer)
        replace_module(skeleton.model, linear.path, QuantizedLinear(linear.path, frozen, running))


def _fill(
    skeleton: Skeleton,
    shared: Mapping[str, Sequence[str]],
    tensors: GeneralTensors,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Puts all that is not quantised into its place, and whatever the model computed itself on the device."""
    model, spec = skeleton.model, tensors.spec
    kept = {str(name) for name in (getattr(model, "_keep_in_fp32_modules", None) or ())}
    slots = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, there in slots.items():
        path, _, last = name.rpartition(".")
        if name not in tensors.table:
            tensor = _computed(there, name, tensors).to(device)
        else:
            tensor = tensors.read(name).to(device)
            if path == spec.embedding and not spec.tied_head and type(model.get_submodule(path)) is nn.Embedding:
                replace_module(model, path, StoredEmbedding(tensor, dtype))
                continue
            if there.is_floating_point():
                tensor = tensor.to(torch.float32 if kept & set(path.split(".")) else dtype)
        if last not in model.get_submodule(path)._parameters:
            model.get_submodule(path)._buffers[last] = tensor
            continue
        parameter = nn.Parameter(tensor, requires_grad=False)
        for same in shared.get(name, (name,)):
            path, _, last = same.rpartition(".")
            model.get_submodule(path)._parameters[last] = parameter


def _computed(there: Tensor, name: str, tensors: GeneralTensors) -> Tensor:
    """What the model computed itself, such as angles.

    Raises:
        ModelError: it has not.
    """
    if there.is_meta:
        raise ModelError(
            f"{tensors.reader.folder}: {name} is neither in the files nor computed by transformers' model",
            expected="every weight that the model has",
            found="no such tensor",
            do="use a model that `strop models` lists",
        )
    return there


def replace_module(model: Any, path: str, module: nn.Module) -> None:
    """Puts a module into the place that a path of the tree names."""
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent)._modules[name] = module
