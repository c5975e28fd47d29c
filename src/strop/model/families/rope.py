"""Rotary embeddings as configs write them, the older way and the newer one.

    {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0}}                 older
    {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}}         newer

What a scaling does is computed in `strop.model.rotary`; its parameters are read here as
``transformers.modeling_rope_utils`` reads them, which the tests hold.
"""

from __future__ import annotations

import math

from strop.model.families.settings import Config, Settings
from strop.model.spec import RopeSpec


def read_rope(
    settings: Settings,
    head_size: int,
    context: int,
    *,
    theta: float = 10000.0,
    partial: float = 1.0,
    interleaved: bool = False,
) -> RopeSpec:
    """The rope of a config.

    Args:
        settings: the config.
        head_size: size of a head.
        context: max_position_embeddings.
        theta: the family's base where the config names none.
        partial: the family's rotated share of a head where the config names none.
        interleaved: whether neighbouring numbers are turned together.

    Raises:
        ModelError: a scaling, or a parameter of one, that is not known.
        KeyError, ValueError: a parameter is missing or broken.
    """
    parameters = settings.get("rope_parameters") or {}
    scaling = settings.get("rope_scaling") or {}
    theta = settings.number("rope_theta", theta)
    partial = settings.number("partial_rotary_factor", partial)
    original = settings.get("original_max_position_embeddings")
    given = Settings({"original_max_position_embeddings": original, **(parameters or scaling)}, settings.place)
    return rope_of(given, head_size, context, theta, partial, interleaved=interleaved)


def rope_of(
    given: Settings, head_size: int, context: int, theta: float, partial: float = 1.0, *, interleaved: bool = False
) -> RopeSpec:
    """The rope of one object of parameters; the other arguments hold where it says nothing."""
    kind = str(given.get("rope_type", given.get("type", "default")))
    given.ignore("type", "rope_type")
    reader = _KINDS.get(kind)
    if reader is None:
        raise given.refusal("rope_type", kind, " or ".join(_KINDS))
    theta = given.number("rope_theta", theta)
    rotated = int(head_size * given.number("partial_rotary_factor", partial))
    if rotated % 2 or not 0 < rotated <= head_size:
        raise ValueError(f"{rotated} of {head_size} numbers of a head would be rotated")
    more = reader(given, context)
    if kind not in ("llama3", "yarn", "longrope", "su"):
        given.ignore("original_max_position_embeddings")
    given.finish()
    for name in ("short_factors", "long_factors"):
        if name in more and len(more[name]) != rotated // 2:
            raise ValueError(f"{name[:-1]} of the rope has {len(more[name])} numbers, not {rotated // 2}")
    return RopeSpec(theta=theta, rotary_size=None if rotated == head_size else rotated, interleaved=interleaved, **more)


def _plain(_given: Settings, _context: int) -> Config:
    return {}


def _linear(given: Settings, _context: int) -> Config:
    return {"kind": "linear", "factor": given.number("factor")}


def _dynamic(given: Settings, context: int) -> Config:
    return {"kind": "dynamic", "factor": given.number("factor", 1.0), "original_context": context}


def _llama3(given: Settings, context: int) -> Config:
    return {
        "kind": "llama3",
        "factor": given.number("factor"),
        "low_freq_factor": given.number("low_freq_factor"),
        "high_freq_factor": given.number("high_freq_factor"),
        "original_context": given.size("original_max_position_embeddings", context),
    }


def _yarn(given: Settings, context: int) -> Config:
    """Peng et al. 2023, "YaRN", with DeepSeek's mscale where both of its parameters are given."""
    original = given.size("original_max_position_embeddings", context)
    factor = given.number("factor", context / original)
    given.only("truncate", True)
    mscale, over = given.number("mscale", 0.0), given.number("mscale_all_dim", 0.0)
    attention = _mscale(factor, mscale) / _mscale(factor, over) if mscale and over else _mscale(factor, 1.0)
    return {
        "kind": "yarn",
        "factor": factor,
        "original_context": original,
        "attention_factor": given.number("attention_factor", attention),
        "beta_fast": given.number("beta_fast", 32.0),
        "beta_slow": given.number("beta_slow", 1.0),
    }


def _mscale(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * scale * math.log(factor) + 1.0


def _longrope(given: Settings, context: int) -> Config:
    """Ding et al. 2024, "LongRoPE"."""
    original = given.size("original_max_position_embeddings", context)
    factor = given.number("factor", context / original)
    attention = 1.0 if factor <= 1.0 else math.sqrt(1.0 + math.log(factor) / math.log(original))
    return {
        "kind": "longrope",
        "factor": factor,
        "original_context": original,
        "attention_factor": given.number("attention_factor", attention),
        "short_factors": tuple(map(float, given.get("short_factor", ()))),
        "long_factors": tuple(map(float, given.get("long_factor", ()))),
    }


_KINDS = {
    "default": _plain,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,  # Phi-3's first name for it
}
