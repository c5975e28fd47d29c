"""A data set looked at as a training step will see it: every figure, finding and token out of `strop.data.prepare`.

    recipe ──tokenizer──▶ prepare ──▶ Dataset ──▶ account, lengths, packs, prompts, findings ──▶ Survey
                             └─ once more without a limit, where the limit refused or cut something

No weight is read: a model's tokenizer, template and config are all that it takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from heapq import merge
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from strop.data.counts import SourceCount, count_sources, group_refusals, number_of, numbers_of
from strop.data.examples import Dataset, prepare
from strop.data.findings import Finding
from strop.data.lengths import Fill, LimitCost, fill, limit_costs, limits, quantiles
from strop.data.order import step_samples
from strop.data.packing import Pack, pack
from strop.data.preview import length_histogram
from strop.data.prompts import PromptPair, compare_some
from strop.data.records import Example, Refusal
from strop.data.samples import ById
from strop.data.tokenizer import Tokenizer
from strop.errors import DataError, ModelError, UsageError
from strop.hub.hashes import cache_folder
from strop.model.families import find_family, read_config, read_spec
from strop.model.general.spec import context_of
from strop.model.source import model_folder
from strop.recipe import Recipe
from strop.review.findings import find
from strop.run.journal import Journal

PACK_TOKENS = 4096
"""The length of a pack where the plan says nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """A data set, looked at.

    Args:
        recipe: the recipe.
        folder: the model's folder.
        tokenizer: the model's tokenizer.
        context: the model's context in tokens; None where its config does not say.
        dataset: what a run would learn from.
        whole: by `Example.id` what the limit has cut or refused, at its whole length.
        findings: what was noticed, the gravest first.
        unequal: prompts that were trained and are not what chat sends.
        compared: samples whose prompts were compared.
        costs: what each limit would cost.
        everything: what a limit of 0 would cost: all samples that there were without one, and all their tokens.
        fill: how full packs get.
        sources: what became of the records of each file or folder.
    """

    recipe: Recipe
    folder: Path
    tokenizer: Tokenizer
    context: int | None
    dataset: Dataset
    whole: Mapping[int, Example]
    findings: Sequence[Finding]
    unequal: Sequence[PromptPair]
    compared: int
    costs: Sequence[LimitCost]
    everything: LimitCost
    fill: Fill
    sources: Sequence[SourceCount]

    @property
    def data(self) -> str:
        """What is learned from, in words."""
        train: str | tuple[str, ...] = self.recipe.data.train
        return train if isinstance(train, str) else ", ".join(train)

    @property
    def limit(self) -> int | None:
        """The longest sample in force, in tokens."""
        return self.recipe.data.max_tokens if self.recipe.data.max_tokens is not None else self.context

    @property
    def refused(self) -> list[Refusal]:
        """Every refusal, those of the held-out samples' own file included."""
        return [*self.dataset.refused, *self.dataset.held_out_refused]

    @property
    def read(self) -> int:
        """Every record that was read: learned, held out and refused."""
        return len(self.dataset.learned) + len(self.dataset.held_out) + len(self.refused)

    @property
    def stops(self) -> list[Finding]:
        """The findings that a run is refused for."""
        return [finding for finding in self.findings if finding.severity == "stop"]

    @property
    def tokens(self) -> int:
        """Tokens of the samples to learn."""
        return sum(source.tokens for source in self.sources)

    @property
    def learned_tokens(self) -> int:
        """Their learned tokens."""
        return sum(source.learned_tokens for source in self.sources)

    @property
    def held_out_ids(self) -> set[int]:
        """The ids of the samples held out."""
        return set(self.dataset.held_out.ids_S.tolist())

    @property
    def samples(self) -> Iterator[Example]:
        """The samples to learn and those held out, in reading order, each made when it is asked for."""
        return merge(self.dataset.learned, self.dataset.held_out, key=_record_first)

    def uncut(self, example: Example) -> Example:
        """A sample at its whole length."""
        return self.whole.get(example.id, example)

    def packs(self, step: int, pack_tokens: int, share_prefixes: bool = False) -> list[Pack]:
        """The packs of a step, as the loop will lay them.

        Args:
            step: counted from 0.
            pack_tokens: the plan's length of a pack.
            share_prefixes: whether beginnings are computed once a pack.

        Raises:
            DataError: there is nothing to learn.
        """
        learned, train = self.dataset.learned, self.recipe.train
        if not len(learned):
            raise DataError(
                f"{self.data}: there are no steps",
                expected="samples to learn",
                found="none",
                do="leave --step and --pack out: strop data then shows why there is nothing to learn",
            )
        chosen = step_samples(train.seed, step, len(learned), train.samples_per_step)
        return pack([learned[index] for index in chosen], pack_tokens, share_prefixes)

    def as_dict(self) -> dict[str, Any]:
        """The object of ``--json``."""
        dataset = self.dataset
        bars = length_histogram(dataset.lengths_S)
        return {
            "data": self.data,
            "model": self.recipe.model,
            "read": self.read,
            "learned": len(dataset.learned),
            "held_out": len(dataset.held_out),
            "refused": len(self.refused),
            "tokens": self.tokens,
            "learned_tokens": self.learned_tokens,
            "findings": [finding.as_dict() for finding in self.findings],
            "refusals": [
                {"reason": one.reason, "cure": one.cure, "count": len(one.refusals), "places": places(one.refusals)}
                for one in group_refusals(self.refused)
            ],
            "sources": [
                {"name": one.name, "read": one.read, "learned": one.learned, "held_out": one.held_out}
                | {"refused": one.refused, "tokens": one.tokens, "learned_tokens": one.learned_tokens}
                for one in self.sources
            ],
            "shapes": dict(shapes(dataset)),
            "reading": dict(reading_notes(dataset)),
            "lengths": {
                **quantiles(dataset.lengths_S),
                "bins": [bar.low for bar in bars] + [bar.high + 1 for bar in bars[-1:]],
                "counts": [bar.count for bar in bars],
            },
            "max_tokens": self.limit,
            "limits": [{name: getattr(cost, name) for name in LimitCost.__slots__} for cost in self.costs],
            "packs": self.fill.as_dict(),
            "prompt_equal": not self.unequal,
            "prompts_compared": self.compared,
            "fingerprint": dataset.fingerprint,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Samples to show.

    Args:
        samples: these.
        found: how many there are of that kind, shown or not.
        words: what kind that is, in words that follow "samples"; empty for all of them.
        refused: refusals that were asked for by number.
    """

    samples: Sequence[Example]
    found: int
    words: str
    refused: Sequence[Refusal] = ()


def _named_context(folder: Path) -> int | None:
    """The context of a model that no table describes, which the general path may take; None where nothing names it."""
    try:
        config = read_config(folder)
    except ModelError:
        return None
    return context_of(config) if find_family(config) is None else None


def take_survey(recipe: Recipe, *, pack_tokens: int = PACK_TOKENS, journal: Journal) -> Survey:
    """Look at a recipe's data.

    Args:
        recipe: the recipe; of the model only tokenizer, template and config are read.
        pack_tokens: the length of a pack, for how full they get.
        journal: is told how far the work has come.

    Raises:
        UsageError: the recipe cannot be understood.
        InputError: model, template or data.
    """
    folder = model_folder(recipe.model, journal.note, journal.progress)
    tokenizer = Tokenizer.from_folder(folder)
    try:
        context: int | None = read_spec(folder).context
    except ModelError as error:
        # The tokens are as they are; that this model cannot be trained is for the run to say, and for a note here.
        journal.note(f"the model's tokenizer is read, the model cannot be: {error.what}")
        context = _named_context(folder)
    dataset = _prepare(recipe, tokenizer, context, journal, "reading data")
    limit = recipe.data.max_tokens or context
    whole = _whole(recipe, dataset, tokenizer, limit, journal)
    unequal, compared = compare_some(dataset.learned, dataset.held_out, whole, tokenizer)
    findings = find(recipe, dataset, tokenizer, context, unequal, journal)
    everything, *costs = _costs(recipe, dataset, whole, context)
    train = recipe.train
    return Survey(
        recipe=recipe,
        folder=folder,
        tokenizer=tokenizer,
        context=context,
        dataset=dataset,
        whole=whole,
        findings=findings,
        unequal=unequal,
        compared=compared,
        everything=everything,
        costs=costs,
        fill=fill(dataset.learned, pack_tokens, samples_per_step=train.samples_per_step, seed=train.seed),
        sources=count_sources(dataset),
    )


def select(survey: Survey, numbers: Sequence[int], search: str | None, most: int) -> Selection:
    """Choose samples to show: by number, by what they say, or the first ones.

    Args:
        survey: the data.
        numbers: numbers of records in reading order, from 1.
        search: what a sample's text must hold, in whatever case.
        most: show so many at most; numbers are all shown.

    Raises:
        UsageError: there is no record of a number.
    """
    if numbers:
        return _numbered(survey, numbers)
    if search is not None:
        wanted = search.casefold()
        hits = (example for example in survey.samples if wanted in text_of(example, survey.tokenizer).casefold())
        first = list(islice(hits, most))
        return Selection(first, len(first) + sum(1 for _ in hits), f" that say {search!r}")
    total = len(survey.dataset.learned) + len(survey.dataset.held_out)
    return Selection(list(islice(survey.samples, most)), total, "")


def _numbered(survey: Survey, numbers: Sequence[int]) -> Selection:
    wanted = set(numbers)
    both = (survey.dataset.learned, survey.dataset.held_out)
    chosen = [one for part in both for one in part.take(np.isin(numbers_of(part.ids_S), list(wanted)))]
    missing = wanted.difference(map(number_of, chosen))
    # Of a refusal only the place is known: in data of one file that is its number.
    alone = {source.name for source in survey.sources} if len(survey.sources) == 1 else set()
    refused = [
        one for one in survey.refused if one.place.file in alone and (one.place.line or one.place.item) in missing
    ]
    unknown = sorted(missing.difference(one.place.line or one.place.item for one in refused))
    if unknown:
        used = survey.dataset.available + survey.dataset.held_out_read
        raise UsageError(
            f"--sample {unknown[0]}: there is no such sample",
            expected=f"the number of a record in reading order, from 1 to {used}",
            found="a record that is refused or not used" if 0 < unknown[0] <= used else str(unknown[0]),
            do="give another number, or find samples by their text: --search TEXT",
        )
    chosen.sort(key=lambda example: (numbers.index(number_of(example)), example.id))
    return Selection(chosen, len(chosen), " asked for by number", refused)


def text_of(example: Example, tokenizer: Tokenizer) -> str:
    """What a sample says: its turns where they are known, else its tokens in words."""
    if example.conversation is not None and example.conversation.messages:
        return "\n".join(text for one in example.conversation.messages for text in (one.thinking or "", one.content))
    return tokenizer.decode(example.tokens.tolist())


def places(refusals: Sequence[Refusal], most: int = 5) -> list[str]:
    """Where the first of some refused records stand."""
    return [str(refusal.place) for refusal in refusals[:most]]


def shapes(dataset: Dataset) -> Mapping[str, int]:
    """How many records there are of each shape; empty where that is not known."""
    return dataset.shapes


def reading_notes(dataset: Dataset) -> Mapping[str, int]:
    """What was noticed while reading, with the records that it concerns: rows of two shapes, columns nobody reads."""
    unread = {f"the column {name!r} is not read": count for name, count in dataset.unread.items()}
    ambiguous = {f"read as {words}": count for words, count in dataset.ambiguous.items()}
    return {**ambiguous, **unread}


def _prepare(recipe: Recipe, tokenizer: Tokenizer, context: int | None, journal: Journal, what: str) -> Dataset:
    return prepare(
        recipe.data,
        tokenizer,
        seed=recipe.train.seed,
        context_tokens=context,
        progress=journal.progress(what),
        cache=cache_folder() / "samples",
        stop=False,
    )


def _whole(recipe: Recipe, dataset: Dataset, tokenizer: Tokenizer, limit: int | None, journal: Journal) -> ById:
    """What the limit has cut or refused, at its whole length, by id: found by preparing once more without it."""
    untouched = recipe.data.overlong == "refuse" and not any(f"{limit} tokens" in one.reason for one in dataset.refused)
    if limit is None or untouched:
        return ById()
    unlimited = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_tokens": None})})
    without = _prepare(unlimited, tokenizer, None, journal, "reading data without the limit")
    lengths: dict[int, int] = {}
    for part in (dataset.learned, dataset.held_out):
        lengths.update(zip(part.ids_S.tolist(), part.lengths_S.tolist(), strict=True))
    parts = []
    for part in (without.learned, without.held_out):
        now_S = np.array([lengths.get(number, -1) for number in part.ids_S.tolist()], np.int64)
        parts.append(part.take(part.lengths_S != now_S))
    return ById(*parts)


def _costs(recipe: Recipe, dataset: Dataset, whole: ById, context: int | None) -> list[LimitCost]:
    """What limits cost, the limit of 0 first."""
    held_out = dataset.held_out.ids_S
    cut_or_refused = [part.take(~np.isin(part.ids_S, held_out)) for part in whole.parts]
    parts = [dataset.learned.take(~np.isin(dataset.learned.ids_S, list(whole))), *cut_or_refused]
    longest = max(int(part.lengths_S.max(initial=1)) for part in (dataset.learned, *cut_or_refused))
    # A context far beyond every sample says nothing here.
    in_sight = context if context and context < 2 * longest else None
    candidates = [0, *limits(longest, recipe.data.max_tokens, in_sight)]
    return [
        reduce(LimitCost.plus, costs) for costs in zip(*(limit_costs(part, candidates) for part in parts), strict=True)
    ]


def _record_first(example: Example) -> tuple[int, int]:
    """Reading order: by the record, then by which of its samples it is."""
    return number_of(example), example.id
