"""Qwen 1.5, 2 and 2.5 (dense): Llama with biases on q, k and v, and windows on the upper layers where switched on."""

from __future__ import annotations

from strop.model.families.family import Family
from strop.model.families.llama import llama_like, windows
from strop.model.families.settings import Settings
from strop.model.spec import DecoderSpec


def spec(settings: Settings) -> DecoderSpec:
    """Qwen 2's settings."""
    return llama_like(settings, "qwen2", attention_input_bias=True, windows=qwen_windows(settings))


def qwen_windows(settings: Settings) -> tuple[int, ...] | None:
    """Windows from layer ``max_window_layers`` upwards, if ``use_sliding_window``."""
    layers = settings.size("num_hidden_layers")
    first = settings.get("max_window_layers", 28)
    used = settings.flag("use_sliding_window")
    found = windows(settings, layers, [layer >= first for layer in range(layers)])
    return found if used else None


FAMILY = Family(
    name="qwen2",
    covers="Qwen 1.5, 2 and 2.5 (dense), QwQ, DeepSeek-R1's Qwen distillations",
    model_types=("qwen2",),
    spec=spec,
)
