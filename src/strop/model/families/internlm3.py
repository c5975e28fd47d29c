"""InternLM 3: Llama, with switches for the biases of its own."""

from __future__ import annotations

from strop.model.families.family import Family
from strop.model.families.llama import llama_like
from strop.model.families.settings import Settings
from strop.model.spec import DecoderSpec


def spec(settings: Settings) -> DecoderSpec:
    """InternLM 3's settings; ``bias`` is that of o and the MLP, transformers calls the two attention and MLP bias."""
    inputs = settings.flag("qkv_bias", default=settings.flag("attention_bias"))
    others = settings.flag("bias", default=settings.flag("mlp_bias"))
    return llama_like(settings, "internlm3", attention_input_bias=inputs, attention_output_bias=others, mlp_bias=others)


FAMILY = Family(
    name="internlm3",
    covers="InternLM 3",
    model_types=("internlm3",),
    spec=spec,
)
