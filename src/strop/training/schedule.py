"""The course of the learning rate: a linear warm-up, then constant, linear or cosine down to zero."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, cos, pi

from strop.recipe.schema import TrainSection


def total_steps(train: TrainSection, samples: int) -> int:
    """Optimiser steps of a run: ``train.steps``, or as many as the epochs need to see every sample."""
    if train.steps is not None:
        return train.steps
    return max(1, ceil(_exactly(train.epochs) * samples / train.samples_per_step))


def learning_rate(train: TrainSection, step: int, steps: int) -> float:
    """The rate of optimiser step ``step`` (from 0) of ``steps``.

    With w = ceil(warmup · steps): (step + 1) / w of the peak in the warm-up; after it, with
    p = (step − w) / (steps − w): linear 1 − p, cosine (1 + cos πp) / 2.
    """
    warmup = ceil(_exactly(train.warmup) * steps)
    if step < warmup:
        return train.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    if train.schedule == "linear":
        return train.lr * (1 - progress)
    if train.schedule == "cosine":
        return train.lr * (1 + cos(pi * progress)) / 2
    return train.lr


def _exactly(number: float) -> Fraction:
    """The number as it is written: 1.1 passes over 10 samples are 11, where the float 1.1 · 10 is above 11."""
    return Fraction(repr(number))
