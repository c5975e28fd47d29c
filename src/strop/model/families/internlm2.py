"""InternLM 2 and 2.5: Llama under other names, with q, k and v in one matrix, group by group.

A group is the query heads that share a key head, then that key head, then its value head:

    wqkv   q q q q k v | q q q q k v | …      32 query heads and 8 key heads: 8 groups of 6 heads
"""

from __future__ import annotations

from strop.model.families.family import Family
from strop.model.families.llama import llama_like
from strop.model.families.settings import Settings
from strop.model.spec import DecoderSpec, Module


def spec(settings: Settings) -> DecoderSpec:
    """InternLM 2's settings."""
    bias = settings.flag("bias", default=True)
    return llama_like(
        settings,
        "internlm2",
        attention_input_bias=bias,
        attention_output_bias=bias,
        modules=(
            Module("attention.wqkv", ("q_proj", "k_proj", "v_proj"), by_group=True),
            Module("attention.wo", ("o_proj",)),
            Module("feed_forward.w1", ("gate_proj",)),
            Module("feed_forward.w3", ("up_proj",)),
            Module("feed_forward.w2", ("down_proj",)),
        ),
    )


FAMILY = Family(
    name="internlm2",
    covers="InternLM 2 and 2.5",
    model_types=("internlm2",),
    spec=spec,
    reference="formulas",
    names={"model.embed_tokens": "model.tok_embeddings", "lm_head": "output"},
    layer_names={"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"},
)
