"""What a family is: a table from its config.json and tensor names to the one decoder.

A plain family is one file of this folder with a `FAMILY` in it, under 60 lines; `docs/add-a-family.md` shows how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from strop.model.families.settings import Config, Settings
from strop.model.spec import DecoderSpec, Module


def _no_prefix(_config: Config) -> str:
    return ""


def _as_stored(_module: str, _spec: DecoderSpec) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Family:
    """A family of models.

    Attributes:
        name: its name, for people and in manifests.
        covers: the models that it reads, for people.
        model_types: values of model_type in config.json.
        spec: settings → spec; what it does not read is refused.
        reference: what its tests compare with: "transformers", or "formulas" where transformers lacks the family.
        layers: where the layers are in the file.
        names: module outside the layers in our tree → in the file, for those that are named otherwise.
        layer_names: the same within a layer, ``{expert}`` standing for a number. Projections that the spec's
            ``modules`` already name need no entry.
        prefix: what stands before every name in the file, by the config.
        change: (module, spec) → what is done to the tensor when it is read: "", "plus one" (Gemma's norms multiply
            by 1 + w) or "unit rows" (Baichuan 2's head divides each row by its length).
    """

    name: str
    covers: str
    model_types: tuple[str, ...]
    spec: Callable[[Settings], DecoderSpec]
    reference: str = "transformers"
    layers: str = "model.layers"
    names: Mapping[str, str] = field(default_factory=dict)
    layer_names: Mapping[str, str] = field(default_factory=dict)
    prefix: Callable[[Config], str] = _no_prefix
    change: Callable[[str, DecoderSpec], str] = _as_stored


def llama_modules(**other: str) -> tuple[Module, ...]:
    """Llama's modules, some of them under another name: ``o_proj="self_attn.dense"``."""
    names = {name: f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
    names |= {name: f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")}
    return tuple(Module(path, (name,)) for name, path in {**names, **other}.items() if path)
