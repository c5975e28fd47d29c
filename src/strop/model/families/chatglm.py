"""ChatGLM 2 and 3, and GLM-4 as its own repository has it: two fused matrices, and a rope on half of each head.

The rope turns neighbouring numbers of the first half of a head (GPT-J's way); transformers' `glm` and `glm4`
(`strop.model.families.glm`) are the same model under other names.
"""

from __future__ import annotations

from strop.model.families.family import Family
from strop.model.families.settings import Settings
from strop.model.spec import DecoderSpec, Module, RopeSpec

_LAYERS = "transformer.encoder.layers"


def spec(settings: Settings) -> DecoderSpec:
    """ChatGLM's settings."""
    heads, head_size = settings.size("num_attention_heads"), settings.size("kv_channels", 128)
    bias = settings.flag("add_bias_linear")
    groups = settings.size("multi_query_group_num", 1)
    for key in ("rmsnorm", "original_rope", "post_layer_norm"):
        settings.only(key, True)
    for key in ("apply_residual_connection_post_layernorm", "prefix_projection", "interleaved_qkv"):
        settings.only(key, False)
    settings.only("quantization_bit", 0)
    settings.only("pre_seq_len", None)
    # Scaling by the layer's number is undone before the softmax: it only kept float16 in range.
    settings.ignore("apply_query_key_layer_scaling", "attention_softmax_in_fp32", "fp32_residual_connection")
    settings.ignore("bias_dropout_fusion", "vocab_size")
    return DecoderSpec(
        family="chatglm",
        vocabulary=settings.size("padded_vocab_size"),
        hidden=settings.size("hidden_size"),
        intermediate=settings.size("ffn_hidden_size"),
        layers=settings.size("num_layers"),
        heads=heads,
        kv_heads=groups if settings.flag("multi_query_attention") else heads,
        head_size=head_size,
        norm_eps=settings.number("layernorm_epsilon", 1e-5),
        rope=RopeSpec(10000.0 * _ratio(settings), rotary_size=head_size // 2, interleaved=True),
        attention_input_bias=bias or settings.flag("add_qkv_bias"),
        attention_output_bias=bias,
        mlp_bias=bias,
        tied_head=settings.flag("tie_word_embeddings"),
        context=settings.size("seq_length", 2048),
        layers_path=_LAYERS,
        modules=(
            Module("self_attention.query_key_value", ("q_proj", "k_proj", "v_proj")),
            Module("self_attention.dense", ("o_proj",)),
            Module("mlp.dense_h_to_4h", ("gate_proj", "up_proj")),
            Module("mlp.dense_4h_to_h", ("down_proj",)),
        ),
    )


def _ratio(settings: Settings) -> float:
    """How far the rope's base is stretched. ChatGLM2-32k divides positions instead, and its config cannot tell."""
    ratio = settings.number("rope_ratio", 1.0)
    if ratio != 1.0 and "chatglm2" in str(settings.get("_name_or_path", "")).lower():
        raise settings.refusal("rope_ratio", ratio, "1, for ChatGLM2")
    return ratio


FAMILY = Family(
    name="chatglm",
    covers="ChatGLM 2 and 3, GLM-4 9B (its own repository's format)",
    model_types=("chatglm",),
    spec=spec,
    reference="formulas",
    layers=_LAYERS,
    names={
        "model.embed_tokens": "transformer.embedding.word_embeddings",
        "model.norm": "transformer.encoder.final_layernorm",
        "lm_head": "transformer.output_layer",
    },
)
