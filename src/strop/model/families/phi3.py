"""Phi 3, 3.5 and 4: Llama with two fused matrices, LongRoPE, and in some a window or a rope on part of each head."""

from __future__ import annotations

from strop.model.families.family import Family
from strop.model.families.llama import llama_like, windows
from strop.model.families.rope import read_rope
from strop.model.families.settings import Settings
from strop.model.spec import DecoderSpec, Module


def spec(settings: Settings) -> DecoderSpec:
    """Phi 3's settings."""
    settings.only("attention_bias", False)
    settings.only("mlp_bias", False)
    head_size = settings.size("hidden_size") // settings.size("num_attention_heads")
    context = settings.size("max_position_embeddings", 4096)
    layers = settings.size("num_hidden_layers")
    scaling = settings.get("rope_scaling")
    if isinstance(scaling, dict) and scaling.get("type") == "yarn":
        # The first configs call LongRoPE so; transformers reads them that way in this family.
        settings.config["rope_scaling"] = {**scaling, "type": "longrope"}
    return llama_like(
        settings,
        "phi3",
        norm_eps=settings.number("rms_norm_eps", 1e-5),
        windows=windows(settings, layers, [True] * layers),
        rope=read_rope(settings, head_size, context),
        modules=(
            Module("self_attn.qkv_proj", ("q_proj", "k_proj", "v_proj")),
            Module("self_attn.o_proj", ("o_proj",)),
            Module("mlp.gate_up_proj", ("gate_proj", "up_proj")),
            Module("mlp.down_proj", ("down_proj",)),
        ),
    )


FAMILY = Family(
    name="phi3",
    covers="Phi 3 and 3.5 (mini, medium), Phi 4, Phi 4 mini",
    model_types=("phi3",),
    spec=spec,
)
