"""Gemma 3: Gemma 2 without caps, with norms on q and k, and a rope of its own on the layers with a window.

The models that also see (4B and larger) hold the same decoder under ``text_config`` and the prefix
``language_model.``; Strop reads it alone, and tunes on text.
"""

from __future__ import annotations

from strop.model.families.family import Family
from strop.model.families.gemma import change
from strop.model.families.gemma2 import NORMS, capped
from strop.model.families.llama import windows
from strop.model.families.rope import rope_of
from strop.model.families.settings import Config, Settings
from strop.model.spec import DecoderSpec, RopeSpec


def spec(settings: Settings) -> DecoderSpec:
    """Gemma 3's settings; every sixth layer sees everything."""
    if "text_config" not in settings:
        return _text(settings)
    settings.ignore("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index")
    settings.ignore("boi_token_id", "eoi_token_id", "image_token_id", "tie_word_embeddings")
    text = settings.part("text_config")
    found = _text(text, "model.language_model.layers")
    text.finish()
    return found


def _text(settings: Settings, layers_path: str = "model.layers") -> DecoderSpec:
    layers = settings.size("num_hidden_layers", 26)
    every = settings.size("sliding_window_pattern", 6)
    # The configs of the models that see leave out what transformers has as defaults.
    settings.fill(num_attention_heads=8, num_key_value_heads=4, vocab_size=262208, num_hidden_layers=layers)
    rope, local = _ropes(settings)
    return capped(
        settings,
        "gemma3",
        qk_norm="head",
        attention_softcap=settings.get("attn_logit_softcapping"),
        head_softcap=settings.get("final_logit_softcapping"),
        windows=windows(settings, layers, [bool((layer + 1) % every) for layer in range(layers)], 4096),
        context=settings.size("max_position_embeddings", 131072),
        rope=rope,
        rope_local=local,
        layers_path=layers_path,
    )


def _ropes(settings: Settings) -> tuple[RopeSpec, RopeSpec]:
    """The rope of the layers that see everything, and that of the layers with a window."""
    size, context = settings.size("head_dim", 256), settings.size("max_position_embeddings", 131072)
    theta, local = settings.number("rope_theta", 1_000_000.0), settings.number("rope_local_base_freq", 10_000.0)
    both = settings.get("rope_parameters", {})
    full = {**(settings.get("rope_scaling") or {}), **(both.get("full_attention") or {})}
    return (
        rope_of(Settings(full, settings.place), size, context, theta),
        rope_of(Settings(both.get("sliding_attention") or {}, settings.place), size, context, local),
    )


def prefix(config: Config) -> str:
    """The models that see keep the decoder under a name."""
    return "language_model." if "text_config" in config else ""


FAMILY = Family(
    name="gemma3",
    covers="Gemma 3 (270M, 1B; the text part of 4B, 12B and 27B)",
    model_types=("gemma3_text", "gemma3"),
    spec=spec,
    layer_names=NORMS,
    prefix=prefix,
    change=change,
)
