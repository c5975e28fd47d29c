"""From config.json to a spec: one table a family, every key that could change the maths either read or refused.

Every module of this folder with a `FAMILY` in it is a family; `FAMILIES` is found by looking, so that a new family is
one file. What a family is stands in `family`, how keys are read in `settings`, the ropes in `rope`.
"""

from __future__ import annotations

import difflib
import importlib
import json
import pkgutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from strop.errors import ModelError
from strop.foreign import read_json
from strop.model.families.family import Family
from strop.model.families.settings import Config, Settings
from strop.model.prequantized import check_quantization
from strop.model.spec import DecoderSpec

_ADD = "docs/add-a-family.md says how to add one"

# What other libraries make code of. auto_map stands in many honest configs and is not read.
_CODE_KEYS = ("_target_", "_component_", "_attn_implementation_internal", "_experts_implementation_internal")


@cache
def families() -> dict[str, Family]:
    """Every family, by its name."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        family = getattr(importlib.import_module(f"{__name__}.{module.name}"), "FAMILY", None)
        if isinstance(family, Family):
            found[family.name] = family
    return dict(sorted(found.items()))


def family_of(config: Config, place: Path | str = "config.json") -> Family:
    """The family of a config.

    Raises:
        ModelError: model_type is none that is known; with the nearest one, and how to add it.
    """
    family = find_family(config)
    if family is None:
        raise unknown_family(config, place)
    return family


def find_family(config: Config) -> Family | None:
    """The family of a config; None where there is no table for it."""
    kind = config.get("model_type")
    return _by_type().get(kind) if isinstance(kind, str) else None


def unknown_family(config: Mapping[str, Any], place: Path | str) -> ModelError:
    """Says that there is no table for a config's model_type, with the nearest one, and how to add it."""
    by_type, kind = _by_type(), config.get("model_type")
    near = difflib.get_close_matches(str(kind).lower(), by_type, 1, 0.5)
    near = near or [known for known in sorted(by_type, key=len, reverse=True) if str(kind).startswith(known)][:1]
    nearest = f"; the nearest family by name is {by_type[near[0]].name}" if near else ""
    return ModelError(
        f"{place}: there is no table for the family {kind!r}",
        expected=f"model_type: one of {', '.join(sorted(by_type))}",
        found=f"model_type: {json.dumps(kind)}{nearest}",
        do=f"use a model that `strop models` lists; {_ADD}",
    )


def _by_type() -> dict[str, Family]:
    return {kind: family for family in families().values() for kind in family.model_types}


def refuse_code(config: Mapping[str, Any], place: Path) -> None:
    """Refuses a config that names code which other libraries would run.

    Raises:
        ModelError: it does.
    """
    code = next((key for key in _CODE_KEYS if key in config), None)
    if code is not None:
        raise ModelError(
            f"{place}: {code} names code to be run",
            expected="numbers and names",
            found=f"{code}: {json.dumps(config[code])[:200]}",
            do="do not use this model: no config of an honest one has this key (CVE-2026-4372, CVE-2025-23304)",
        )


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
    """Turns a config into a spec; ``place`` is named in errors.

    Raises:
        ModelError: a family or a setting that is not supported, a key that is missing or broken.
    """
    refuse_code(config, place)
    family = family_of(config, place)
    settings = Settings(config, place)
    check_quantization(settings.get("quantization_config"), place)
    try:
        spec = family.spec(settings)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        problem = f"missing key {error}" if isinstance(error, KeyError) else str(error)
        raise ModelError(f"{place} is incomplete or broken", found=problem, do="fetch the model again") from None
    settings.finish()
    return spec
