"""Which path computes a model: the one decoder where a family's table describes it, the general path for what else
transformers has.

The two give the same things under the same names, so that what trains, asks and measures takes either:

    AnySpec      family, vocabulary, hidden, layers, context, tied_head, adaptable, parameters, adapted(targets)
    AnyTensors   spec, reader, table, read, item_bytes, projections
    AnyDecoder   spec, device, dtype, loss_chunk, loss, logits, stages, keep_dense, keep_head
    AnyEngine    decoder, device, tokens, loss, gradients, release
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch

from strop.model.decoder import Decoder
from strop.model.engine import Engine
from strop.model.families import find_family, read_config
from strop.model.general.decoder import GeneralDecoder
from strop.model.general.engine import GeneralEngine
from strop.model.general.files import GeneralTensors
from strop.model.general.spec import GeneralSpec
from strop.model.load import load_decoder
from strop.model.spec import DecoderSpec
from strop.model.support import require_support
from strop.model.tensors import ModelTensors

AnySpec: TypeAlias = DecoderSpec | GeneralSpec
AnyTensors: TypeAlias = ModelTensors | GeneralTensors
AnyDecoder: TypeAlias = Decoder | GeneralDecoder
AnyEngine: TypeAlias = Engine | GeneralEngine

SLOWER = "general path (transformers): slower than Strop's own families, and its forecasts are rough"
"""How the general path is marked wherever a person reads of a plan or a model."""


def open_tensors(folder: Path) -> AnyTensors:
    """The tensors of a model and what it is; of one that has no table, as transformers has it.

    Raises:
        ModelError: the folder, its config, a tensor's name or shape are not right; a kind of model that is computed by
            neither path.
    """
    if find_family(read_config(folder)) is None:
        return GeneralTensors(folder)
    tensors = ModelTensors(folder)
    require_support(tensors.spec, folder / "config.json")
    return tensors


def path_of(folder: Path) -> dict[str, str | int]:
    """What computes a model, for people: ``family``, ``path``, and on the general path what it does otherwise.

    Raises:
        ModelError: `open_tensors`.
    """
    spec = open_tensors(folder).spec
    facts: dict[str, str | int] = {"family": spec.family, "parameters": spec.parameters, "context": spec.context}
    if isinstance(spec, DecoderSpec):
        return {**facts, "path": "Strop's own decoder"}
    return {
        **facts,
        "path": SLOWER,
        "adapters_on": ", ".join(spec.adaptable),
        "packs": "documents are told apart in a pack, if its weights agree" if spec.packs else "a document at a time",
    }


def load_any(
    folder: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int, int], None] | None = None,
    *,
    head: str = "dense",
    embedding: str = "memory",
    base: str = "device",
) -> AnyDecoder:
    """Loads the model of a folder as a frozen NF4 base; the arguments are those of `strop.model.load.load_decoder`."""
    if find_family(read_config(folder)) is None:
        from strop.model.general.load import load_general

        return load_general(folder, device, dtype, progress)
    return load_decoder(folder, device, dtype, progress, head=head, embedding=embedding, base=base)
