"""Angles of the rotary position embedding, with the stretches that models use for longer contexts.

Two kinds depend on how long a sample is: "dynamic", whose base grows with it, and "longrope", which has two sets of
frequencies. Each sample of a pack has its own length, so that it gets what it would get alone.
"""

from __future__ import annotations

from math import ceil, floor, log, pi

import torch
from torch import Tensor

from strop.kernels.upload import upload
from strop.model.spec import DecoderSpec, RopeSpec

Angles = tuple[Tensor, Tensor]
"""Cosines and sines [T, R/2], float32; R numbers of each head are rotated."""


class Rotary:
    """The rotary embeddings of a decoder: the common one, and that of layers with a window where it is another.

    Args:
        spec: the decoder.
        device: where angles are made.
    """

    def __init__(self, spec: DecoderSpec, device: torch.device) -> None:
        self.spec, self.device = spec, device
        self.ropes = [spec.rope, *([spec.rope_local] if spec.rope_local else [])]
        self._fixed = [
            inverse_frequencies(rope, spec.head_size).to(device) if not _follows_length(rope) else None
            for rope in self.ropes
        ]

    @property
    def follows_length(self) -> bool:
        """Whether any of them depends on how long a sample is."""
        return any(map(_follows_length, self.ropes))

    def angles(self, positions_T: Tensor, lengths_T: Tensor | None) -> list[Angles]:
        """Cosines and sines of each rotary embedding.

        Args:
            positions_T: each token's place in its sample, on the device.
            lengths_T: the length of its sample, best on the host; None where nothing follows it.
        """
        if self.spec.alibi:
            return []
        made = []
        for rope, fixed_E in zip(self.ropes, self._fixed, strict=True):
            frequencies_TE = self._by_length(rope, lengths_T) if fixed_E is None else fixed_E
            angles_TE = positions_T[:, None].float() * frequencies_TE
            cos_TE, sin_TE = angles_TE.cos(), angles_TE.sin()
            if rope.attention_factor != 1.0:
                cos_TE, sin_TE = cos_TE * rope.attention_factor, sin_TE * rope.attention_factor
            made.append((cos_TE, sin_TE))
        return made

    def of(self, layer: int) -> int | None:
        """Which of the angles a layer rotates by, or None."""
        spec = self.spec
        if spec.alibi or (spec.rope_layers is not None and not spec.rope_layers[layer]):
            return None
        return 1 if spec.rope_local is not None and spec.windows is not None and spec.windows[layer] else 0

    def _by_length(self, rope: RopeSpec, lengths_T: Tensor | None) -> Tensor:
        """Frequencies of every token's sample [T, R/2]."""
        assert lengths_T is not None, "these frequencies follow the length of a sample"
        lengths_U, place_T = lengths_T.cpu().unique(return_inverse=True)
        rows = [inverse_frequencies(rope, self.spec.head_size, length) for length in lengths_U.tolist()]
        return upload(torch.stack(rows)[place_T], self.device)


def inverse_frequencies(rope: RopeSpec, head_size: int, length: int = 0) -> Tensor:
    """Angle per position of each pair of a head: float32 [R/2].

    default: theta^(-2i/R) (Su et al. 2021, section 3.2.2). linear: the same over factor (Chen et al. 2023,
    arXiv:2306.15595). llama3: long waves over factor, short waves as they are, a ramp between (Llama 3.1's release).
    dynamic: theta · (factor · length / original − (factor − 1))^(R / (R − 2)) for samples longer than the original
    context. yarn: as llama3 with a ramp over the pairs' numbers (Peng et al. 2023, arXiv:2309.00071, section 3.2).
    longrope: over one of two lists of factors (Ding et al. 2024, arXiv:2402.13753). All equal
    ``transformers.modeling_rope_utils``.

    Args:
        rope: the embedding.
        head_size: numbers of a head.
        length: of the sample, in tokens: for dynamic and longrope.
    """
    size = rope.rotary_size or head_size
    exponent_E = torch.arange(0, size, 2, dtype=torch.int64).float() / size
    if rope.kind == "dynamic":
        stretch = rope.factor * max(length, rope.original_context) / rope.original_context - (rope.factor - 1)
        theta = rope.theta * stretch ** (size / (size - 2))
        return torch.reciprocal(theta**exponent_E)
    frequency_E = 1.0 / (rope.theta**exponent_E)
    if rope.kind == "linear":
        return frequency_E / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, frequency_E)
    if rope.kind == "yarn":
        return _yarn(rope, frequency_E)
    if rope.kind == "longrope":
        factors = rope.long_factors if length > rope.original_context else rope.short_factors
        return 1.0 / (torch.tensor(factors) * rope.theta**exponent_E)
    return frequency_E


def _follows_length(rope: RopeSpec) -> bool:
    return rope.kind in ("dynamic", "longrope")


def _llama3(rope: RopeSpec, frequency_E: Tensor) -> Tensor:
    wavelength_E = 2 * pi / frequency_E
    ramp_E = (rope.original_context / wavelength_E - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    share_E = ramp_E.clamp(0, 1)
    return (1 - share_E) * frequency_E / rope.factor + share_E * frequency_E


def _yarn(rope: RopeSpec, frequency_E: Tensor) -> Tensor:
    size = 2 * len(frequency_E)

    def pair(rotations: float) -> float:
        """The pair that turns so often within the original context."""
        return size * log(rope.original_context / (rotations * 2 * pi)) / (2 * log(rope.theta))

    low, high = max(floor(pair(rope.beta_fast)), 0), float(min(ceil(pair(rope.beta_slow)), size - 1))
    if low == high:
        high += 0.001
    stretched_E = ((torch.arange(size // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return frequency_E / rope.factor * stretched_E + frequency_E * (1 - stretched_E)
