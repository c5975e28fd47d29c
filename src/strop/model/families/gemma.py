"""Gemma 1: Llama with norms that multiply by 1 + w, GELU, and an embedding scaled by the root of its width."""

from __future__ import annotations

from typing import Any

from strop.model.families.family import Family
from strop.model.families.llama import llama_like
from strop.model.families.settings import Settings
from strop.model.spec import DecoderSpec


def spec(settings: Settings) -> DecoderSpec:
    """Gemma's settings."""
    settings.get("hidden_activation")
    # The first configs say "gelu" and mean the tanh approximation, as transformers reads them.
    settings.only("hidden_act", "gelu_pytorch_tanh", "gelu")
    return gemma_like(settings, "gemma")


def gemma_like(settings: Settings, family: str, **changes: Any) -> DecoderSpec:
    """What all Gemmas have in common."""
    bias = settings.flag("attention_bias")
    settings.only("hidden_activation", "gelu_pytorch_tanh", "gelu", "gelu_new")
    settings.only("use_bidirectional_attention", False)
    return llama_like(
        settings,
        family,
        **{
            "head_size": settings.size("head_dim", 256),
            "activation": "gelu_tanh",
            "embedding_scale": settings.size("hidden_size") ** 0.5,
            "attention_input_bias": bias,
            "attention_output_bias": bias,
            "tied_head": settings.flag("tie_word_embeddings", default=True),
            **changes,
        },
    )


def change(module: str, _spec: DecoderSpec) -> str:
    """Norms multiply by 1 + w."""
    return "plus one" if module.endswith("norm") else ""


FAMILY = Family(
    name="gemma",
    covers="Gemma 1, CodeGemma",
    model_types=("gemma",),
    spec=spec,
    change=change,
)
