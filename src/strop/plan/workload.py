"""What a run has to compute under a way of packing: tokens, learned tokens and attention, step by step.

    samples, order ──step_samples──▶ steps ──pack──▶ packs ──▶ Workload

The packs are those that the loop will make (`strop.data.packing`). Of a long run an even sample of its steps is packed;
the sizes that memory is laid out for are then bounds over all steps, so that no later step can ask for more.

Shapes: K steps, J samples of a step, S samples of the data, P packs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from strop.data.order import permutation, step_samples
from strop.data.packing import Pack, pack
from strop.data.records import Example
from strop.data.samples import lengths, taught, untaught

if TYPE_CHECKING:
    import numpy.typing as npt

# Samples that are packed for a forecast of the mean step; packing takes about 30 µs a sample.
_PACKED_SAMPLES = 1024
# Samples of all steps beyond which the bounds are taken from the data set alone.
_ORDERED_SAMPLES = 5_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Packs:
    """Packs, and what each asks for.

    Attributes:
        tokens_P: positions that are computed.
        learned_P: learned tokens.
        pairs_P: pairs of a position and one that it sees: what attention multiplies.
        longest_P: the most that a position sees.
        read_tokens: tokens of the samples, each counted once a sample.
        documents_P: documents; None where nobody counted.
    """

    tokens_P: npt.NDArray[np.int64]
    learned_P: npt.NDArray[np.int64]
    pairs_P: npt.NDArray[np.int64]
    longest_P: npt.NDArray[np.int64]
    read_tokens: int
    documents_P: npt.NDArray[np.int64] | None = None

    def chunks(self, size: int) -> int:
        """Chunks of ``size`` learned tokens that the loss is computed in."""
        return int((-(-self.learned_P // size)).sum())


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """A run under a way of packing.

    Attributes:
        pack_tokens: most tokens of a pack, but for a longer sample.
        prefixes: the plan's lever: whether beginnings are computed once a pack where no dropout tells samples apart.
        steps: optimiser steps of the run.
        packed_steps: steps that `packs` are of.
        packs: packs of these steps.
        held_out: packs of the held-out samples, or of an even part of them.
        held_out_scale: held-out samples for each one that was packed.
        largest_pack: positions of the largest pack of the run, the held-out samples' included; an upper bound where
            not all steps were packed.
        most_learned: learned tokens of the pack that has most of them; likewise.
        longest_sample: tokens.
    """

    pack_tokens: int
    prefixes: str
    steps: int
    packed_steps: int
    packs: Packs
    held_out: Packs
    held_out_scale: float
    largest_pack: int
    most_learned: int
    longest_sample: int

    @property
    def read_tokens(self) -> float:
        """Tokens of the samples of a mean step."""
        return self.packs.read_tokens / self.packed_steps

    @property
    def computed_tokens(self) -> float:
        """Positions that a mean step computes."""
        return float(self.packs.tokens_P.sum()) / self.packed_steps

    @property
    def learned_tokens(self) -> float:
        """Learned tokens of a mean step."""
        return float(self.packs.learned_P.sum()) / self.packed_steps

    @property
    def most_documents(self) -> int:
        """Documents of the pack that has most of them, of those that were packed."""
        counts = [part.documents_P for part in (self.packs, self.held_out) if part.documents_P is not None]
        return max((int(count_P.max(initial=1)) for count_P in counts), default=1)

    @property
    def packs_per_step(self) -> float:
        """Packs of a mean step."""
        return len(self.packs.tokens_P) / self.packed_steps

    def as_dict(self) -> dict[str, Any]:
        """The figures, for `--json` and the record."""
        return {
            "pack_tokens": self.pack_tokens,
            "prefixes": self.prefixes,
            "steps": self.steps,
            "packs_per_step": self.packs_per_step,
            "tokens_per_step": self.read_tokens,
            "computed_tokens_per_step": self.computed_tokens,
            "learned_tokens_per_step": self.learned_tokens,
            "largest_pack": self.largest_pack,
            "most_learned": self.most_learned,
            "longest_sample": self.longest_sample,
        }


def measure(
    learned: Sequence[Example],
    held_out: Sequence[Example],
    *,
    steps: int,
    samples_per_step: int,
    seed: int,
    pack_tokens: int,
    prefixes: str,
    dropout: float,
) -> Workload:
    """Packs a run's steps, or an even sample of them.

    Args:
        learned: the samples to learn.
        held_out: the samples held out.
        steps: optimiser steps of the run.
        samples_per_step: samples of a step.
        seed: the recipe's seed.
        pack_tokens: most tokens of a pack.
        prefixes: "shared" or "repeated", the plan's lever.
        dropout: the adapters' dropout: with it steps share nothing; looking is without it.
    """
    share = prefixes == "shared" and dropout == 0
    count = min(steps, max(4, _PACKED_SAMPLES // samples_per_step))
    chosen = [index * steps // count for index in range(count)]
    packs = _packs(
        one
        for step in chosen
        for one in pack(
            [learned[index] for index in step_samples(seed, step, len(learned), samples_per_step)],
            pack_tokens,
            share,
        )
    )
    every = max(1, len(held_out) // _PACKED_SAMPLES)
    looked = _packs(pack(held_out[::every], pack_tokens, prefixes == "shared"))
    longest_held = held_longest = int(lengths(held_out).max(initial=0))
    held_learned = int(looked.learned_P.max(initial=0))
    if every > 1:
        held_longest, held_learned = max(held_longest, pack_tokens), max(held_longest, pack_tokens)
    if count == steps:
        largest, most = int(packs.tokens_P.max()), int(packs.learned_P.max())
    else:
        largest, most = _bounds(learned, steps, samples_per_step, seed, pack_tokens, share)
    return Workload(
        pack_tokens=pack_tokens,
        prefixes=prefixes,
        steps=steps,
        packed_steps=count,
        packs=packs,
        held_out=looked,
        held_out_scale=len(held_out) / max(len(held_out[::every]), 1),
        largest_pack=max(largest, int(looked.tokens_P.max(initial=0)), held_longest),
        most_learned=max(most, held_learned, 1),
        longest_sample=max(int(lengths(learned).max()), longest_held),
    )


def pack_candidates(
    learned: Sequence[Example], *, steps: int, samples_per_step: int, seed: int, longest: int = 8192
) -> list[int]:
    """Pack lengths worth trying: the longest sample, powers of two above it, a whole step."""
    lengths_S = lengths(learned)
    shortest = int(lengths_S.max())
    whole_step = int(_per_step(lengths_S, steps, samples_per_step, seed).sum(axis=1).max())
    powers = [1 << power for power in range(8, 31) if shortest < 1 << power <= longest]
    return sorted({min(size, whole_step) for size in (shortest, *powers)})


def _packs(packs: Iterable[Pack]) -> Packs:
    counts: list[tuple[int, int, int, int, int]] = []
    read = 0
    for one in packs:
        seen = [(end - start, last - first) for start, end, first, last in one.spans]
        longest = max((own + prefix for own, prefix in seen), default=0)
        pairs = sum(_pairs(own, prefix) for own, prefix in seen)
        counts.append((len(one), one.learned_tokens, pairs, longest, len(seen)))
        read += one.read_tokens
    tokens_P, learned_P, pairs_P, longest_P, documents_P = np.array(counts, np.int64).reshape(-1, 5).T
    return Packs(tokens_P, learned_P, pairs_P, longest_P, read, documents_P)


def _pairs(document: int, prefix: int) -> int:
    """A position sees its own document up to itself, and the whole of what this continues."""
    return document * (document + 1) // 2 + document * prefix


def _bounds(
    learned: Sequence[Example], steps: int, samples_per_step: int, seed: int, pack_tokens: int, share: bool
) -> tuple[int, int]:
    """Upper bounds over all steps: positions of a pack, and learned tokens of a pack.

    A pack of n positions learns at most what a knapsack of n holds that may cut samples: those that learn most a
    position first. A shared beginning may be free for a sample; what follows its first learned token never is.
    """
    lengths_S, taught_S = lengths(learned), taught(learned)
    cost_S = lengths_S - untaught(learned) if share else lengths_S
    tokens_KJ = _per_step(lengths_S, steps, samples_per_step, seed)
    largest = max(int(lengths_S.max()), min(pack_tokens, int(tokens_KJ.sum(axis=1).max())))
    by_worth_S = np.argsort(taught_S / np.maximum(cost_S, 1), kind="stable")
    rank_S = np.empty_like(by_worth_S)
    rank_S[by_worth_S] = np.arange(len(by_worth_S))
    best_KJ = by_worth_S[np.sort(_per_step(rank_S, steps, samples_per_step, seed), axis=1)[:, ::-1]]
    cost_KJ, taught_KJ = np.maximum(cost_S[best_KJ], 1), taught_S[best_KJ]
    before_KJ = np.cumsum(cost_KJ, axis=1) - cost_KJ
    share_KJ = np.clip((largest - before_KJ) / cost_KJ, 0.0, 1.0)
    return largest, min(largest, int(np.ceil((share_KJ * taught_KJ).sum(axis=1).max() - 1e-6)))


def _per_step(values_S: npt.NDArray[np.int64], steps: int, samples_per_step: int, seed: int) -> npt.NDArray[np.int64]:
    """A value of every sample, laid out by step and place [K, J], in the order of `step_samples`.

    Where these are too many, one step of the largest values, which no other exceeds.
    """
    samples, total = len(values_S), steps * samples_per_step
    if total > _ORDERED_SAMPLES:
        repeated = np.repeat(np.sort(values_S)[::-1], -(-samples_per_step // samples))
        return repeated[None, :samples_per_step]
    epochs = [permutation(seed, epoch, samples) for epoch in range(-(-total // samples))]
    return values_S[np.concatenate(epochs)[:total]].reshape(steps, samples_per_step)
