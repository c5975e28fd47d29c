"""Randomness without a state: every random thing is a function of the seed and of what it is for.

There is no generator that could be in a different state after a resume, on another rank or under another plan. The
samples of optimiser step k follow from (seed, k). Nothing here may
ever change: a test holds golden values, because old runs must resume to the same bits.

The source is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014; the
constants of Vigna's splitmix64.c). Its i-th output is z(key + i · γ), a mixing of a counter, so any number of the
stream can be had on its own, and a whole stretch of it in one numpy expression:

    z(x):   x ^= x >> 30;  x *= 0xBF58476D1CE4E5B9;  x ^= x >> 27;  x *= 0x94D049BB133111EB;  x ^= x >> 31
    γ   =   0x9E3779B97F4A7C15          all modulo 2^64
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK = 0xFFFF_FFFF_FFFF_FFFF

_PERMUTATION = 1
"""What a key is for, so that two uses of one seed have nothing in common."""


def mix(*numbers: int) -> int:
    """Mix integers to one of 64 bits: equal for equal arguments, unrelated for any others, their order included.

    Args:
        numbers: any integers; they count modulo 2^64.

    Returns:
        h(n) with h(0) = 0 and h(i + 1) = z((h(i) ^ number(i)) + γ), in [0, 2^64).
    """
    state = 0
    for number in numbers:
        state = _scramble(((state ^ (number & _MASK)) + _GAMMA) & _MASK)
    return state


def permutation(seed: int, epoch: int, samples: int) -> npt.NDArray[np.int64]:
    """The order in which an epoch sees its samples.

    Args:
        seed: the recipe's seed.
        epoch: counted from 0.
        samples: how many there are.

    Returns:
        int64 [samples], read-only: each of 0 … samples − 1 once, sorted by the stream of mix(seed, 1, epoch).
    """
    return _permutation(seed, epoch, samples)


def step_samples(seed: int, step: int, samples: int, samples_per_step: int) -> list[int]:
    """The samples of one optimiser step.

    Epochs follow one another without a gap: the j-th sample of step k has position p = k · samples_per_step + j, and
    is number p mod samples of epoch p div samples. So every epoch sees each sample exactly once, no sample is left
    over at an epoch's end, and a step may span two epochs (or more, where it is larger than the data).

        5 samples, 3 a step:   step 0 │ step 1 │ step 2 │ step 3
                       epoch:   0 0 0 │ 0 0 1  │ 1 1 1  │ 1 2 2

    Args:
        seed: the recipe's seed.
        step: counted from 0.
        samples: how many there are to learn.
        samples_per_step: how many a step learns.

    Returns:
        Indices into the samples, in order.

    Raises:
        ValueError: there are no samples.
    """
    if samples < 1:
        raise ValueError("there are no samples to order")
    first = step * samples_per_step
    return [int(_permutation(seed, p // samples, samples)[p % samples]) for p in range(first, first + samples_per_step)]


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, samples: int) -> npt.NDArray[np.int64]:
    order = np.argsort(_stream(mix(seed, _PERMUTATION, epoch), samples), kind="stable").astype(np.int64)
    order.setflags(write=False)
    return order


def _stream(key: int, count: int) -> npt.NDArray[np.uint64]:
    """Outputs 1 … count of SplitMix64 with a key, as uint64 [count]."""
    return scramble(np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GAMMA) + np.uint64(key))


def scramble(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """z(x) of many integers: a bijection, so that unequal ones stay unequal."""
    x = x ^ x >> np.uint64(30)
    x *= np.uint64(_MULTIPLIERS[0])
    x ^= x >> np.uint64(27)
    x *= np.uint64(_MULTIPLIERS[1])
    x ^= x >> np.uint64(31)
    return x


def _scramble(x: int) -> int:
    """z(x) for one integer."""
    x ^= x >> 30
    x = x * _MULTIPLIERS[0] & _MASK
    x ^= x >> 27
    x = x * _MULTIPLIERS[1] & _MASK
    return x ^ x >> 31
