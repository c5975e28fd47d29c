"""Records to chunks of encoded samples: the part of `strop.data.examples` that costs time, and can run anywhere.

    numbered records ──conversations──▶ conversations ──tokens──▶ samples ──overlong──▶ Chunk

An `Encoder` is a function of its settings alone, so that a chunk comes out the same in this process and in another
(`strop.data.workers`), and whatever stands before or behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Protocol

from strop.data.conversations import RowReader, excerpt_of
from strop.data.digests import asked, said
from strop.data.marks import find_marks
from strop.data.overlong import Overlong, fit
from strop.data.records import Conversation, Record, Refusal
from strop.data.segments import Learn
from strop.data.store import Chunk, ChunkBuilder, Sample
from strop.data.thinking import Thinking, settle_thinking
from strop.data.tokenizer import Tokenizer
from strop.data.tokens import Encoded, encode_conversations
from strop.errors import TemplateError

RECORDS = 256
"""Records encoded at once: enough to keep workers busy, little enough to share the work out and to show progress."""


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


class Encoder:
    """Records to chunks.

    Args:
        settings: what decides the tokens.
        tokenizer: the model's tokenizer.
        longest: the longest sample, in tokens; None for no limit.
    """

    def __init__(self, settings: EncodingSettings, tokenizer: Tokenizer, longest: int | None) -> None:
        self.settings, self.tokenizer, self.longest = settings, tokenizer, longest

    def encode(self, numbered: Sequence[tuple[int, Record]]) -> Chunk:
        """Encode records, given with their numbers: samples or a refusal for each."""
        reader = self.reader()
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
                found = list(islice(marks, len(outcome)))
                builder.add(number, reading, outcome, found, said(reading), asked(reading))
        return builder.finish(len(numbered), reader.tally)

    def reader(self) -> RowReader:
        """What reads rows, and has read none yet."""
        return RowReader(self.settings.map, self.settings.system)

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
            fitted = Refusal(conversation.place, error.what, error.do, error.found)
        if isinstance(fitted, Refusal):
            return replace(fitted, excerpt=excerpt_of(conversation))
        return [Sample(*fitted)]


def batches(numbered: Iterable[tuple[int, Record]], size: int = RECORDS) -> Iterator[list[tuple[int, Record]]]:
    """Stretches of so many records."""
    rest = iter(numbered)
    while batch := list(islice(rest, size)):
        yield batch
