"""Granite 3 (dense): Llama with four factors: of the embedding, attention, the residual stream and the logits."""

from __future__ import annotations

from strop.model.families.family import Family
from strop.model.families.llama import llama_like
from strop.model.families.settings import Settings
from strop.model.spec import DecoderSpec


def spec(settings: Settings) -> DecoderSpec:
    """Granite's settings."""
    bias = settings.flag("attention_bias")
    return llama_like(
        settings,
        "granite",
        attention_input_bias=bias,
        attention_output_bias=bias,
        mlp_bias=settings.flag("mlp_bias"),
        attention_scale=settings.number("attention_multiplier", 1.0),
        embedding_scale=settings.number("embedding_multiplier", 1.0),
        residual_scale=settings.number("residual_multiplier", 1.0),
        logit_scale=1.0 / settings.number("logits_scaling", 1.0),
    )


FAMILY = Family(
    name="granite",
    covers="Granite 3 (dense)",
    model_types=("granite",),
    spec=spec,
)
