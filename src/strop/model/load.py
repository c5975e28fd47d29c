"""From a model folder to a decoder: tensors are read one by one and quantised as they come.

What is in memory at any moment is the NF4 base so far, head and embedding, and a bounded number of full-precision
tensors (`strop.model.base`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from strop.kernels.qlora_linear import FrozenGroup, WeightBuffer
from strop.model.base import Base, open_base
from strop.model.decoder import Decoder, Layer
from strop.model.head import Embedding, Head
from strop.model.spec import GROUPS, DecoderSpec, module_path
from strop.model.support import require_support
from strop.model.tensors import EMBEDDING, FINAL_NORM, HEAD, ModelTensors

Progress = Callable[[int, int], None]


def load_decoder(
    folder: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
    *,
    head: str = "dense",
    embedding: str = "memory",
) -> Decoder:
    """Loads the model of a folder as a frozen NF4 base.

    Args:
        folder: config.json and safetensors, of a supported family.
        device: where the base lies.
        dtype: dtype of activations.
        progress: called with (layers done, layers).
        head: "dense" keeps the head in ``dtype``, "stored" as the file has it; the same numbers.
        embedding: "memory", or "file" to read its rows when they are needed; a tied one is the head.

    Raises:
        ModelError: the folder, its config, a tensor's name, shape or numbers are not right.
    """
    tensors = ModelTensors(folder)
    spec, read = tensors.spec, tensors.read
    require_support(spec, folder / "config.json")
    device = torch.device(device)
    buffer = WeightBuffer()

    head_VD = read(EMBEDDING if spec.tied_head else HEAD)
    stored = head_VD.dtype
    # float32 in the file is never stored in less; bfloat16 of a 16-bit file is what the products take.
    head_VD = head_VD.to(device=device, dtype=dtype if head == "dense" or head_VD.itemsize > 2 else None)
    if spec.tied_head:
        rows = Embedding(head_VD)
    elif embedding == "file":
        rows = Embedding(None, lambda tokens_U: tensors.read_rows(EMBEDDING, tokens_U))
    else:
        rows = Embedding(read(EMBEDDING).to(device=device))
    layers = []
    with open_base(tensors, device) as base:
        for index in range(spec.layers):
            layers.append(_load_layer(index, spec, base, buffer))
            if progress:
                progress(index + 1, spec.layers)
    final_norm_D = read(FINAL_NORM).to(device=device, dtype=torch.float32)
    return Decoder(spec, rows, Head(head_VD, dtype, stored), final_norm_D, layers, dtype, buffer)


def _load_layer(index: int, spec: DecoderSpec, base: Base, buffer: WeightBuffer) -> Layer:
    groups = []
    for names in GROUPS:
        paths = [module_path(index, name) for name in names]
        weights = [base.quantized(f"{path}.weight") for path in paths]
        biases = [base.read(f"{path}.bias") for path, name in zip(paths, names, strict=True) if spec.has_bias(name)]
        groups.append(FrozenGroup(weights, torch.cat(biases) if biases else None, buffer))
    norms = [
        base.read(f"model.layers.{index}.{name}.weight").float()
        for name in ("input_layernorm", "post_attention_layernorm")
    ]
    return Layer(index, norms[0], norms[1], tuple(groups))
