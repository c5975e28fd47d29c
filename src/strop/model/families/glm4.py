"""GLM-4-0414: GLM with norms on what attention and the MLP give as well."""

from __future__ import annotations

from strop.model.families.family import Family
from strop.model.families.glm import glm_like
from strop.model.families.settings import Settings
from strop.model.spec import DecoderSpec


def spec(settings: Settings) -> DecoderSpec:
    """GLM-4-0414's settings."""
    return glm_like(settings, "glm4", norm_placement="both")


FAMILY = Family(
    name="glm4",
    covers="GLM-4-0414 (9B, 32B), GLM-Z1",
    model_types=("glm4",),
    spec=spec,
    layer_names={"attention_output_norm": "post_self_attn_layernorm", "mlp_output_norm": "post_mlp_layernorm"},
)
