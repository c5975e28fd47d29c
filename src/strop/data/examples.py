"""A whole data set, from its file to the samples that are learned and those that are held out.

    read ─▶ rows ─▶ conversations ─▶ tokens ─▶ fit max_tokens ─▶ hold out ─▶ Dataset
                                  └─ or kept from last time ─┘

Nothing is dropped in silence: every record that is read ends as a learned sample, a held-out sample or a refusal with
its reason and place, and the three sum to what was read. Nothing starts that could not end well: a data set in which
nothing would be learned, or an answer would be learned without its stop token, raises instead.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from strop.data.cache import cache_key, read_samples, write_samples
from strop.data.conversations import RowReader, excerpt_of
from strop.data.mixture import Mixture, SourceAccount
from strop.data.overlong import Overlong, fit
from strop.data.records import Conversation, Example, Record, Refusal
from strop.data.sources import read_records
from strop.data.split import choose_rows, content_key, held_out_count, hold_out
from strop.data.tokenizer import Tokenizer
from strop.data.tokens import Encoded, encode_conversations
from strop.errors import DataError, TemplateError

if TYPE_CHECKING:
    import numpy.typing as npt

Progress = Callable[[int, int], None]
"""Called with the records done so far and all there are to do."""

_BATCH = 1024
"""Conversations encoded at once: enough to keep all processors busy, little enough to show progress."""


class DataSettings(Protocol):
    """The part of a recipe that `prepare` reads; the recipe's section ``data`` is one."""

    @property
    def train(self) -> str | tuple[str, ...]:
        """What to learn from: one source or several (`strop.data.mixture`)."""

    @property
    def eval(self) -> float | str:
        """Held out: a share below 1, a count from 1, a file or folder, or 0."""

    @property
    def map(self) -> str | None:
        """The columns, as question:answer or by their parts; None to find them by looking."""

    @property
    def system(self) -> str | None:
        """The system prompt; None for the rows' own."""

    @property
    def rows(self) -> int | None:
        """Use so many rows of the file to learn from, chosen by the seed."""

    @property
    def max_tokens(self) -> int | None:
        """The longest sample, in tokens; None for the model's context."""

    @property
    def overlong(self) -> Overlong:
        """What happens to a longer sample."""


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """What a run learns from, and an account of every record.

    Args:
        learned: the samples to learn, in reading order.
        held_out: the samples held out, in reading order.
        refused: records of the data to learn from that are neither.
        read: records of the data to learn from that were used (after ``rows``). It equals
            learned + refused + held_out, or learned + refused where the held-out samples have a file of their own.
        available: all records in the data to learn from.
        held_out_read: records of the held-out samples' own file: held_out + held_out_refused; 0 without one.
        held_out_refused: records of that file that are refused.
        fingerprint: SHA-256, in hexadecimal, over the tokens and what is learned of all samples, in order.
        sources: what became of the records of each source that is learned from.
        shapes: name of a shape of rows → conversations that were read so, held-out file included.
        ambiguous: "one shape, not another" → rows that both would fit.
        unread: column → rows with a value in it that nothing read.
    """

    learned: list[Example]
    held_out: list[Example]
    refused: list[Refusal]
    read: int
    available: int
    held_out_read: int
    held_out_refused: list[Refusal]
    fingerprint: str
    sources: tuple[SourceAccount, ...] = ()
    shapes: Mapping[str, int] = field(default_factory=dict)
    ambiguous: Mapping[str, int] = field(default_factory=dict)
    unread: Mapping[str, int] = field(default_factory=dict)

    @property
    def lengths_S(self) -> npt.NDArray[np.int64]:
        """Tokens of each learned sample [S], in the order of ``learned``."""
        return np.array([len(example) for example in self.learned], np.int64)


