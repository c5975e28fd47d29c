"""A whole data set, from its file to the samples that are learned and those that are held out.

    read ─▶ rows ─▶ conversations ─▶ tokens ─▶ fit max_tokens ─▶ store ─▶ hold out ─▶ Dataset
                                        kept from last time ─────┘

Nothing is dropped in silence: every record that is read ends as learned samples, held-out samples or a refusal with
its reason and place, and the three sum to what was read. Nothing starts that could not end well: a data set in which
nothing would be learned, or an answer would be learned without its stop token, raises instead; who only looks at it is
given it all the same, with the finding that a run would be refused for.

Records are read as they are needed and samples lie in a file (`strop.data.store`), so that neither has to fit into
memory; who needs the numbers of all samples takes them from arrays (`strop.data.samples`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from strop.data.cache import LEAST_BYTES, Kept, key_of
from strop.data.checks import Faults, check_held_out, check_places, check_prompts, check_samples, check_template
from strop.data.conversations import excerpt_of
from strop.data.encoding import Encoder, EncodingSettings, batches
from strop.data.findings import Finding
from strop.data.marks import THINKS
from strop.data.mixture import Source, SourceAccount, account
from strop.data.reading import Reading
from strop.data.records import Refusal
from strop.data.samples import Joined, Samples
from strop.data.split import held_out_count, hold_out
from strop.data.store import Store
from strop.data.tokenizer import Tokenizer
from strop.data.workers import encode_all
from strop.errors import DataError, TemplateError

if TYPE_CHECKING:
    import numpy.typing as npt

Progress = Callable[[int, int], None]
"""Called with the records done so far and all there are to do, which is a guess until the last call."""


class DataSettings(EncodingSettings, Protocol):
    """The part of a recipe that `prepare` reads; the recipe's section ``data`` is one."""

    @property
    def train(self) -> str | tuple[str, ...]:
        """What to learn from: one source or several (`strop.data.mixture`)."""

    @property
    def eval(self) -> float | str:
        """Held out: a share below 1, a count from 1, a file or folder, or 0."""

    @property
    def rows(self) -> int | None:
        """Use so many rows of the file to learn from, chosen by the seed."""

    @property
    def max_tokens(self) -> int | None:
        """The longest sample, in tokens; None for the model's context."""

    def model_dump(self) -> dict[str, Any]:
        """All fields: whatever may decide the tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """What a run learns from, and an account of every record.

    Args:
        learned: the samples to learn, in reading order; each is made when it is asked for.
        held_out: the samples held out, in reading order.
        refused: records of the data to learn from that are neither.
        read: records of the data to learn from that were used (after ``rows``). It equals
            learned + refused + held_out, or learned + refused where the held-out samples have a file of their own;
            a record that gives several samples counts once.
        available: all records in the data to learn from.
        held_out_read: records of the held-out samples' own file: held_out + held_out_refused; 0 without one.
        held_out_refused: records of that file that are refused.
        fingerprint: SHA-256, in hexadecimal, over the tokens and what is learned of all samples, in order.
        thinking: whether any learned sample's answer reasons, so that chat lets the model reason.
        findings: what was noticed (`strop.data.checks`); what stops a run only where `prepare` was told not to raise.
        sources: what became of the records of each source that is learned from.
        shapes: name of a shape of rows → conversations that were read so, held-out file included.
        ambiguous: "one shape, not another" → rows that both would fit.
        unread: column → rows with a value in it that nothing read.
    """

    learned: Samples
    held_out: Samples
    refused: list[Refusal]
    read: int
    available: int
    held_out_read: int
    held_out_refused: list[Refusal]
    fingerprint: str
    thinking: bool = False
    findings: tuple[Finding, ...] = ()
    sources: tuple[SourceAccount, ...] = ()
    shapes: Mapping[str, int] = field(default_factory=dict)
    ambiguous: Mapping[str, int] = field(default_factory=dict)
    unread: Mapping[str, int] = field(default_factory=dict)

    @property
    def lengths_S(self) -> npt.NDArray[np.int64]:
        """Tokens of each learned sample [S], in the order of ``learned``."""
        return self.learned.lengths_S


def prepare(
    settings: DataSettings,
    tokenizer: Tokenizer,
    *,
    seed: int,
    context_tokens: int | None = None,
    progress: Progress | None = None,
    cache: Path | None = None,
    workers: int | None = None,
    stop: bool = True,
) -> Dataset:
    """Read, encode and split a data set.

    The same settings, files, tokenizer and seed give the same data set, bit for bit, however many processes encode it.

    Args:
        settings: the recipe's section ``data``.
        tokenizer: the model's tokenizer.
        seed: the recipe's seed; it decides which rows are used and which samples are held out.
        context_tokens: the model's context, the longest sample where the settings name none; None for no limit.
        progress: called now and then while encoding.
        cache: a folder to keep encoded samples in, and to take them from (`strop.data.cache`); None to encode anew.
        workers: processes that encode large data; None for one on each processor, 0 for none.
        stop: raise what a run would be refused for; False to have it among the findings, and a data set in which
            there may be nothing to learn.

    Raises:
        DataError: the data cannot be read, or nothing in it can be learned.
        TemplateError: an answer would be learned without its stop token.
        UsageError: ``map`` or ``eval`` cannot be understood.
    """
    longest = settings.max_tokens if settings.max_tokens is not None else context_tokens
    readings = [Reading(settings.train, settings.rows, seed)]
    if isinstance(settings.eval, str):
        readings.append(Reading(Source(settings.eval), None, seed))
    told = _Told(progress, sum(reading.bytes for reading in readings))
    builder = _Builder(settings, tokenizer, longest, seed, cache, workers, told)
    stores = [builder.store(reading, (settings.rows, None)[number]) for number, reading in enumerate(readings)]
    told.finish()
    store, own_file = stores[0], stores[1] if len(stores) > 1 else None
    learned = Samples(store)
    faults = Faults(stop=stop)
    if own_file is not None:
        held_out = Samples(own_file, id_offset=store.available)
        if not len(held_out):
            faults.nothing_left(readings[1].names, "hold out", own_file.records, own_file.refusals)
    else:
        learned, held_out = _split(learned, settings.eval, seed, faults)
    learned, also_held_out = _without(learned, held_out)
    refused = sorted([*store.refusals, *also_held_out], key=lambda numbered: numbered[0])
    if not len(learned):
        faults.nothing_left(readings[0].names, "learn", store.records, refused)
    faults.add(_check(settings, tokenizer, learned, held_out))
    tallies = [one.tally for one in stores]
    return Dataset(
        learned=learned,
        held_out=held_out,
        refused=[refusal for _, refusal in refused],
        read=store.records,
        available=store.available,
        held_out_read=own_file.records if own_file else 0,
        held_out_refused=[refusal for _, refusal in own_file.refusals] if own_file else [],
        fingerprint=_fingerprint(learned, held_out),
        thinking=bool((learned.marks_S & THINKS).any()),
        findings=tuple(faults.findings),
        sources=account(
            readings[0].sources,
            store.bounds,
            learned=np.unique(learned.records_S),
            held_out=np.unique(held_out.records_S) if own_file is None else np.empty(0, np.int64),
            refused=np.array([number for number, _ in refused], np.int64),
        ),
        shapes=sum((tally.shapes for tally in tallies), Counter()),
        ambiguous=sum((tally.ambiguous for tally in tallies), Counter()),
        unread=sum((tally.unread for tally in tallies), Counter()),
    )


class _Told:
    """Counts what is done over all the sources of a data set, and guesses what there is to do by the bytes of text."""

    def __init__(self, progress: Progress | None, total_bytes: int) -> None:
        self._progress, self._bytes = progress, total_bytes
        self._done = self._text = 0

    def add(self, records: int, text: int) -> None:
        """So many records, made of so many bytes, are done."""
        self._done += records
        self._text += text
        if self._progress is not None:
            guess = self._done * self._bytes // max(self._text, 1)
            self._progress(self._done, max(guess, self._done + 1))

    def finish(self) -> None:
        """All is done."""
        if self._progress is not None:
            self._progress(self._done, self._done)


class _Builder:
    """Sources to stores."""

    def __init__(
        self,
        settings: DataSettings,
        tokenizer: Tokenizer,
        longest: int | None,
        seed: int,
        cache: Path | None,
        workers: int | None,
        told: _Told,
    ) -> None:
        # Plain values: what workers are sent must not need whatever module the settings come from.
        self.fields = settings.model_dump()
        self.tokenizer, self.longest, self.seed = tokenizer, longest, seed
        self.cache, self.workers, self.told = cache, workers, told

    def store(self, reading: Reading, rows: int | None) -> Store:
        """The samples of what is read, kept from last time where they are."""
        content = reading.content() if self.cache and reading.bytes >= LEAST_BYTES else None
        fields = {**self.fields, "rows": rows}
        seed = self.seed if reading.is_chosen_from else None
        key = key_of(fields, self.tokenizer, self.longest, seed, content) if content else None
        kept = Kept(self.cache, key, reading.labels, self.tokenizer.vocabulary_size)
        store = kept.read()
        if store is not None:
            self.told.add(store.records, reading.bytes)
            return store
        settings: Any = SimpleNamespace(**self.fields)
        encoder = Encoder(settings, self.tokenizer, self.longest)
        with kept.writer() as writing:
            for chunk in encode_all(encoder, batches(reading), self.workers):
                writing.add(chunk)
                self.told.add(chunk.records, int(chunk.rows["text"].sum()))
            reader = encoder.reader()
            reader.tally.add(writing.tally)
            reader.check()
            # What was read is what the key names only if the files did not change meanwhile.
            keep = content is not None and reading.content() == content
            return writing.finish(reading.available, reading.bounds, keep=keep)


def _without(learned: Samples, held_out: Samples) -> tuple[Samples, list[tuple[int, Refusal]]]:
    """What is to be learned without what is held out as well, and refusals with records' numbers.

    The same is what says the same (`strop.data.checks.leaks`): spaces, case and forms of characters do not count.
    """
    held = np.ascontiguousarray(held_out.said_S2).view(_BITS_128)
    twice_S = np.isin(np.ascontiguousarray(learned.said_S2).view(_BITS_128), held).ravel()
    records_S = learned.records_S
    refused_R, first_R = np.unique(records_S[twice_S], return_index=True)
    reason, cure = "it is in the held-out data as well", "drop it from one of the two"
    refusals = []
    for number, index in zip(refused_R.tolist(), np.flatnonzero(twice_S)[first_R].tolist(), strict=True):
        example = learned[index]
        excerpt = excerpt_of(example.conversation) if example.conversation else ""
        refusals.append((number, Refusal(example.place, reason, cure, excerpt=excerpt)))
    return learned.take(~np.isin(records_S, refused_R)), refusals


_BITS_128 = np.dtype("V16")


def _split(learned: Samples, wanted: float | str, seed: int, faults: Faults) -> tuple[Samples, Samples]:
    """What is learned and what is held out of the same data."""
    count = 0
    if len(learned) and isinstance(wanted, float | int):
        try:
            count = held_out_count(wanted, len(learned))
        except DataError as error:
            faults.stops("nothing-left", error)
    if not count:
        return learned, learned.take(np.empty(0, np.int64))
    chosen_S = hold_out(learned.contents_S2(seed), learned.asked_S2, learned.records_S, count)
    faults.add(check_held_out(int(chosen_S.sum()), count))
    return learned.take(~chosen_S), learned.take(chosen_S)


def _check(settings: DataSettings, tokenizer: Tokenizer, learned: Samples, held_out: Samples) -> list[Finding]:
    """What is noticed about samples and template."""
    learn, cut_end = settings.learn, settings.overlong == "cut_end"
    examples = Joined(learned, held_out)
    try:
        of_template = check_template(tokenizer)
    except TemplateError:
        if len(examples):
            raise
        of_template = []  # it renders nothing, and every record is refused for it
    return [
        *of_template,
        *check_samples(examples, tokenizer, learn=learn, cut_end=cut_end),
        *check_prompts(examples, tokenizer, learn=learn),
        *check_places(learned),
    ]


def _fingerprint(*parts: Samples) -> str:
    """SHA-256 over the samples of each part, in order: how many, their tokens and what is learned of them."""
    digest = hashlib.sha256()
    for samples in parts:
        digest.update(len(samples).to_bytes(8, "little"))
        digest.update(samples.wholes_S2.tobytes())
    return digest.hexdigest()
