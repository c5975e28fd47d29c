"""OLMo 2: Llama with the norms behind attention and MLP instead of before them, and norms over all of q and k."""

from __future__ import annotations

from strop.model.families.family import Family
from strop.model.families.llama import llama_like
from strop.model.families.settings import Settings
from strop.model.spec import DecoderSpec


def spec(settings: Settings) -> DecoderSpec:
    """OLMo 2's settings."""
    bias = settings.flag("attention_bias")
    return llama_like(
        settings,
        "olmo2",
        norm_eps=settings.number("rms_norm_eps", 1e-5),
        norm_placement="post",
        qk_norm="full",
        attention_input_bias=bias,
        attention_output_bias=bias,
    )


FAMILY = Family(
    name="olmo2",
    covers="OLMo 2 (1B to 32B)",
    model_types=("olmo2",),
    spec=spec,
    layer_names={"attention_output_norm": "post_attention_layernorm", "mlp_output_norm": "post_feedforward_layernorm"},
)
