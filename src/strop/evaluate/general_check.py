"""What the general path makes of a user's model: how much lies in NF4, and whether its documents are kept apart."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from strop.model.general.load import load_general
from strop.model.general.trial import packed_difference

TOLERANCE = 1e-4
"""Norm of the difference over norm of hidden states, as for families (`strop.evaluate.family_check`)."""


class GeneralCheck(NamedTuple):
    """What was found.

    Args:
        family: transformers' model_type.
        quantized: weights in NF4.
        kept: weights that are not: embedding, head, norms, and what is no linear module.
        targets: names of the modules that can have adapters.
        isolates: what keeps documents of a pack apart: "positions", a "mask", or "" where each is a pass of its own.
        caches: whether answers go on from what is kept of the tokens before.
        difference: of hidden states in a pack, as they are computed, from those of each document alone.
        tolerance: how much is allowed.
        passed: whether that is kept.
    """

    family: str
    quantized: int
    kept: int
    targets: tuple[str, ...]
    isolates: str
    caches: bool
    difference: float
    tolerance: float
    passed: bool


def check_general(folder: Path) -> GeneralCheck:
    """Loads a model of the general path and tries it on a few tokens.

    Raises:
        ModelError: `strop.model.general.load.load_general`.
    """
    decoder = load_general(folder)
    spec, difference = decoder.spec, packed_difference(decoder)
    quantized = spec.linear_weights
    return GeneralCheck(
        family=spec.family,
        quantized=quantized,
        kept=spec.parameters - quantized,
        targets=spec.adaptable,
        isolates=decoder.isolates,
        caches=decoder.caches,
        difference=difference,
        tolerance=TOLERANCE,
        passed=difference <= TOLERANCE,
    )
