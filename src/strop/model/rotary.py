"""Frequencies of the rotary position embedding, with the stretches that Llama models use for longer contexts."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor

from strop.model.spec import DecoderSpec


def inverse_frequencies(spec: DecoderSpec) -> Tensor:
    """Angle per position of each pair of a head: float32 [E/2].

    default: theta^(-2i/E) (Su et al. 2021, section 3.2.2). linear: the same over factor (Chen et al. 2023,
    arXiv:2306.15595). llama3: long waves over factor, short waves as they are, a ramp between (Llama 3.1's release;
    equals ``transformers.modeling_rope_utils._compute_llama3_parameters``).
    """
    rope = spec.rope
    exponent_E = torch.arange(0, spec.head_size, 2, dtype=torch.int64).float() / spec.head_size
    frequency_E = 1.0 / (rope.theta**exponent_E)
    if rope.kind == "linear":
        return frequency_E / rope.factor
    if rope.kind == "llama3":
        wavelength_E = 2 * pi / frequency_E
        ramp_E = (rope.original_context / wavelength_E - rope.low_freq_factor) / (
            rope.high_freq_factor - rope.low_freq_factor
        )
        share_E = ramp_E.clamp(0, 1)
        return (1 - share_E) * frequency_E / rope.factor + share_E * frequency_E
    return frequency_E
