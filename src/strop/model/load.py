"""From a model folder to a decoder: tensors are read one by one and quantised as they come.

What is in memory at any moment is the NF4 base so far, head and embedding, and a bounded number of full-precision
tensors (`strop.model.base`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from strop.kernels.qlora_linear import WeightBuffer
from strop.model.assemble import make_layer, make_norm
from strop.model.base import open_base
from strop.model.decoder import Decoder
from strop.model.four_bit import check_four_bits, check_layer
from strop.model.head import Embedding, Head
from strop.model.streamed_base import BaseStream
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
    base: str = "device",
) -> Decoder:
    """Loads the model of a folder as a frozen NF4 base.

    Args:
        folder: config.json and safetensors, of a supported family.
        device: where the base lies.
        dtype: dtype of activations.
        progress: called with (layers done, layers).
        head: "dense" keeps the head in ``dtype``, "stored" as the file has it; the same numbers.
        embedding: "memory", "file" to read its rows when they are needed, or "host" to keep a GPU's in the machine's
            memory; a tied one is the head.
        base: "device", or "host" to keep the layers in the machine's memory and bring them one by one.

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
    elif embedding == "host" and device.type == "cuda":
        rows = Embedding(read(EMBEDDING).pin_memory())
    else:
        rows = Embedding(read(EMBEDDING).to(device=device))
    layers = []
    stream = BaseStream(device) if base == "host" else None
    with open_base(tensors, device) as opened:
        for index in range(spec.layers):
            layers.append(make_layer(index, spec, opened.read, opened.quantized, buffer))
            if stream is not None:
                check_layer(spec, layers[-1], folder)
                stream.add(layers[-1])
            if progress:
                progress(index + 1, spec.layers)
        final_norm = make_norm(FINAL_NORM.removesuffix(".weight"), spec, opened.read)
        bias_V = opened.read("lm_head.bias").float() if spec.head_bias else None
    if stream is not None:
        stream.finish(layers)
    head_part = Head(head_VD, dtype, stored, bias_V, spec.logit_scale, spec.head_softcap)
    decoder = Decoder(spec, rows, head_part, final_norm, layers, dtype, buffer, stream=stream)
    if stream is None:
        check_four_bits(decoder, folder)
    return decoder
