"""SmolLM 3: Llama without rotation on every fourth layer."""

from __future__ import annotations

from strop.model.families.family import Family
from strop.model.families.llama import llama_like, windows
from strop.model.families.rope import read_rope
from strop.model.families.settings import Settings
from strop.model.spec import DecoderSpec


def spec(settings: Settings) -> DecoderSpec:
    """SmolLM 3's settings; in ``no_rope_layers`` a 1 stands for a layer that rotates."""
    layers, every = settings.size("num_hidden_layers"), settings.size("no_rope_layer_interval", 4)
    rotates = settings.get("no_rope_layers") or [int((layer + 1) % every != 0) for layer in range(layers)]
    if len(rotates) != layers:
        raise ValueError(f"no_rope_layers has {len(rotates)} entries for {layers} layers")
    bias, used = settings.flag("attention_bias"), settings.flag("use_sliding_window")
    found = windows(settings, layers, [not one for one in rotates])
    heads, context = settings.size("num_attention_heads"), settings.size("max_position_embeddings", 32768)
    return llama_like(
        settings,
        "smollm3",
        attention_input_bias=bias,
        attention_output_bias=bias,
        mlp_bias=settings.flag("mlp_bias"),
        tied_head=settings.flag("tie_word_embeddings", default=True),
        context=context,
        rope=read_rope(
            settings, settings.size("head_dim", settings.size("hidden_size") // heads), context, theta=2_000_000.0
        ),
        rope_layers=tuple(bool(one) for one in rotates),
        windows=found if used else None,
    )


FAMILY = Family(
    name="smollm3",
    covers="SmolLM 3",
    model_types=("smollm3",),
    spec=spec,
)
