"""StarCoder 2: layer norms, a plain MLP with GELU, biases on everything, a window."""

from __future__ import annotations

from strop.model.families.family import Family, llama_modules
from strop.model.families.llama import ACTIVATIONS, llama_like, windows
from strop.model.families.settings import Settings
from strop.model.spec import DecoderSpec


def spec(settings: Settings) -> DecoderSpec:
    """StarCoder 2's settings."""
    bias, layers = settings.flag("use_bias", default=True), settings.size("num_hidden_layers")
    settings.only("mlp_type", "default")
    settings.only("norm_type", "layer_norm")
    return llama_like(
        settings,
        "starcoder2",
        norm_eps=settings.number("norm_epsilon", 1e-5),
        norm="layer",
        attention_input_bias=bias,
        attention_output_bias=bias,
        mlp_bias=bias,
        gated_mlp=False,
        activation=settings.choice("hidden_act", ACTIVATIONS, "gelu_pytorch_tanh"),
        windows=windows(settings, layers, [True] * layers),
        tied_head=settings.flag("tie_word_embeddings", default=True),
        modules=llama_modules(gate_proj="", up_proj="mlp.c_fc", down_proj="mlp.c_proj"),
    )


FAMILY = Family(
    name="starcoder2",
    covers="StarCoder 2 (3B, 7B, 15B)",
    model_types=("starcoder2",),
    spec=spec,
)
