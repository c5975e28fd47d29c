"""InternLM 1: Llama's names and shapes, with one switch for the biases of q, k, v and o."""

from __future__ import annotations

from strop.model.families.family import Family
from strop.model.families.llama import llama_like
from strop.model.families.settings import Settings
from strop.model.spec import DecoderSpec


def spec(settings: Settings) -> DecoderSpec:
    """InternLM's settings: ``bias``, and ``rotary`` for the rope."""
    bias = settings.flag("bias", default=True)
    return llama_like(settings, "internlm", attention_input_bias=bias, attention_output_bias=bias)


FAMILY = Family(
    name="internlm",
    covers="InternLM 1 (7B, 20B)",
    model_types=("internlm",),
    spec=spec,
    reference="formulas",
    template="internlm",
)
