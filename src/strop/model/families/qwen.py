"""Qwen 1: Llama under GPT-2's names, with q, k and v in one matrix and an intermediate size that counts both halves.

Its repository stretches the rope (``use_dynamic_ntk``) and scales queries (``use_logn_attn``) only beyond
``seq_length`` and only outside training. Strop's context ends there, so both are passed over.
"""

from __future__ import annotations

from strop.model.families.family import Family
from strop.model.families.settings import Settings
from strop.model.spec import DecoderSpec, Module, RopeSpec


def spec(settings: Settings) -> DecoderSpec:
    """Qwen 1's settings."""
    heads, hidden = settings.size("num_attention_heads"), settings.size("hidden_size")
    head_size = settings.size("kv_channels", 128)
    bias = not settings.flag("no_bias", default=True)
    settings.ignore("use_dynamic_ntk", "use_logn_attn", "max_position_embeddings", "use_flash_attn", "onnx_safe")
    settings.ignore("bf16", "fp16", "fp32", "use_cache_quantization", "use_cache_kernel", "softmax_in_fp32")
    settings.only("scale_attn_weights", True)
    settings.only("rotary_pct", 1.0)
    return DecoderSpec(
        family="qwen",
        vocabulary=settings.size("vocab_size"),
        hidden=hidden,
        intermediate=settings.size("intermediate_size") // 2,
        layers=settings.size("num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_size=head_size,
        norm_eps=settings.number("layer_norm_epsilon", 1e-6),
        rope=RopeSpec(settings.number("rotary_emb_base", 10000.0)),
        attention_input_bias=True,
        attention_output_bias=bias,
        mlp_bias=bias,
        tied_head=settings.flag("tie_word_embeddings"),
        context=settings.size("seq_length", 2048),
        layers_path="transformer.h",
        modules=(
            Module("attn.c_attn", ("q_proj", "k_proj", "v_proj")),
            Module("attn.c_proj", ("o_proj",)),
            # The repository computes w1(x) * silu(w2(x)): w2 is the gate.
            Module("mlp.w2", ("gate_proj",)),
            Module("mlp.w1", ("up_proj",)),
            Module("mlp.c_proj", ("down_proj",)),
        ),
    )


FAMILY = Family(
    name="qwen",
    covers="Qwen 1 (1.8B, 7B, 14B, 72B)",
    model_types=("qwen",),
    spec=spec,
    reference="formulas",
    layers="transformer.h",
    names={"model.embed_tokens": "transformer.wte", "model.norm": "transformer.ln_f"},
    layer_names={"input_layernorm": "ln_1", "post_attention_layernorm": "ln_2"},
)
