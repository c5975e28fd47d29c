"""What of a spec is not computed yet: a model is refused by name, and never run as something that it is not."""

from __future__ import annotations

from pathlib import Path

from strop.errors import ModelError
from strop.model.spec import DecoderSpec


def unsupported(spec: DecoderSpec) -> str:
    """The features that the decoder does not compute, in words; empty where it computes all."""
    ropes = [spec.rope, *([spec.rope_local] if spec.rope_local else [])]
    missing = {
        "layer norms": spec.norm != "rms",
        f"norms placed {spec.norm_placement!r}": spec.norm_placement != "pre",
        "norms of q and k": bool(spec.qk_norm),
        "a bias on the head": spec.head_bias,
        "an MLP without a gate": not spec.gated_mlp,
        f"the activation {spec.activation!r}": spec.activation != "silu",
        "a second rotary embedding": spec.rope_local is not None,
        "layers without rotation": spec.rope_layers is not None and not all(spec.rope_layers),
        "rotation of a part of a head": any(rope.rotary_size not in (None, spec.head_size) for rope in ropes),
        "rotation of neighbouring pairs": any(rope.interleaved for rope in ropes),
        "rope " + spec.rope.kind: any(rope.kind not in ("default", "linear", "llama3") for rope in ropes),
        "ALiBi": spec.alibi,
        "sliding windows": spec.windows is not None and any(spec.windows),
        "a scale of attention": spec.attention_scale not in (None, spec.head_size**-0.5),
        "capped scores": spec.attention_softcap is not None,
        "capped logits": spec.head_softcap is not None,
        "a scaled embedding": spec.embedding_scale != 1.0,
        "a scaled residual": spec.residual_scale != 1.0,
        "scaled logits": spec.logit_scale != 1.0,
        "experts": spec.experts is not None,
    }
    return ", ".join(name for name, here in missing.items() if here)


def require_support(spec: DecoderSpec, place: Path) -> None:
    """Refuses a spec that is not computed.

    Raises:
        ModelError: names what is missing.
    """
    missing = unsupported(spec)
    if missing:
        raise ModelError(
            f"{place}: {spec.family} models of this kind are not computed yet",
            expected="features that the decoder has",
            found=missing,
            do="use another model",
        )
