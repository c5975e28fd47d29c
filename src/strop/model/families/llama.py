"""Llama 1 to 3.x, and the many that took its shape: what most families begin from."""

from __future__ import annotations

from typing import Any

from strop.model.families.family import Family
from strop.model.families.rope import read_rope
from strop.model.families.settings import Settings
from strop.model.spec import DecoderSpec

_GELU_TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", **dict.fromkeys(_GELU_TANH, "gelu_tanh")}
"""Names of activations in transformers → ours. "gelu_fast" is the same tanh approximation, written otherwise."""


def spec(settings: Settings) -> DecoderSpec:
    """Llama's settings."""
    attention, mlp = settings.flag("attention_bias"), settings.flag("mlp_bias")
    return llama_like(settings, "llama", attention_input_bias=attention, attention_output_bias=attention, mlp_bias=mlp)


def llama_like(settings: Settings, family: str, **changes: Any) -> DecoderSpec:
    """The spec that the keys common to most families give.

    Args:
        settings: the config.
        family: the family's name.
        changes: fields of the spec, instead of what is read here.
    """
    heads = settings.size("num_attention_heads")
    hidden = settings.size("hidden_size")
    kv_heads = settings.size("num_key_value_heads", heads)
    if heads % kv_heads:
        raise ValueError(f"num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}")
    head_size = settings.size("head_dim", hidden // heads)
    context = settings.size("max_position_embeddings", 2048)
    fields: dict[str, Any] = {
        "family": family,
        "vocabulary": settings.size("vocab_size"),
        "hidden": hidden,
        "intermediate": settings.size("intermediate_size"),
        "layers": settings.size("num_hidden_layers"),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_size": head_size,
        "norm_eps": settings.number("rms_norm_eps", 1e-6),
        "tied_head": settings.flag("tie_word_embeddings"),
        "context": context,
        **changes,
    }
    if "activation" not in changes:
        settings.only("hidden_act", "silu", "swish")
    if "rope" not in changes:
        fields["rope"] = read_rope(settings, head_size, context)
    return DecoderSpec(**fields)


def windows(settings: Settings, layers: int, sliding: list[bool], size: int | None = None) -> tuple[int, ...] | None:
    """The window of each layer, 0 for none: as layer_types says, or else ``sliding``.

    Args:
        settings: the config, with sliding_window.
        layers: number of layers.
        sliding: which layers slide where layer_types is absent.
        size: the family's window where the config names none; None for no window then.
    """
    size = settings.get("sliding_window", size)
    kinds = settings.get("layer_types")
    if kinds is not None:
        unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
        if unknown or len(kinds) != layers:
            raise settings.refusal("layer_types", kinds, f"{layers} times full_attention or sliding_attention")
        sliding = [kind == "sliding_attention" for kind in kinds]
    if size is None or not any(sliding):
        return None
    window = settings.size("sliding_window", size)
    return tuple(window if slides else 0 for slides in sliding)


FAMILY = Family(
    name="llama",
    covers="Llama 1 to 3.x, Yi, DeepSeek (dense) and its Llama distillations, TinyLlama, SmolLM 1 and 2, Vicuna",
    model_types=("llama",),
    spec=spec,
)
