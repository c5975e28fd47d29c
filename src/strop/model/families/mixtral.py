"""Mixtral: Mistral with experts in the place of the MLP."""

from __future__ import annotations

from strop.model.families.family import Family
from strop.model.families.llama import llama_like, windows
from strop.model.families.rope import read_rope
from strop.model.families.settings import Settings
from strop.model.spec import DecoderSpec, ExpertsSpec


def spec(settings: Settings) -> DecoderSpec:
    """Mixtral's settings; the balance of the router is a loss of its own, which tuning an adapter leaves out."""
    settings.ignore("router_aux_loss_coef", "output_router_logits", "router_jitter_noise")
    layers, heads = settings.size("num_hidden_layers"), settings.size("num_attention_heads")
    head_size = settings.size("head_dim", settings.size("hidden_size") // heads)
    context = settings.size("max_position_embeddings", 131072)
    experts = ExpertsSpec(
        count=settings.size("num_local_experts", 8),
        active=settings.size("num_experts_per_tok", 2),
        intermediate=settings.size("intermediate_size"),
    )
    return llama_like(
        settings,
        "mixtral",
        norm_eps=settings.number("rms_norm_eps", 1e-5),
        context=context,
        rope=read_rope(settings, head_size, context, theta=1_000_000.0),
        windows=windows(settings, layers, [True] * layers),
        experts=experts,
    )


FAMILY = Family(
    name="mixtral",
    covers="Mixtral 8x7B, 8x22B",
    model_types=("mixtral",),
    spec=spec,
    layer_names={
        "mlp.gate": "block_sparse_moe.gate",
        "mlp.experts.{expert}.gate_proj": "block_sparse_moe.experts.{expert}.w1",
        "mlp.experts.{expert}.up_proj": "block_sparse_moe.experts.{expert}.w3",
        "mlp.experts.{expert}.down_proj": "block_sparse_moe.experts.{expert}.w2",
    },
)
