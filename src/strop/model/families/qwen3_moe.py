"""Qwen 3 with experts: Qwen 3 with many small experts in the place of the MLP, on all layers or some."""

from __future__ import annotations

from strop.model.families.family import Family
from strop.model.families.llama import llama_like, windows
from strop.model.families.settings import Settings
from strop.model.spec import DecoderSpec, ExpertsSpec


def spec(settings: Settings) -> DecoderSpec:
    """Qwen 3's settings with experts; without ``use_sliding_window`` nothing slides."""
    settings.ignore("router_aux_loss_coef", "output_router_logits", "max_window_layers")
    layers, step = settings.size("num_hidden_layers"), settings.size("decoder_sparse_step", 1)
    plain = set(settings.get("mlp_only_layers", []))
    has = tuple(layer not in plain and (layer + 1) % step == 0 for layer in range(layers))
    experts = ExpertsSpec(
        count=settings.size("num_experts", settings.size("num_local_experts", 128)),
        active=settings.size("num_experts_per_tok", 8),
        intermediate=settings.size("moe_intermediate_size", 768),
        normalise_weights=settings.flag("norm_topk_prob"),
        layers=None if all(has) else has,
    )
    bias, used = settings.flag("attention_bias"), settings.flag("use_sliding_window")
    found = windows(settings, layers, [True] * layers)
    return llama_like(
        settings,
        "qwen3_moe",
        qk_norm="head",
        attention_input_bias=bias,
        attention_output_bias=bias,
        windows=found if used else None,
        experts=experts,
    )


FAMILY = Family(
    name="qwen3_moe",
    covers="Qwen 3 with experts (30B-A3B, 235B-A22B)",
    model_types=("qwen3_moe",),
    spec=spec,
)
