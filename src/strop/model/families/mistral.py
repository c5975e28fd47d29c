"""Mistral: Llama, with a sliding window on every layer in its first version."""

from __future__ import annotations

from strop.model.families.family import Family
from strop.model.families.llama import llama_like, windows
from strop.model.families.settings import Settings
from strop.model.spec import DecoderSpec


def spec(settings: Settings) -> DecoderSpec:
    """Mistral's settings."""
    layers = settings.size("num_hidden_layers")
    return llama_like(settings, "mistral", windows=windows(settings, layers, [True] * layers))


FAMILY = Family(
    name="mistral",
    covers="Mistral 7B (0.1 to 0.3), Nemo, Small, Zephyr",
    model_types=("mistral",),
    spec=spec,
)
