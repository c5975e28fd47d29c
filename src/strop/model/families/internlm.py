"""InternLM 1: Llama's names and shapes, with one switch for the biases of q, k, v and o."""

from __future__ import annotations

from strop.model.families.family import Family
from strop.model.families.llama import llama_like
from strop.model.families.settings import Settings
from strop.model.spec import DecoderSpec, RopeSpec


def spec(settings: Settings) -> DecoderSpec:
    """InternLM's settings: ``bias``, and ``rotary`` for the rope."""
    bias = settings.flag("bias", default=True)
    context = settings.size("max_position_embeddings", 2048)
    return llama_like(
        settings, "internlm", attention_input_bias=bias, attention_output_bias=bias, rope=_rope(settings, context)
    )


def _rope(settings: Settings, context: int) -> RopeSpec:
    """``{"base": 10000, "type": "dynamic"}``; the first configs have none and mean the plain one."""
    rotary = settings.part("rotary")
    kind = rotary.only("type", "origin", "dynamic")
    theta, factor = rotary.number("base", 10000.0), rotary.number("scaling_factor", 1.0)
    rotary.finish()
    return RopeSpec(theta, "dynamic", factor, original_context=context) if kind == "dynamic" else RopeSpec(theta)


FAMILY = Family(
    name="internlm",
    covers="InternLM 1 (7B, 20B)",
    model_types=("internlm",),
    spec=spec,
    reference="formulas",
)
