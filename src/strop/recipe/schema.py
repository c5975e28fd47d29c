"""The recipe: everything that decides what is learned, and nothing that decides how it is computed.

A recipe is a tree of at most 40 fields (`FIELDS`, frozen by a test). Memory and speed are not here: they belong to
the plan (`strop.plan`), which never changes the result.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Overlong = Literal["refuse", "cut_prompt", "cut_end"]
Learn = Literal["answers", "last", "all"]
Thinking = Literal["keep", "drop"]
Schedule = Literal["cosine", "linear", "constant"]
Spike = Literal["stop", "skip", "ignore"]


class Section(BaseModel):
    """A part of the recipe: immutable, unknown fields refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSection(Section):
    """What is learned from."""

    train: str | tuple[str, ...] = Field(
        min_length=1, description="what to learn from: file, folder, glob or hub id; or several, each *WEIGHT or #COUNT"
    )
    eval: Annotated[float, Field(ge=0)] | str = Field(
        default=0.02, description="held out: a share below 1, a count from 1, a file, folder or hub id, or 0 for none"
    )
    map: str | None = Field(
        default=None,
        description="the columns, as question:answer or user=question,assistant=answer,… (default: found by looking)",
    )
    system: str | None = Field(
        default=None, description="system prompt, in training, in sample answers and in chat alike"
    )
    rows: Annotated[int, Field(ge=1)] | None = Field(default=None, description="use this many rows, chosen by the seed")
    max_tokens: Annotated[int, Field(ge=8)] | None = Field(
        default=None, description="longest sample, in tokens (default: the model's context)"
    )
    overlong: Overlong = Field(default="refuse", description="a longer sample is: refuse | cut_prompt | cut_end")
    learn: Learn = Field(
        default="answers", description="what is learned: answers | last (the last answer) | all (every token)"
    )
    thinking: Thinking | None = Field(
        default=None, description="reasoning in answers: keep | drop (default: kept where the data has it)"
    )
    refuse_limit: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.05, description="a larger share of refused records stops the run"
    )

    @property
    def named(self) -> str:
        """What is learned from, in one line."""
        return self.train if isinstance(self.train, str) else ", ".join(self.train)


class AdapterSection(Section):
    """The LoRA adapter (Hu et al. 2021, arXiv:2106.09685): W x + alpha / rank · B A x."""

    rank: Annotated[int, Field(ge=1, le=1024)] = Field(default=16, description="rank of A and B")
    alpha: Annotated[float, Field(gt=0)] = Field(default=32.0, description="the adapter is scaled by alpha / rank")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="dropout on the adapter's input")
    targets: str = Field(default="all-linear", description="all-linear, or projections by name: q_proj,k_proj,v_proj")


class TrainSection(Section):
    """The optimiser's course."""

    epochs: Annotated[float, Field(gt=0)] = Field(default=3.0, description="passes over the data")
    steps: Annotated[int, Field(ge=1)] | None = Field(default=None, description="optimiser steps, instead of epochs")
    samples_per_step: Annotated[int, Field(ge=1)] = Field(default=16, description="samples per optimiser step")
    lr: Annotated[float, Field(gt=0)] = Field(default=2e-4, description="peak learning rate")
    schedule: Schedule = Field(default="cosine", description="cosine | linear | constant, after warm-up")
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.03, description="share of the steps that warms up")
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=0.0, description="AdamW's decoupled weight decay")
    clip: Annotated[float, Field(ge=0)] = Field(default=1.0, description="largest gradient norm; 0 for no clipping")
    spike: Spike = Field(
        default="skip", description="a step whose loss leaps out of those before it: stop | skip | ignore"
    )
    save_every: Annotated[int, Field(ge=1)] = Field(default=100, description="steps between checkpoints")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(default=0, description="everything random follows from it")


class WatchSection(Section):
    """What is looked at while training, without touching it."""

    every: Annotated[int, Field(ge=1)] = Field(
        default=50, description="steps between held-out losses and sample answers"
    )
    ask: tuple[str, ...] = Field(default=(), description="questions to answer (default: some held-out ones)")
    answer_tokens: Annotated[int, Field(ge=1)] = Field(default=256, description="longest sample answer, in tokens")


class Recipe(Section):
    """A whole recipe. Two equal recipes learn the same thing."""

    model: str = Field(description="folder, .gguf file, or the name smollm2-135m-instruct")
    data: DataSection
    adapter: AdapterSection = AdapterSection()
    train: TrainSection = TrainSection()
    watch: WatchSection = WatchSection()
