"""From config.json to a spec: one table a family, every key that could change the maths either read or refused.

Reading is by white-list. A key that is known to have no influence on a forward pass is ignored; a known key with a
value that this decoder does not compute is refused by name, so that a model is never run as something it is not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from strop.errors import ModelError
from strop.foreign import read_json
from strop.model.spec import DecoderSpec, RopeSpec

Config = dict[str, Any]

# What other libraries make code of. auto_map stands in many honest configs and is not read.
_CODE_KEYS = ("_target_", "_component_", "_attn_implementation_internal", "_experts_implementation_internal")


def read_spec(folder: Path) -> DecoderSpec:
    """Reads the spec of the model in a folder.

    Raises:
        ModelError: no config.json, broken JSON, a family or a setting that is not supported.
    """
    return spec_from_config(read_config(folder), folder / "config.json")


def read_config(folder: Path) -> Config:
    """The parsed config.json of a model folder."""
    path = folder / "config.json"
    if not folder.is_dir():
        raise ModelError(
            f"model folder {folder} does not exist",
            expected="a folder with config.json, *.safetensors and tokenizer.json, a .gguf file, or a known name",
            do="check the path; `smollm2-135m-instruct` is fetched by name",
        )
    if not path.is_file():
        raise ModelError(
            f"{folder} has no config.json",
            expected="a model folder: config.json, *.safetensors, tokenizer.json",
            found=", ".join(sorted(item.name for item in folder.iterdir())[:8]) or "an empty folder",
            do="point to the folder that holds the model itself",
        )
    try:
        config = read_json(path)
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read", found=str(error), do="fetch the model again") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a JSON object", found=type(config).__name__, do="fetch the model again")
    return config


def spec_from_config(config: Config, place: Path) -> DecoderSpec:
    """Turns a config into a spec; ``place`` is named in errors."""
    family = config.get("model_type")
    code = next((key for key in _CODE_KEYS if key in config), None)
    if code is not None:
        raise ModelError(
            f"{place}: {code} names code to be run",
            expected="numbers and names",
            found=f"{code}: {json.dumps(config[code])[:200]}",
            do="do not use this model: no config of an honest one has this key (CVE-2026-4372, CVE-2025-23304)",
        )
    reader = FAMILIES.get(str(family))
    if reader is None:
        raise ModelError(
            f"{place}: the family {family!r} is not supported",
            expected=" or ".join(sorted(FAMILIES)),
            found=f"model_type {family!r}",
            do="use a model of a supported family",
        )
    try:
        return reader(config, place)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        problem = f"missing key {error}" if isinstance(error, KeyError) else str(error)
        raise ModelError(f"{place} is incomplete or broken", found=problem, do="fetch the model again") from None


def _llama(config: Config, place: Path) -> DecoderSpec:
    _require(config, place, "hidden_act", "silu", default="silu")
    _require(config, place, "quantization_config", None, default=None)
    heads = _size(config, "num_attention_heads")
    hidden = _size(config, "hidden_size")
    kv_heads = _size(config, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise ValueError(f"num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}")
    return DecoderSpec(
        family="llama",
        vocabulary=_size(config, "vocab_size"),
        hidden=hidden,
        intermediate=_size(config, "intermediate_size"),
        layers=_size(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_size=_size(config, "head_dim", hidden // heads),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope=_rope(config, place),
        attention_bias=bool(config.get("attention_bias", False)),
        mlp_bias=bool(config.get("mlp_bias", False)),
        tied_head=bool(config.get("tie_word_embeddings", False)),
        context=_size(config, "max_position_embeddings", 2048),
    )


FAMILIES: dict[str, Callable[[Config, Path], DecoderSpec]] = {"llama": _llama}


def _size(config: Config, key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = config[key] if default is None else default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise ValueError(f"{key} is {value!r}, not a positive whole number")
    return value


def _require(config: Config, place: Path, key: str, wanted: object, default: object) -> None:
    value = config.get(key, default)
    if value != wanted:
        raise ModelError(
            f"{place}: {key} is not supported",
            expected=f"{key}: {json.dumps(wanted)}",
            found=f"{key}: {json.dumps(value)[:200]}",
            do="use the original, unquantised model" if key == "quantization_config" else "use another model",
        )


def _rope(config: Config, place: Path) -> RopeSpec:
    """Reads the older ``rope_theta`` + ``rope_scaling`` and the newer ``rope_parameters``."""
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(settings.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind == "default":
        return RopeSpec(theta)
    if kind == "linear":
        return RopeSpec(theta, "linear", float(settings["factor"]))
    if kind == "llama3":
        return RopeSpec(
            theta,
            "llama3",
            float(settings["factor"]),
            float(settings["low_freq_factor"]),
            float(settings["high_freq_factor"]),
            int(settings["original_max_position_embeddings"]),
        )
    raise ModelError(
        f"{place}: rope scaling {kind!r} is not supported",
        expected="default, linear or llama3",
        found=f"rope_type {kind!r}",
        do="use another model",
    )
