"""Where the weights of a model of the general path lie in its files: transformers' renamings, ours to read.

    path in the tree                            file                              change
    transformer.h.0.attn.c_attn.weight          h.0.attn.c_attn.weight            transposed
    backbone.embeddings.weight                  backbone.embedding.weight

Files may leave out the base's name or have it too much, and transformers renames what older files call otherwise. What
it would have to compute when it loads (fused experts) is refused, as is a weight in the files that the model has not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from strop.errors import ModelError
from strop.model.families import read_config
from strop.model.general.library import quiet
from strop.model.general.skeleton import Skeleton, make_skeleton, shared_names, spec_of
from strop.model.general.spec import GeneralSpec
from strop.model.prequantized import check_quantization
from strop.model.tensors import Source, Tensors
from strop.model.weights import WeightReader

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers")


class GeneralTensors(Tensors):
    """The tensors of a model of the general path, by the paths of transformers' tree.

    Args:
        folder: config.json and safetensors.

    Attributes:
        spec: what the model is.

    Raises:
        ModelError: `strop.model.general.skeleton.spec_of`; or the files do not hold this model.
    """

    def __init__(self, folder: Path) -> None:
        config, place = read_config(folder), folder / "config.json"
        check_quantization(config.get("quantization_config"), place)
        reader = WeightReader(folder)
        reader.check_layers(_most_layers(config))
        self.spec: GeneralSpec = spec_of(config, place)
        skeleton = make_skeleton(config, place, self.spec.attention)
        super().__init__(config, reader, _table(self.spec, skeleton, reader.shapes, folder))

    @property
    def projections(self) -> list[str]:
        """Names of the linears' weights, in the order of the tree."""
        return [f"{linear.path}.weight" for linear in self.spec.linears]

    @property
    def weight_item(self) -> int:
        """Bytes of a number of a linear's weight in the files; the most of any."""
        return max(self.item_bytes(name) for name in self.projections)


def _most_layers(config: Mapping[str, Any]) -> int:
    """The largest number of layers that a config names, in its parts too."""
    counts = [0]
    for key, value in config.items():
        if isinstance(value, dict):
            counts.append(_most_layers(value))
        elif isinstance(value, int) and key in _LAYERS:
            counts.append(value)
    return max(counts)


def _table(
    spec: GeneralSpec, skeleton: Skeleton, shapes: Mapping[str, tuple[int, ...]], folder: Path
) -> dict[str, Source]:
    """Where each tensor of the tree lies."""
    wanted = dict(skeleton.model.state_dict())
    shared = shared_names(skeleton.model)
    renamed = _renaming(skeleton, wanted)
    found = {name: file_name for file_name in shapes if (name := renamed(file_name)) in wanted}
    made = {name for name, buffer in skeleton.model.named_buffers() if not buffer.is_meta}
    _check_unused(skeleton, set(shapes) - set(found.values()), shapes, spec, folder)
    transposed = {
        f"{linear.path}.weight": (linear.outputs, linear.inputs) for linear in spec.linears if linear.transposed
    }
    for same in shared.values():  # of names of one tensor any may be in the files
        there = next((found[name] for name in same if name in found), None)
        found |= {} if there is None else dict.fromkeys(same, there)
    table = {}
    for name, tensor in wanted.items():
        if name in made and name not in found:
            continue  # a table that the model computes
        shape = tuple(tensor.shape)
        here = shapes.get(found.get(name, ""))
        if here != shape:
            raise ModelError(
                f"{folder}: tensor {name} is {'missing' if here is None else 'of the wrong shape'}",
                expected=f"shape {list(shape)}, as transformers makes it of config.json",
                found="no such tensor" if here is None else f"shape {list(here)}",
                do="config.json and the weights must be of one model; fetch the model again",
            )
        ours = transposed.get(name, shape)
        table[name] = Source(found[name], shape, ours, None, "transposed" if name in transposed else "")
    return table


def _renaming(skeleton: Skeleton, wanted: Mapping[str, Any]) -> Callable[[str], str]:
    """A file's name of a tensor → its path in the tree, as transformers renames it; "" where it would compute it."""
    with quiet():
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, rename_source_key

        transforms = get_model_conversion_mapping(skeleton.model)
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    renamings: list[Any] = [one for one in transforms if not isinstance(one, WeightConverter)]

    prefix, state = str(skeleton.model.base_model_prefix), dict(wanted)

    def renamed(file_name: str) -> str:
        if file_name in wanted:
            return file_name
        name, converter = rename_source_key(file_name, renamings, converters, prefix, state)
        return str(name) if converter is None else ""

    return renamed


def _check_unused(
    skeleton: Skeleton, unused: set[str], shapes: Mapping[str, tuple[int, ...]], spec: GeneralSpec, folder: Path
) -> None:
    """Refuses weights that the model has no place for; what older files hold besides (masks, angles) is let be."""
    patterns = [*(getattr(skeleton.model, "_keys_to_ignore_on_load_unexpected", None) or ())]
    tied = f"{spec.head}.weight" if spec.tied_head else ""
    for name in sorted(unused):
        matrix = name.endswith("weight") and len(shapes[name]) > 1
        if matrix and name != tied and not any(re.search(pattern, name) for pattern in patterns):
            raise ModelError(
                f"{folder}: transformers' model has no place for tensor {name}",
                expected="weights that config.json describes",
                found=f"{name} {list(shapes[name])}, one of {len(unused)} tensors without a place",
                do="fetch the model again, or try another version of transformers",
            )
