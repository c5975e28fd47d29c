"""Records to chunks of encoded samples: the part of `strop.data.examples` that costs time, and can run anywhere.

    numbered records ──rows──▶ conversations ──tokens──▶ samples ──overlong──▶ Chunk

An `Encoder` is a function of its settings alone, so that a chunk comes out the same in this process and in another
(`strop.data.workers`), and whatever stands before or behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Protocol

from strop.data import sources
from strop.data.conversations import Shape, find_shape, read_conversation
from strop.data.marks import find_marks, said
from strop.data.overlong import Overlong, fit
from strop.data.records import Conversation, Place, Record, Refusal
from strop.data.segments import Learn
from strop.data.store import Chunk, ChunkBuilder, Sample
from strop.data.thinking import Thinking, settle_thinking
from strop.data.tokenizer import Tokenizer
from strop.data.tokens import Encoded, encode_conversations
from strop.errors import TemplateError

RECORDS = 1024
"""Records encoded at once: enough to keep all processors busy, little enough to show progress."""

_LOOKED_AT = 8 * RECORDS
"""Records that are looked at to find what the columns mean."""


class EncodingSettings(Protocol):
    """The part of a recipe that decides tokens; the recipe's section ``data`` has it."""

    @property
    def map(self) -> str | None:
        """The two columns, as question:answer; None to find them by looking."""

    @property
    def system(self) -> str | None:
        """The system prompt; None for the rows' own."""

    @property
    def overlong(self) -> Overlong:
        """What happens to a sample that is too long."""

    @property
    def learn(self) -> Learn:
        """What of a sample is learned."""

    @property
    def thinking(self) -> Thinking | None:
        """What becomes of reasoning in answers; None to keep it."""


class RowReader:
    """Rows to conversations.

    Args:
        shape: what the columns mean.
        system: the recipe's system prompt.

    Attributes:
        shapes: how many rows have which shape.
    """

    def __init__(self, shape: Shape, system: str | None) -> None:
        self._shape, self._system = shape, system
        self.shapes: dict[str, int] = {}

    def read(self, record: Record) -> Conversation | Refusal:
        """One row."""
        return read_conversation(record, self._shape, self._system)


class Encoder:
    """Records to chunks.

    Args:
        settings: what decides the tokens.
        tokenizer: the model's tokenizer.
        longest: the longest sample, in tokens; None for no limit.
        shape: the columns of the data set's rows.
    """

    def __init__(
        self, settings: EncodingSettings, tokenizer: Tokenizer, longest: int | None, shape: tuple[str, ...]
    ) -> None:
        self.settings, self.tokenizer, self.longest, self.shape = settings, tokenizer, longest, shape

    def encode(self, numbered: Sequence[tuple[int, Record]]) -> Chunk:
        """Encode records, given with their numbers: samples or a refusal for each."""
        reader = row_reader(self.settings, self.shape)
        readings = [self._read(reader, record) for _, record in numbered]
        conversations = [reading for reading in readings if isinstance(reading, Conversation)]
        encoded = iter(encode_conversations(self.tokenizer, conversations, self.settings.learn))
        outcomes = [
            reading if isinstance(reading, Refusal) else self._finish(reading, next(encoded)) for reading in readings
        ]
        made = [
            (sample, reading)
            for reading, outcome in zip(readings, outcomes, strict=True)
            if isinstance(reading, Conversation) and not isinstance(outcome, Refusal)
            for sample in outcome
        ]
        samples, made_of = [sample for sample, _ in made], [conversation for _, conversation in made]
        marks = iter(find_marks(samples, made_of, self.tokenizer, self.settings.learn).tolist())
        builder = ChunkBuilder(self.tokenizer.vocabulary_size)
        for (number, _), reading, outcome in zip(numbered, readings, outcomes, strict=True):
            if isinstance(outcome, Refusal):
                builder.refuse(number, outcome)
            elif isinstance(reading, Conversation):
                builder.add(number, reading, outcome, list(islice(marks, len(outcome))), said(reading))
        return builder.finish(len(numbered), reader.shapes)

    def _read(self, reader: RowReader, record: Record) -> Conversation | Refusal:
        reading = reader.read(record)
        return settle_thinking(reading, self.settings.thinking) if isinstance(reading, Conversation) else reading

    def _finish(self, conversation: Conversation, encoded: Encoded | TemplateError) -> list[Sample] | Refusal:
        """What is kept of a conversation: its samples, no longer than they may be, or why there are none."""
        settings = self.settings
        try:
            if isinstance(encoded, TemplateError):
                raise encoded
            fitted = fit(self.tokenizer, conversation, encoded, self.longest, settings.overlong, settings.learn)
        except TemplateError as error:
            return Refusal(conversation.place, error.what, error.do, error.found)
        return fitted if isinstance(fitted, Refusal) else [Sample(*fitted)]


# What follows is all that this room asks of sources and shapes.


def source_files(source: str | Path) -> list[Path]:
    """The files that a source's records are read from, in the order of reading."""
    return sources._files(Path(source).expanduser())


def row_reader(settings: EncodingSettings, shape: tuple[str, ...]) -> RowReader:
    """What turns a source's rows into conversations."""
    like = Record(dict.fromkeys(shape), Place(""))
    return RowReader(find_shape([like], settings.map), settings.system)


def look(
    settings: EncodingSettings, numbered: Iterable[tuple[int, Record]]
) -> tuple[tuple[str, ...], Iterator[tuple[int, Record]]]:
    """The columns that a source's rows have, found by looking at the first ones, and all of the rows."""
    rest = iter(numbered)
    first = list(islice(rest, _LOOKED_AT))
    return find_shape([record for _, record in first], settings.map).columns, chain(first, rest)


def batches(numbered: Iterable[tuple[int, Record]], size: int = RECORDS) -> Iterator[list[tuple[int, Record]]]:
    """Stretches of so many records."""
    rest = iter(numbered)
    while batch := list(islice(rest, size)):
        yield batch
