"""Gemma 2: Gemma with four norms a layer, windows on every other layer, and capped scores and logits."""

from __future__ import annotations

from typing import Any

from strop.model.families.family import Family
from strop.model.families.gemma import change, gemma_like
from strop.model.families.llama import windows
from strop.model.families.settings import Settings
from strop.model.spec import DecoderSpec

NORMS = {
    "attention_output_norm": "post_attention_layernorm",
    "post_attention_layernorm": "pre_feedforward_layernorm",
    "mlp_output_norm": "post_feedforward_layernorm",
}
"""The norms of a layer: in our tree, the one before the MLP has Llama's name."""


def spec(settings: Settings) -> DecoderSpec:
    """Gemma 2's settings; every second layer sees everything."""
    layers = settings.size("num_hidden_layers")
    return capped(
        settings,
        "gemma2",
        attention_softcap=settings.number("attn_logit_softcapping", 50.0),
        head_softcap=settings.number("final_logit_softcapping", 30.0),
        windows=windows(settings, layers, [layer % 2 == 0 for layer in range(layers)]),
    )


def capped(settings: Settings, family: str, **changes: Any) -> DecoderSpec:
    """What Gemma 2 and 3 have in common."""
    return gemma_like(
        settings,
        family,
        norm_placement="both",
        attention_scale=settings.number("query_pre_attn_scalar", 256) ** -0.5,
        **changes,
    )


FAMILY = Family(
    name="gemma2",
    covers="Gemma 2",
    model_types=("gemma2",),
    spec=spec,
    layer_names=NORMS,
    change=change,
)
