"""GLM-4 as transformers has it: gate and up in one matrix, a rope on half of each head in neighbouring pairs."""

from __future__ import annotations

from typing import Any

from strop.model.families.family import Family
from strop.model.families.llama import llama_like
from strop.model.families.rope import read_rope
from strop.model.families.settings import Settings
from strop.model.spec import DecoderSpec, Module


def spec(settings: Settings) -> DecoderSpec:
    """GLM's settings."""
    return glm_like(settings, "glm")


def glm_like(settings: Settings, family: str, **changes: Any) -> DecoderSpec:
    """What both of transformers' GLM-4 families have in common."""
    head_size, context = settings.size("head_dim", 128), settings.size("max_position_embeddings", 131072)
    return llama_like(
        settings,
        family,
        norm_eps=settings.number("rms_norm_eps", 1.5625e-7),
        head_size=head_size,
        context=context,
        rope=read_rope(settings, head_size, context, partial=0.5, interleaved=True),
        attention_input_bias=settings.flag("attention_bias", default=True),
        modules=(
            *(Module(f"self_attn.{name}", (name,)) for name in ("q_proj", "k_proj", "v_proj", "o_proj")),
            Module("mlp.gate_up_proj", ("gate_proj", "up_proj")),
            Module("mlp.down_proj", ("down_proj",)),
        ),
        **changes,
    )


FAMILY = Family(
    name="glm",
    covers="GLM-4 9B, GLM-Edge (transformers' format)",
    model_types=("glm",),
    spec=spec,
)
