"""What lengths cost: what each ``max_tokens`` would refuse or cut, and how full packs are.

    samples of 3, 5 and 9 tokens, max_tokens 4        refuse: 2 samples, 14 tokens      cut_end: 1 + 5 tokens

A sample counts with the length that it has before any limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from strop.data.order import step_samples
from strop.data.packing import pack
from strop.data.records import Example
from strop.data.samples import learned_counts, learned_of, lengths

if TYPE_CHECKING:
    import numpy.typing as npt

SHORTEST_LIMIT = 256
"""The smallest limit that is looked at, unless all samples are shorter."""

_MOST_LIMITS = 9
_MOST_PACKED = 20_000
"""Samples that are packed to see how full packs get; packing takes about 30 µs a sample."""

_MOST_STEPS = 200


@dataclass(frozen=True, slots=True)
class LimitCost:
    """What a limit of the samples' length costs.

    Args:
        max_tokens: the limit.
        over: samples that are longer.
        tokens: all tokens of these samples; lost where they are refused.
        learned: their learned tokens; lost where they are refused.
        cut_tokens: their tokens beyond the limit; lost where they are cut at the end.
        cut_learned: their learned tokens beyond it; lost where they are cut at the end.
    """

    max_tokens: int
    over: int
    tokens: int
    learned: int
    cut_tokens: int
    cut_learned: int

    def plus(self, other: LimitCost) -> LimitCost:
        """What the same limit costs of both."""
        names = self.__slots__[1:]
        return LimitCost(self.max_tokens, *(getattr(self, name) + getattr(other, name) for name in names))


@dataclass(frozen=True, slots=True)
class Fill:
    """How full packs get.

    Args:
        pack_tokens: the length of a pack.
        samples: samples that were packed: all, or an even part of many.
        packs: packs that they take when they are packed all at once.
        tokens: their tokens.
        share: tokens over what the packs could hold.
        steps: steps of an epoch that were packed: all, or an even part of many.
        step_packs: packs of a mean step.
        step_tokens: tokens of a mean step.
    """

    pack_tokens: int
    samples: int
    packs: int
    tokens: int
    share: float
    steps: int
    step_packs: float
    step_tokens: float

    def as_dict(self) -> dict[str, Any]:
        """The figures, for `--json`."""
        return {name: getattr(self, name) for name in self.__slots__}


def limits(longest: int, *known: int | None) -> list[int]:
    """Limits worth looking at: powers of two up to the first that every sample fits, and those that are in force.

    Args:
        longest: tokens of the longest sample.
        known: the recipe's limit and the model's context, where there are such.
    """
    first = SHORTEST_LIMIT
    while first > 8 and first >= longest:
        first //= 2
    powers = [first]
    while powers[-1] < longest:
        powers.append(powers[-1] * 2)
    return sorted({*powers[-_MOST_LIMITS:], *(limit for limit in known if limit is not None)})


def limit_costs(samples: Sequence[Example], candidates: Sequence[int]) -> list[LimitCost]:
    """What each limit would refuse or cut.

    Args:
        samples: the samples to learn, at their whole length; no more is read than what of the long ones is learned.
        candidates: the limits.
    """
    lengths_S, learned_S = lengths(samples), learned_counts(samples)
    kept = dict.fromkeys(candidates, 0)
    for index in np.flatnonzero(lengths_S > min(filter(None, candidates), default=0)).tolist():
        length, mask = int(lengths_S[index]), learned_of(samples, index)
        for limit in kept:
            if length > limit > 0:
                kept[limit] += int(np.count_nonzero(mask[:limit]))
    costs = []
    for limit in candidates:
        over_S = lengths_S > limit
        over, tokens, learned = (int(values_S[over_S].sum()) for values_S in (over_S, lengths_S, learned_S))
        costs.append(LimitCost(limit, over, tokens, learned, tokens - over * limit, learned - kept[limit]))
    return costs


def quantiles(lengths_S: npt.NDArray[np.int64]) -> dict[str, float]:
    """The shortest, the mean, the median, the 95th and 99th percentile, the longest; empty where there are none."""
    if not len(lengths_S):
        return {}
    middle, high, higher = np.quantile(lengths_S, [0.5, 0.95, 0.99], method="inverted_cdf").tolist()
    return {
        "shortest": int(lengths_S.min()),
        "mean": float(lengths_S.mean()),
        "median": int(middle),
        "percentile_95": int(high),
        "percentile_99": int(higher),
        "longest": int(lengths_S.max()),
    }


def fill(samples: Sequence[Example], pack_tokens: int, *, samples_per_step: int, seed: int) -> Fill:
    """How full packs get, of the whole data and of the steps of the first epoch.

    Args:
        samples: the samples to learn.
        pack_tokens: the length of a pack.
        samples_per_step: samples of a step.
        seed: the recipe's seed, which orders the samples.
    """
    if not len(samples):
        return Fill(pack_tokens, 0, 0, 0, 0.0, 0, 0.0, 0.0)
    chosen = list(samples[:: -(-len(samples) // _MOST_PACKED)])
    packs = pack(chosen, pack_tokens)
    tokens = sum(map(len, chosen))
    room = sum(max(pack_tokens, len(one)) for one in packs)
    every = -(-len(samples) // samples_per_step)
    steps = range(0, every, -(-every // _MOST_STEPS))
    of_steps = [
        pack([samples[index] for index in step_samples(seed, step, len(samples), samples_per_step)], pack_tokens)
        for step in steps
    ]
    return Fill(
        pack_tokens=pack_tokens,
        samples=len(chosen),
        packs=len(packs),
        tokens=tokens,
        share=tokens / room,
        steps=len(steps),
        step_packs=sum(map(len, of_steps)) / len(steps),
        step_tokens=sum(len(one) for packs in of_steps for one in packs) / len(steps),
    )
