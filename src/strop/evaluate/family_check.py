"""Proves a family on the weights that a user really has: our decoder beside transformers, layer by layer.

A model of one layer is made of the embedding, layer i, the last norm and the head, in both; its projections have the
weights that NF4 leaves, in both. The same tokens go through in float32. So every layer of the model is compared, with
its own window, rope and place in the pattern, while memory holds one layer and a slice of the vocabulary. What is
not compared is the whole model's depth, which is the same function layer after layer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from strop.errors import ModelError, UsageError
from strop.kernels import nf4
from strop.kernels.qlora_linear import WeightBuffer
from strop.model.assemble import make_layer, make_norm
from strop.model.batch import Batch
from strop.model.decoder import Decoder
from strop.model.families import family_of
from strop.model.four_bit import InFourBits, check_four_bits
from strop.model.head import Embedding, Head
from strop.model.spec import DecoderSpec
from strop.model.support import require_support
from strop.model.tensors import EMBEDDING, HEAD, ModelTensors, Source

TOLERANCE = 1e-4
"""Norm of the difference over norm of the logits; float32 sums of 4,096 terms in another order differ by about 1e-6."""

_TOKENS = 96
_VOCABULARY = 2048
_ENDS = (EMBEDDING, HEAD, "lm_head.bias")
_PER_LAYER = ("layer_types", "no_rope_layers")


class LayerCheck(NamedTuple):
    """What came of one layer.

    Args:
        layer: its number.
        difference: norm of the logits' difference over the norm of transformers' logits.
        quantised: what of the layer is in NF4: all that should be.
    """

    layer: int
    difference: float
    quantised: InFourBits


def check_family(folder: Path, progress: Callable[[int, int], None] | None = None) -> Iterator[LayerCheck]:
    """Compares every layer of the model in a folder with transformers.

    Args:
        folder: config.json and safetensors, of a family that transformers has.
        progress: called with (layers done, layers).

    Raises:
        ModelError: the folder is broken, transformers cannot read its family without remote code, or a weight that
            should be in NF4 is not.
        UsageError: transformers is not installed.
    """
    tensors = ModelTensors(folder)
    require_support(tensors.spec, folder / "config.json")
    config = _their_config(folder, tensors)
    generator = torch.Generator().manual_seed(7)
    size = min(_VOCABULARY, tensors.spec.vocabulary)
    tokens_T = torch.randint(size, (_TOKENS,), generator=generator)
    for index in range(tensors.spec.layers):
        read = _OneLayer(tensors, index, size)
        decoder = _our_layer(read)
        quantised = check_four_bits(decoder, f"{folder}, layer {index}")
        ours = decoder.logits(_alone(tokens_T), None)
        with torch.no_grad():
            theirs = _their_layer(config, read)(tokens_T[None]).logits[0].float()
        difference = ((ours - theirs).norm() / theirs.norm()).item()
        if progress:
            progress(index + 1, tensors.spec.layers)
        yield LayerCheck(index, difference, quantised)


class _OneLayer:
    """The tensors of a model of one layer: by our names in ``ours``, as the file has them in ``state``.

    Args:
        tensors: the whole model.
        layer: which layer.
        vocabulary: how many rows of embedding and head are taken.
    """

    def __init__(self, tensors: ModelTensors, layer: int, vocabulary: int) -> None:
        self.layer = layer
        self.spec = _one_layer(tensors.spec, layer, vocabulary)
        self.state: dict[str, Tensor] = {}
        self.ours: dict[str, Tensor] = {}
        self.projections: dict[str, nf4.NF4Tensor] = {}
        self._prefix = family_of(tensors.config).prefix(tensors.config)
        place = f"model.layers.{layer}."
        for name, source in tensors.table.items():
            if name.startswith(place) or not name.startswith("model.layers."):
                self._take(tensors, name, name.replace(place, "model.layers.0."), source)

    def _take(self, tensors: ModelTensors, name: str, new_name: str, source: Source) -> None:
        rows = ((0, self.spec.vocabulary),) if name in _ENDS else source.rows
        stored = tensors.reader.read(source.name, rows).float()
        if name.endswith("_proj.weight"):
            self.projections[new_name] = nf4.quantize(stored)
            stored = nf4.dequantize(self.projections[new_name])
        self.ours[new_name] = source.changed(stored)
        file_name = source.name.removeprefix(self._prefix)
        file_name = file_name.replace(f".{self.layer}.", ".0.", 1) if name != new_name else file_name
        if source.rows is None:
            self.state[file_name] = stored
            return
        whole = self.state.setdefault(file_name, torch.empty(source.file_shape))
        at = 0
        for start, end in source.rows:
            whole[start:end] = stored[at : at + end - start]
            at += end - start


def _one_layer(spec: DecoderSpec, layer: int, vocabulary: int) -> DecoderSpec:
    """The spec of a model of one layer of this one."""
    experts = spec.experts
    if experts is not None and experts.layers is not None:
        experts = replace(experts, layers=None) if experts.layers[layer] else None
    return replace(
        spec,
        layers=1,
        vocabulary=vocabulary,
        windows=spec.windows and spec.windows[layer : layer + 1],
        rope_layers=spec.rope_layers and spec.rope_layers[layer : layer + 1],
        experts=experts,
    )


def _our_layer(read: _OneLayer) -> Decoder:
    spec, get = read.spec, read.ours.__getitem__
    layer = make_layer(0, spec, get, read.projections.__getitem__, WeightBuffer())
    head_VD = get(EMBEDDING if spec.tied_head else HEAD)
    bias_V = get("lm_head.bias") if spec.head_bias else None
    head = Head(head_VD, torch.float32, torch.float32, bias_V, spec.logit_scale, spec.head_softcap)
    norm = make_norm("model.norm", spec, get)
    return Decoder(spec, Embedding(get(EMBEDDING)), head, norm, [layer], torch.float32, WeightBuffer())


def _their_config(folder: Path, tensors: ModelTensors) -> Any:
    family = family_of(tensors.config)
    if family.reference != "transformers":
        raise ModelError(
            f"{folder}: transformers needs code from its repository to read {family.name}, and Strop never runs that",
            expected="a family that transformers has; `strop models` says which",
            found=f"model_type {tensors.config.get('model_type')}",
            do="nothing to prove here: Strop's tests hold this family to its published formulas",
        )
    try:
        from transformers import AutoConfig
        from transformers.utils import logging
    except ImportError:
        raise UsageError(
            "strop models --check needs transformers, which Strop itself does not",
            expected="the package transformers beside strop",
            found="it is not installed",
            do="pip install transformers",
        ) from None
    logging.disable_progress_bar()  # type: ignore[no-untyped-call] # one a layer, between our lines
    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return getattr(config, "text_config", None) or config


def _their_layer(config: Any, read: _OneLayer) -> Any:
    """transformers' model of one layer, with the weights by the names of the file."""
    import copy

    from transformers import AutoModelForCausalLM

    settings = copy.deepcopy(config)
    for key in _PER_LAYER:
        values = getattr(settings, key, None)
        if values:
            setattr(settings, key, list(values)[read.layer : read.layer + 1])
    if getattr(settings, "mlp_only_layers", None) is not None:
        settings.mlp_only_layers = [] if read.spec.experts else [0]
        settings.decoder_sparse_step = 1
    settings.num_hidden_layers = 1
    settings.vocab_size = read.spec.vocabulary
    settings.pad_token_id = settings.bos_token_id = settings.eos_token_id = None
    with tempfile.TemporaryDirectory() as folder:  # transformers takes weights from files alone; one layer's go there
        settings.save_pretrained(folder)
        save_file(read.state, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.train(False)
    return model


def _alone(tokens_T: Tensor) -> Batch:
    """One document, of which nothing is learned."""
    count = len(tokens_T)
    zeros_T = torch.zeros(count, dtype=torch.int64)
    empty = torch.empty(0, dtype=torch.int64)
    return Batch(tokens_T, torch.arange(count), zeros_T, (0, count), empty, empty, ((0, count, 0, 0),))
