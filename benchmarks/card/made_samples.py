"""Samples with the lengths of MATH under InternLM's tokenizer, made of random tokens: no copy of MATH is needed.

    count, seed ──quantiles of a log-normal, shuffled──▶ lengths ──cut at max_tokens──▶ tokens, learned ──▶ steps

What was measured of the real 12,500 samples (prompt and solution in InternLM's chat format): cut at 512 tokens, as the
tutorial cuts them, they have 267 to 281 tokens in the mean and 240 to 245 in the median, 14 % are longer than 512, and
69 % of the tokens are learned. In batches of four at random, padded to their longest, three epochs are 16.1 million
positions, of which 10.2 million are tokens. A log-normal with median 242 and σ = 0.694, cut at 512, has all of that.

The lengths are the quantiles (i + ½) / count themselves, put in a random order: the set is as near to the distribution
as so many numbers can be, whatever the seed.
"""

from __future__ import annotations

from math import exp, log
from statistics import NormalDist

import numpy as np

MEDIAN, SIGMA = 242, 0.694
SHORTEST = 16
LEARNED_SHARE = 0.69

Sample = tuple[list[int], list[bool]]


def math_lengths(count: int, seed: int = 0, max_tokens: int = 512) -> list[int]:
    """Lengths of samples, in a random order, none above ``max_tokens``."""
    return [min(length, max_tokens) for length in whole_lengths(count, seed)]


def whole_lengths(count: int, seed: int = 0) -> list[int]:
    """The same before they are cut."""
    normal = NormalDist(log(MEDIAN), SIGMA)
    lengths = [max(SHORTEST, round(exp(normal.inv_cdf((place + 0.5) / count)))) for place in range(count)]
    return [lengths[place] for place in np.random.default_rng(seed).permutation(count)]


def made_samples(
    count: int, vocabulary: int, *, seed: int = 0, max_tokens: int = 512, exact: bool = False
) -> list[Sample]:
    """Samples of random tokens: their tokens, and which of them are learned.

    Args:
        count: how many.
        vocabulary: tokens are drawn from 10 … vocabulary − 1.
        seed: of lengths and tokens.
        max_tokens: the longest.
        exact: all of ``max_tokens``, and all learned, as packed text is.
    """
    random = np.random.default_rng([seed, 1])
    samples = []
    for length in [max_tokens] * count if exact else math_lengths(count, seed, max_tokens):
        asked = 0 if exact else round(length * (1 - LEARNED_SHARE))
        learned = np.arange(length) >= asked
        samples.append((random.integers(10, vocabulary, length).tolist(), learned.tolist()))
    return samples


def made_steps(
    count: int,
    vocabulary: int,
    steps: int,
    samples_per_step: int,
    *,
    seed: int = 0,
    max_tokens: int = 512,
    exact: bool = False,
) -> list[list[Sample]]:
    """The samples of the first steps, epoch after epoch, each in an order of its own."""
    samples = made_samples(count, vocabulary, seed=seed, max_tokens=max_tokens, exact=exact)
    order: list[int] = []
    for epoch in range(-(-steps * samples_per_step // count)):
        order += np.random.default_rng([seed, 2, epoch]).permutation(count).tolist()
    return [
        [samples[place] for place in order[step * samples_per_step : (step + 1) * samples_per_step]]
        for step in range(steps)
    ]
