"""What of a spec is not computed yet: a model is refused by name, and never run as something that it is not."""

from __future__ import annotations

from pathlib import Path

from strop.errors import ModelError
from strop.model.spec import DecoderSpec

_ROPES = ("default", "linear", "llama3", "dynamic", "yarn", "longrope")


def unsupported(spec: DecoderSpec) -> str:
    """The features that the decoder does not compute, in words; empty where it computes all."""
    ropes = [spec.rope, *([spec.rope_local] if spec.rope_local else [])]
    missing = {
        f"norms of the kind {spec.norm!r}": spec.norm not in ("rms", "layer"),
        f"norms placed {spec.norm_placement!r}": spec.norm_placement not in ("pre", "post", "both", "parallel"),
        f"norms of q and k over {spec.qk_norm!r}": spec.qk_norm not in ("", "head", "full"),
        f"the activation {spec.activation!r}": spec.activation not in ("silu", "gelu", "gelu_tanh"),
        "rope " + ", ".join(rope.kind for rope in ropes): any(rope.kind not in _ROPES for rope in ropes),
        "experts beside other norms, scales or no gate": spec.experts is not None
        and (spec.norm_placement, spec.residual_scale, spec.gated_mlp) != ("pre", 1.0, True),
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
