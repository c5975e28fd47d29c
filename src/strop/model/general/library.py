"""transformers, where it is needed: whether it is here and knows a model, and its own config and model of it.

A model's repository gives numbers and names alone: `auto_map` is taken out before transformers sees a config, and with
it what would choose implementations by name, which transformers may fetch.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from strop.errors import ModelError
from strop.model.families import refuse_code, unknown_family

INSTALL = "pip install 'strop[general]'"

# Keys that say how, not what, or where code is: implementations by name can be repositories of kernels.
_NOT_THEIRS = ("auto_map", "custom_pipelines", "quantization_config", "_name_or_path", "use_cache", "kernel_config")
_IMPLEMENTATION = "_implementation"
_FLOATS = ("Infinity", "-Infinity", "NaN")
# Bounds of whole numbers by their key: beyond them transformers would make modules or tables without end.
_LARGEST = {re.compile(r"(^|_)n(um)?(_\w+)?_experts"): 4096, re.compile("position"): 1 << 24, re.compile(""): 1 << 31}


def require_known(config: Mapping[str, Any], place: Path) -> str:
    """The model_type of a config that has no table here, if transformers has its own code for it.

    Raises:
        ModelError: transformers is not installed, does not know the model, or would need code from its repository.
    """
    refuse_code(config, place)
    kind = config.get("model_type")
    unknown = unknown_family(config, place)
    if not isinstance(kind, str):
        raise unknown
    _refuse_hub_kernels()
    try:
        from transformers import CONFIG_MAPPING
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    except ImportError:
        raise ModelError(
            unknown.what,
            expected=f"{unknown.expected}; or transformers, whose own models Strop can tune as well",
            found=f"{unknown.found}; transformers is not installed",
            do=f"{INSTALL} and try again (slower than Strop's own families), or {unknown.do}",
        ) from None
    if kind in CONFIG_MAPPING and kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return kind
    if "auto_map" in config:
        raise ModelError(
            unknown.what,
            expected=unknown.expected,
            found=f"{unknown.found}; it needs Python code from its repository (auto_map), which Strop never runs",
            do=f"look for a version of this model that transformers has itself, or {unknown.do}",
        )
    known = "as a model that writes text" if kind in CONFIG_MAPPING else "at all"
    raise ModelError(
        unknown.what,
        expected=unknown.expected,
        found=f"{unknown.found}; this version of transformers does not know it {known}",
        do=f"a newer transformers may: pip install -U transformers; or {unknown.do}",
    )


def read_their_config(config: Mapping[str, Any], kind: str, place: Path) -> Any:
    """transformers' config object of a config.json.

    Raises:
        ModelError: transformers refuses it.
    """
    with quiet():
        from transformers import CONFIG_MAPPING

        try:
            return CONFIG_MAPPING[kind].from_dict(_numbers_and_names(config, place))
        except ModelError:
            raise
        except Exception as error:  # noqa: BLE001 # theirs raise anything
            raise broken(place, error) from None


def broken(place: Path, error: Exception) -> ModelError:
    """What transformers said of a config."""
    return ModelError(
        f"{place}: transformers cannot make this model",
        expected="a config.json that transformers reads",
        found=f"{type(error).__name__}: {' '.join(str(error).split())[:500]}",
        do="fetch the model again, or try another version of transformers",
    )


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without its messages."""
    _refuse_hub_kernels()
    from transformers.utils import logging as theirs

    before = theirs.get_verbosity()
    theirs.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        theirs.set_verbosity(before)


def _refuse_hub_kernels() -> None:
    """Read by transformers when it is imported: compiled code from a hub is code from a hub."""
    os.environ["USE_HUB_KERNELS"] = "NO"


def _numbers_and_names(config: Mapping[str, Any], place: Path) -> dict[str, Any]:
    """A config without what names code or implementations; nested ones alike."""
    clean = {}
    for key, value in config.items():
        if key in _NOT_THEIRS or _IMPLEMENTATION in key:
            continue
        most = next(bound for pattern, bound in _LARGEST.items() if pattern.search(key))
        if isinstance(value, int) and abs(value) > most:
            raise ModelError(
                f"{place}: {key} is out of all bounds",
                expected=f"at most {most:,}",
                found=f"{value:,}",
                do="fetch the model again",
            )
        clean[key] = _value(value, place)
    return clean


def _value(value: Any, place: Path) -> Any:
    """A value of a config; ``{"__float__": "Infinity"}`` is how transformers writes what JSON has no word for."""
    if isinstance(value, list):
        return [_value(item, place) for item in value]
    if not isinstance(value, dict):
        return value
    special = value.get("__float__")
    return float(special) if isinstance(special, str) and special in _FLOATS else _numbers_and_names(value, place)
