"""The learning rate's course, at its edges and against transformers' schedules."""

from itertools import pairwise
from math import cos, pi

import pytest
import torch
from transformers import get_scheduler

from strop.recipe.schema import TrainSection
from strop.training.schedule import learning_rate, total_steps

PEAK = 2e-4


def course(steps: int, **section: object) -> list[float]:
    train = TrainSection(lr=PEAK, **section)
    return [learning_rate(train, step, steps) for step in range(steps)]


# ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("epochs", "samples", "each", "steps"),
    [
        (1, 40, 8, 5),
        (1, 41, 8, 6),  # the last step reaches into the next epoch: no sample is left out
        (3, 41, 8, 16),
        (0.5, 41, 8, 3),
        (1, 3, 16, 1),
        (0.001, 3, 16, 1),
        (1.1, 10, 1, 11),  # in floats 1.1 · 10 is above 11
        (0.07, 100, 1, 7),
    ],
)
def test_steps_cover_the_epochs(epochs: float, samples: int, each: int, steps: int):
    assert total_steps(TrainSection(epochs=epochs, samples_per_step=each), samples) == steps


def test_steps_of_the_recipe_win():
    assert total_steps(TrainSection(epochs=3, steps=17), 1000) == 17


# ── edges and parts ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_a_warm_up_rises_evenly_to_the_peak(schedule: str):
    rates = course(20, schedule=schedule, warmup=0.25)
    assert rates[:5] == pytest.approx([PEAK * share for share in (0.2, 0.4, 0.6, 0.8, 1.0)])
    assert rates[5] == PEAK
    assert max(rates) == PEAK


@pytest.mark.parametrize(("schedule", "last"), [("cosine", PEAK * (1 + cos(pi * 19 / 20)) / 2), ("linear", PEAK / 20)])
def test_a_fall_starts_at_the_peak_and_never_reaches_zero(schedule: str, last: float):
    rates = course(20, schedule=schedule, warmup=0)
    assert rates[0] == PEAK
    assert all(after < before for before, after in pairwise(rates))
    assert rates[-1] == pytest.approx(last)
    assert rates[-1] > 0, "every step learns"


def test_shapes_differ():
    assert course(9, schedule="constant", warmup=0) == [PEAK] * 9
    assert course(9, schedule="linear", warmup=0)[3] == pytest.approx(PEAK * 6 / 9)
    assert course(9, schedule="cosine", warmup=0)[3] == pytest.approx(PEAK * 0.75)


@pytest.mark.parametrize(
    ("warmup", "steps", "first_peak"),
    [(0.0, 10, 0), (0.01, 10, 0), (0.03, 100, 2), (0.07, 100, 6), (0.5, 3, 1), (0.99, 3, 2), (0.5, 1, 0)],
)
def test_a_warm_up_is_a_share_of_the_steps_rounded_up(warmup: float, steps: int, first_peak: int):
    rates = course(steps, schedule="cosine", warmup=warmup)
    assert rates.index(PEAK) == first_peak
    assert min(rates) > 0


# ── against transformers ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("ours", "theirs"), [("cosine", "cosine"), ("linear", "linear"), ("constant", "constant_with_warmup")]
)
@pytest.mark.parametrize("warmup", [0, 6])
def test_the_shape_is_that_of_transformers(ours: str, theirs: str, warmup: int):
    """After the warm-up the same; in it one step ahead, for transformers' first step has a rate of zero."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=PEAK)
    shape = get_scheduler(theirs, optimizer, num_warmup_steps=warmup, num_training_steps=40).lr_lambdas[0]
    rates = course(40, schedule=ours, warmup=warmup / 40)
    assert rates[warmup:] == pytest.approx([PEAK * shape(step) for step in range(warmup, 40)], rel=1e-12)
    assert rates[:warmup] == pytest.approx([PEAK * shape(step + 1) for step in range(warmup)], rel=1e-12)
