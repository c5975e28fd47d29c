"""What the tests of a GPU share: the device, what is skipped where there is none, and models to compute with.

`make gpu` runs them on the CUDA device. `STROP_TEST_DEVICE=cpu` puts the CPU in its place, so that the tests themselves
are run where there is no card; what only a card can show is skipped then (`card_only`).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

DEVICE = os.environ.get("STROP_TEST_DEVICE", "cuda")
"""The device that stands beside the CPU."""

ON_CARD = DEVICE.startswith("cuda")

_there = not ON_CARD or torch.cuda.is_available()

on_device = [
    pytest.mark.gpu,
    pytest.mark.skipif(not _there, reason="no CUDA device on this machine"),
]
"""Marks of every module here."""

card_only = pytest.mark.skipif(not ON_CARD, reason="only a card has this; STROP_TEST_DEVICE names none")


def relative(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    """‖mine − theirs‖ / ‖theirs‖, in float64 on the CPU; infinite where anything is no number."""
    ours, wanted = mine.detach().double().cpu(), theirs.detach().double().cpu()
    if not ours.isfinite().all():
        return float("inf")
    return float((ours - wanted).norm() / wanted.norm().clamp(min=1e-30))


def made(place: Path, name: str) -> Path:
    """A model with random weights in NF4 (`benchmarks/card/made_model.py`)."""
    from card.made_model import made_model

    return made_model(place, name, DEVICE)
