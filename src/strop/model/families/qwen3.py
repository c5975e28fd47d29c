"""Qwen 3 (dense): Llama with a norm on every head's query and key."""

from __future__ import annotations

from strop.model.families.family import Family
from strop.model.families.llama import llama_like
from strop.model.families.qwen2 import qwen_windows
from strop.model.families.settings import Settings
from strop.model.spec import DecoderSpec


def spec(settings: Settings) -> DecoderSpec:
    """Qwen 3's settings; heads are of size 128 unless it says otherwise."""
    bias = settings.flag("attention_bias")
    return llama_like(
        settings,
        "qwen3",
        head_size=settings.size("head_dim", 128),
        qk_norm="head",
        attention_input_bias=bias,
        attention_output_bias=bias,
        windows=qwen_windows(settings),
    )


FAMILY = Family(
    name="qwen3",
    covers="Qwen 3 (dense)",
    model_types=("qwen3",),
    spec=spec,
)