def prepare(
    settings: DataSettings,
    tokenizer: Tokenizer,
    *,
    seed: int,
    context_tokens: int | None = None,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> Dataset:
    """Read, encode and split a data set.

    The same settings, files, tokenizer and seed give the same data set, bit for bit.

    Args:
        settings: the recipe's section ``data``.
        tokenizer: the model's tokenizer.
        seed: the recipe's seed; it decides which rows are used and which samples are held out.
        context_tokens: the model's context, the longest sample where the settings name none; None for no limit.
        progress: called now and then while encoding.
        cache: a folder to keep encoded samples in, and to take them from (`strop.data.cache`); None to encode anew.

    Raises:
        DataError: the data cannot be read, or nothing in it can be learned.
        TemplateError: an answer would be learned without its stop token.
        UsageError: ``map`` or ``eval`` cannot be understood.
    """
    longest = settings.max_tokens if settings.max_tokens is not None else context_tokens
    mixture = Mixture(settings.train, seed)
    records = list(mixture)
    rows = choose_rows(records, settings.rows, seed)
    other = list(read_records(settings.eval)) if isinstance(settings.eval, str) else []
    builder = _Builder(settings, tokenizer, longest, progress, len(rows) + len(other), cache)
    outcomes = builder.build([(number, records[number]) for number in rows])
    held_out_refused: list[Refusal] = []
    if isinstance(settings.eval, str):
        held_outcomes = builder.build(list(enumerate(other, start=len(records))))
        held_out, held_out_refused = _sort_out(held_outcomes)
        if not held_out:
            raise _nothing_left(settings.eval, "hold out", len(other), held_out_refused)
        outcomes = _refuse_held_out(outcomes, held_out)
        learned, refused = _sort_out(outcomes)
    else:
        learned, refused = _sort_out(outcomes)
        count = held_out_count(settings.eval, len(learned)) if learned else 0
        ids = hold_out(learned, count, seed)
        held_out = [example for example in learned if example.id in ids]
        learned = [example for example in learned if example.id not in ids]
    if not learned:
        raise _nothing_left(", ".join(map(str, mixture.sources)), "learn", len(rows), refused)
    if settings.overlong != "cut_end":
        _check_stops([*learned, *held_out], tokenizer)
    return Dataset(
        learned=learned,
        held_out=held_out,
        refused=refused,
        read=len(rows),
        available=len(records),
        held_out_read=len(other),
        held_out_refused=held_out_refused,
        fingerprint=_fingerprint(learned, held_out),
        sources=mixture.accounts(zip(rows, outcomes, strict=True), {example.id for example in held_out}),
        shapes=builder.reader.tally.shapes,
        ambiguous=builder.reader.tally.ambiguous,
        unread=builder.reader.tally.unread,
    )


class _Builder:
    """Records to samples, batch by batch; counts what is done over all the sources of a data set."""

    def __init__(
        self,
        settings: DataSettings,
        tokenizer: Tokenizer,
        longest: int | None,
        progress: Progress | None,
        total: int,
        cache: Path | None,
    ) -> None:
        self.settings, self.tokenizer, self.longest = settings, tokenizer, longest
        self.progress, self.done, self.total = progress, 0, total
        self.cache = cache
        self.reader = RowReader(settings.map, settings.system)

    def build(self, numbered: Sequence[tuple[int, Record]]) -> list[Example | Refusal]:
        """Encode one source's records, given with their ids: a sample or a refusal for each, in order."""
        readings = [self.reader.read(record) for _, record in numbered]
        self.reader.check()
        conversations = [reading for reading in readings if isinstance(reading, Conversation)]
        self._report(len(readings) - len(conversations))
        samples = iter(self._samples(conversations))
        outcomes: list[Example | Refusal] = []
        for (number, _), reading in zip(numbered, readings, strict=True):
            if isinstance(reading, Refusal):
                outcomes.append(reading)
                continue
            sample = next(samples)
            if isinstance(sample, Encoded):
                outcomes.append(Example(sample.tokens, sample.learned, number, reading.place, reading))
            else:
                outcomes.append(replace(sample, excerpt=excerpt_of(reading)))
        return outcomes

    def _samples(self, conversations: Sequence[Conversation]) -> list[Encoded | Refusal]:
        """Each conversation's tokens or why it has none, kept from last time where they are."""
        overlong = self.settings.overlong
        key = cache_key(self.tokenizer, conversations, self.longest, overlong) if self.cache else None
        samples = read_samples(self.cache, key, conversations) if self.cache and key else None
        if samples is not None:
            self._report(len(samples))
            return samples
        samples = []
        for start in range(0, len(conversations), _BATCH):
            batch = conversations[start : start + _BATCH]
            samples += map(self._finish, batch, encode_conversations(self.tokenizer, batch))
            self._report(len(batch))
        if self.cache and key:
            write_samples(self.cache, key, samples)
        return samples

    def _finish(self, conversation: Conversation, encoded: Encoded | TemplateError) -> Encoded | Refusal:
        try:
            if isinstance(encoded, TemplateError):
                raise encoded
            fitted = fit(self.tokenizer, conversation, encoded, self.longest, self.settings.overlong)
        except TemplateError as error:
            return Refusal(conversation.place, error.what, error.do, error.found)
        if isinstance(fitted, Encoded):
            for array in fitted:
                array.setflags(write=False)
        return fitted

    def _report(self, done: int) -> None:
        self.done += done
        if self.progress is not None and done:
            self.progress(self.done, self.total)


def _sort_out(outcomes: Sequence[Example | Refusal]) -> tuple[list[Example], list[Refusal]]:
    examples = [outcome for outcome in outcomes if isinstance(outcome, Example)]
    return examples, [outcome for outcome in outcomes if isinstance(outcome, Refusal)]


def _refuse_held_out(outcomes: Sequence[Example | Refusal], held_out: Sequence[Example]) -> list[Example | Refusal]:
    """Refuse what is to be learned but stands in the held-out file as well."""
    known = {content_key(0, example.tokens) for example in held_out}
    return [
        Refusal(
            outcome.place,
            "it is in the held-out data as well",
            "drop it from one of the two files",
            excerpt=excerpt_of(outcome.conversation) if outcome.conversation else "",
        )
        if isinstance(outcome, Example) and content_key(0, outcome.tokens) in known
        else outcome
        for outcome in outcomes
    ]


def _nothing_left(path: str, purpose: str, read: int, refused: Sequence[Refusal]) -> DataError:
    """No sample is left; names the three most frequent reasons and the cure of the first."""
    reasons = Counter(refusal.reason for refusal in refused).most_common(3)
    counted = "; ".join(f"{count} × {reason}" for reason, count in reasons)
    cure = next((refusal.cure for refusal in refused if refusal.reason == reasons[0][0]), "")
    return DataError(
        f"{path}: nothing is left to {purpose}",
        expected="at least one record that can be used",
        found=f"{read} read, {len(refused)} refused: {counted}",
        do=cure or "give more data",
    )


def _check_stops(examples: Sequence[Example], tokenizer: Tokenizer) -> None:
    """Hold every learned stretch of every sample to its promise: its last token is a stop token."""
    stop_ids = tokenizer.stop_ids
    for example in examples:
        last = example.learned & ~np.append(example.learned[1:], False)
        if not last.any() or not stop_ids.issuperset(example.tokens[last].tolist()):
            raise TemplateError(
                f"{example.place}: an answer would be learned without its stop token",
                expected=f"one of {', '.join(tokenizer.stop_tokens)} at the end of every answer",
                do="look at this row, and at what the chat template puts behind an answer",
            )


def _fingerprint(*parts: Sequence[Example]) -> str:
    """SHA-256 over counts, lengths, tokens (int32, little-endian) and learned bits, in order."""
    digest = hashlib.sha256()
    for examples in parts:
        digest.update(len(examples).to_bytes(8, "little"))
        for example in examples:
            digest.update(len(example).to_bytes(8, "little"))
            digest.update(example.tokens.astype("<i4").tobytes())
            digest.update(np.packbits(example.learned).tobytes())
    return digest.hexdigest()
