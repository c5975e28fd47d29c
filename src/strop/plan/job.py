"""What recipe, data and model files ask for, whatever the plan: the facts that forecasts are made from.

spec, recipe, Dataset, the files' dtypes ──read_job──▶ Job
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from strop.data.examples import Dataset
from strop.data.records import Example
from strop.data.samples import asking, held_bytes, store_of
from strop.model.lora import adapter_size, parse_targets
from strop.model.spec import DecoderSpec, module_path
from strop.model.tensors import EMBEDDING, HEAD
from strop.recipe import Recipe

# Questions that are asked at each look where the recipe names none, and a guess at how many letters make a token.
_QUESTIONS = 3
_LETTERS_PER_TOKEN = 3


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """What a run asks for.

    Attributes:
        spec: the model.
        targets: projections that have adapters.
        rank: rank of the adapters.
        dropout: the adapters' dropout.
        steps: optimiser steps.
        samples_per_step: samples of a step.
        seed: the recipe's seed.
        looks: how often held-out losses and sample answers are taken.
        prompts: tokens of each question that is asked.
        answer_tokens: most tokens of an answer.
        head_item: bytes of a number of the head, as the file has it.
        embedding_item: the same of the embedding.
        weight_item: the same of the other weights.
        learned: the samples to learn.
        held_out: the samples held out.
    """

    spec: DecoderSpec
    targets: tuple[str, ...]
    rank: int
    dropout: float
    steps: int
    samples_per_step: int
    seed: int
    looks: int
    prompts: tuple[int, ...]
    answer_tokens: int
    head_item: int
    embedding_item: int
    weight_item: int
    learned: Sequence[Example]
    held_out: Sequence[Example]

    @property
    def parameters(self) -> int:
        """Numbers of the adapter."""
        return adapter_size(self.spec, self.targets, self.rank)

    @property
    def data_bytes(self) -> int:
        """The samples' tokens, and what is learned of them."""
        return data_bytes(self)

    @property
    def file_bytes(self) -> int:
        """Bytes of weights that are read from the model's files."""
        ends = self.spec.vocabulary * self.spec.hidden
        both = ends * self.head_item + (0 if self.spec.tied_head else ends * self.embedding_item)
        return (self.spec.linear_weights + self.spec.expert_weights) * self.weight_item + both


def read_job(
    spec: DecoderSpec, item_bytes: Callable[[str], int], dataset: Dataset, recipe: Recipe, *, steps: int
) -> Job:
    """The facts of a run.

    Args:
        spec: the model.
        item_bytes: bytes of a number of a tensor in the model's files (`ModelTensors.item_bytes`).
        dataset: what is learned and held out.
        recipe: the recipe.
        steps: optimiser steps of the run.
    """
    return Job(
        spec=spec,
        targets=parse_targets(recipe.adapter.targets, spec.adaptable),
        rank=recipe.adapter.rank,
        dropout=recipe.adapter.dropout,
        steps=steps,
        samples_per_step=recipe.train.samples_per_step,
        seed=recipe.train.seed,
        looks=looks_of(recipe, steps),
        prompts=questions_of(dataset, recipe),
        answer_tokens=recipe.watch.answer_tokens,
        head_item=item_bytes(EMBEDDING if spec.tied_head else HEAD),
        embedding_item=item_bytes(EMBEDDING),
        weight_item=max(
            item_bytes(f"{module_path(layer, name)}.weight")
            for layer in range(spec.layers)
            for name in spec.projections_of(layer)
        ),
        learned=dataset.learned,
        held_out=dataset.held_out,
    )


def looks_of(recipe: Recipe, steps: int) -> int:
    """How often held-out losses and sample answers are taken in a run of so many steps."""
    every = recipe.watch.every
    return 1 + steps // every + (steps % every > 0)


def questions_of(dataset: Dataset, recipe: Recipe) -> tuple[int, ...]:
    """Tokens of each question that is asked at a look."""
    asked = asking(dataset.held_out or dataset.learned)
    if recipe.watch.ask:
        template = min((_prompt_tokens(example) for example in asked[:256]), default=0)
        return tuple(template + len(text) // _LETTERS_PER_TOKEN for text in recipe.watch.ask)
    count = min(_QUESTIONS, len(asked))
    return tuple(_prompt_tokens(asked[index * len(asked) // count]) for index in range(count))


class _Samples(Protocol):
    """What has samples to learn and held out."""

    @property
    def learned(self) -> Sequence[Example]:
        """The samples to learn."""

    @property
    def held_out(self) -> Sequence[Example]:
        """The samples held out."""


def data_bytes(of: _Samples) -> int:
    """The samples' tokens, and what is learned of them."""
    held = {id(store_of(samples)): held_bytes(samples) for samples in (of.learned, of.held_out)}
    return sum(held.values())


def _prompt_tokens(example: Example) -> int:
    """Tokens before the answer that is asked for: up to the last stretch that is learned."""
    learned = np.flatnonzero(example.learned)
    if not len(learned):
        return len(example)
    breaks = np.flatnonzero(np.diff(learned) > 1)
    return int(learned[breaks[-1] + 1] if len(breaks) else learned[0])
