"""Baichuan 1 and 2: Llama with q, k and v in one matrix; the 13B models have ALiBi instead of a rope.

The configs do not say which one it is. The 13B models have no max_position_embeddings, as nothing in them is made for
a length; Baichuan 2 is known by its vocabulary of 125,696, and its head divides each row by its length.
"""

from __future__ import annotations

from strop.model.families.family import Family
from strop.model.families.llama import llama_like
from strop.model.families.settings import Settings
from strop.model.spec import DecoderSpec, Module, RopeSpec

_BAICHUAN_2 = 125696
"""Tokens of Baichuan 2; Baichuan 1 has 64,000."""


_MODULES = (
    Module("self_attn.W_pack", ("q_proj", "k_proj", "v_proj")),
    Module("self_attn.o_proj", ("o_proj",)),
    *(Module(f"mlp.{name}", (name,)) for name in ("gate_proj", "up_proj", "down_proj")),
)


def spec(settings: Settings) -> DecoderSpec:
    """Baichuan's settings."""
    settings.ignore("z_loss_weight")
    if "max_position_embeddings" in settings:
        return llama_like(settings, "baichuan", modules=_MODULES)
    context = settings.size("model_max_length", 4096)
    return llama_like(settings, "baichuan", alibi=True, rope=RopeSpec(), context=context, modules=_MODULES)


def change(module: str, spec: DecoderSpec) -> str:
    """Baichuan 2's head has rows of length 1."""
    return "unit rows" if module == "lm_head" and spec.vocabulary == _BAICHUAN_2 else ""


FAMILY = Family(
    name="baichuan",
    covers="Baichuan 1 and 2 (7B; 13B with ALiBi)",
    model_types=("baichuan",),
    spec=spec,
    reference="formulas",
    change=change,
)
