"""Phi 1, 1.5 and 2: attention and a plain MLP side by side behind one layer norm, a rope on part of each head."""

from __future__ import annotations

from strop.model.families.family import Family
from strop.model.families.llama import ACTIVATIONS, llama_like
from strop.model.families.rope import read_rope
from strop.model.families.settings import Settings
from strop.model.spec import DecoderSpec, Module


def spec(settings: Settings) -> DecoderSpec:
    """Phi 2's settings; everything has a bias."""
    settings.only("qk_layernorm", False)
    head_size = settings.size("hidden_size") // settings.size("num_attention_heads")
    context = settings.size("max_position_embeddings", 2048)
    return llama_like(
        settings,
        "phi",
        norm_eps=settings.number("layer_norm_eps", 1e-5),
        norm="layer",
        norm_placement="parallel",
        attention_input_bias=True,
        attention_output_bias=True,
        mlp_bias=True,
        head_bias=True,
        gated_mlp=False,
        activation=settings.choice("hidden_act", ACTIVATIONS, "gelu_new"),
        rope=read_rope(settings, head_size, context, partial=0.5),
        modules=(
            *(Module(f"self_attn.{name}", (name,)) for name in ("q_proj", "k_proj", "v_proj")),
            Module("self_attn.dense", ("o_proj",)),
            Module("mlp.fc1", ("up_proj",)),
            Module("mlp.fc2", ("down_proj",)),
        ),
    )


FAMILY = Family(
    name="phi",
    covers="Phi 1, 1.5 and 2",
    model_types=("phi",),
    spec=spec,
    names={"model.norm": "model.final_layernorm"},
)
