"""Encoded samples as one file that is mapped into memory: a million of them take no more room than those looked at.

    body      of each sample, one after another:
                tokens        uint16 or int32 [T], as the vocabulary needs
                weights       float32 [T], where the sample has some
                learned       uint8 [⌈T/8⌉]: bits, the first in the highest
                conversation  JSON, for asking its questions again
    rows      `ROW` [S]: where each sample starts, and the numbers that plans and splits need of all samples
    tail      JSON: counts, refused records, the files that places name
    trailer   where rows and tail start, how many there are, bytes of a token
    digest    32 bytes: SHA-256 of the store's key and of all that stands before

All numbers are little-endian. A sample is one stretch of the file, so that looking at one touches one or two pages.
Places name their file by its number, so that data that has moved is found under its new name.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from strop.data.conversations import Tally
from strop.data.records import Conversation, Example, Place, Refusal
from strop.data.split import content_key
from strop.data.store_text import read_conversation_text, write_conversation

if TYPE_CHECKING:
    import numpy.typing as npt

ROW = np.dtype(
    [
        ("id", "<i8"),  # the sample's `Example.id` in its own source
        ("at", "<i8"),  # where it starts in the body
        ("place", "<i8"),  # 0: the whole file; n > 0: line n; n < 0: item -n
        ("file", "<i4"),  # number of the file that the place names
        ("tokens", "<i4"),  # T
        ("taught", "<i4"),  # positions that have a target: learned tokens but for a first one
        ("untaught", "<i4"),  # positions before the first one that has a target; T - 1 where none has
        ("text", "<i4"),  # bytes of the conversation
        ("marks", "<i4"),  # what was noticed (`strop.data.marks`), and whether there are weights: `WEIGHTED`
        ("content", "<u8", 2),  # `content_key` of the tokens for the seed 0
        ("whole", "<u8", 2),  # BLAKE2b-128 of content, learned and weights
        ("said", "<u8", 2),  # what the conversation says (`strop.data.digests`)
        ("asked", "<u8", 2),  # what it asks
    ]
)

RECORD_BITS = 32
"""A sample's id is the number of its record, and above so many bits which of the record's samples it is."""

WEIGHTED = 1
"""The mark of a sample that has weights."""

PLAIN = 1 << 9
"""The mark of a plain text, which asks nothing."""

FIRST = 1 << 10
"""The mark of a sample whose very first token is learned."""

_TRAILER = struct.Struct("<8sqqqqq")
_MAGIC = b"strop 1\n"
_DIGEST = 32

_MOST_TOUCHED = 32 << 20
"""Bytes of a mapped store that a process holds on to."""


class Sample(NamedTuple):
    """One sample before it is stored.

    Args:
        tokens: int32 [T].
        learned: bool [T].
        weights: float32 [T], or None where every learned token counts 1.
    """

    tokens: npt.NDArray[np.int32]
    learned: npt.NDArray[np.bool_]
    weights: npt.NDArray[np.float32] | None = None


@dataclass(slots=True)
class Chunk:
    """What a stretch of records came to, in the form in which it is stored.

    Attributes:
        records: records in it.
        rows: `ROW` of each sample; ``at`` counts from the beginning of the body here.
        body: the samples.
        refusals: number of the record, number of the file, place, and the words of each refused record.
        files: the files that places name by their number.
        tally: what was counted while reading.
    """

    records: int
    rows: npt.NDArray[np.void]
    body: bytes
    refusals: list[tuple[int, int, int, str, str, str, str]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)


class ChunkBuilder:
    """Samples and refusals to a `Chunk`, one after another in reading order.

    Args:
        vocabulary: tokens of the vocabulary; it decides how many bytes a token takes.
    """

    def __init__(self, vocabulary: int) -> None:
        self._item = token_type(vocabulary)
        self._rows: list[tuple[Any, ...]] = []
        self._parts: list[bytes] = []
        self._at = 0
        self._chunk = Chunk(0, np.empty(0, ROW), b"")
        self._files: dict[str, int] = {}

    def add(
        self,
        number: int,
        conversation: Conversation,
        samples: Sequence[Sample],
        marks: Sequence[int] = (),
        said: bytes = bytes(16),
        asked: bytes = bytes(16),
    ) -> None:
        """A record's samples, one or more; beside each its marks, and what the conversation says and asks, 128 bits."""
        text = write_conversation(conversation)
        for which, sample in enumerate(samples):
            tokens, learned, weights = sample
            taught = learned[1:]
            first = int(taught.argmax()) if len(taught) else 0
            bits = np.packbits(learned).tobytes()
            heavy = b"" if weights is None else weights.astype("<f4").tobytes()
            content = content_key(0, tokens)
            file, place = self._place(conversation.place)
            self._rows.append(
                (
                    number | which << RECORD_BITS,
                    self._at,
                    place,
                    file,
                    len(tokens),
                    np.count_nonzero(taught),
                    first if len(taught) and taught[first] else len(tokens) - 1,
                    len(text),
                    (marks[which] if marks else 0)
                    | (WEIGHTED if weights is not None else 0)
                    | (PLAIN if conversation.text is not None else 0)
                    | (FIRST if len(learned) and learned[0] else 0),
                    *(np.frombuffer(one, "<u8") for one in (content, _digest(content + bits + heavy), said, asked)),
                )
            )
            parts = (tokens.astype(self._item).tobytes(), heavy, bits, text)
            self._parts += parts
            self._at += sum(map(len, parts))

    def refuse(self, number: int, refusal: Refusal) -> None:
        """A record that is not learned."""
        place = self._place(refusal.place)
        words = (refusal.reason, refusal.cure, refusal.found, refusal.excerpt)
        self._chunk.refusals.append((number, *place, *words))

    def finish(self, records: int, tally: Tally) -> Chunk:
        """The chunk of so many records."""
        chunk = self._chunk
        chunk.records, chunk.tally, chunk.files = records, tally, list(self._files)
        chunk.rows, chunk.body = np.array(self._rows, ROW), b"".join(self._parts)
        return chunk

    def _place(self, place: Place) -> tuple[int, int]:
        file = self._files.setdefault(place.file, len(self._files))
        return file, place.line if place.line is not None else -(place.item or 0)


class StoreWriter:
    """Chunks to a file, in order.

    Args:
        file: where to, at its beginning; open for reading too.
        key: what the store is kept under, 32 bytes.
        vocabulary: tokens of the vocabulary.
        files: the data's files; those that places name are kept by their number here.
    """

    def __init__(self, file: BinaryIO, key: bytes, vocabulary: int, files: Sequence[str]) -> None:
        self.file = file
        self.at = 0
        self._key, self._item = key, token_type(vocabulary).itemsize
        self._rows: list[npt.NDArray[np.void]] = []
        self._refusals: list[list[Any]] = []
        self._files = {name: number for number, name in enumerate(files)}
        self._given = len(self._files)
        self._records = 0
        self.tally = Tally()

    def add(self, chunk: Chunk) -> None:
        """Write a chunk behind those before it."""
        rows = chunk.rows.copy()
        rows["at"] += self.at
        self._write(chunk.body)  # first: it may fail, and be tried again
        renumbered = [self._files.setdefault(name, len(self._files)) for name in chunk.files]
        if renumbered:
            rows["file"] = np.array(renumbered, np.int32)[rows["file"]]
        self._refusals += [[number, renumbered[file], *rest] for number, file, *rest in chunk.refusals]
        self.tally.add(chunk.tally)
        self._rows.append(rows)
        self._records += chunk.records

    def finish(self, available: int, bounds: Sequence[tuple[int, int]] = ()) -> None:
        """Write what stands behind the samples.

        Args:
            available: records that were read, whether they were chosen or not.
            bounds: of each source, as `strop.data.mixture.Mixture.bounds` has it.
        """
        self._write(bytes(-self.at % 8))
        rows_at = self.at
        for rows in self._rows:
            self._write(rows.tobytes())
        tail = {
            "available": available,
            "records": self._records,
            "bounds": list(bounds),
            "shapes": self.tally.shapes,
            "ambiguous": self.tally.ambiguous,
            "unread": self.tally.unread,
            # The data's own files go by the names that they have when the store is read.
            "files": [None] * self._given + list(self._files)[self._given :],
            "refusals": self._refusals,
        }
        text = json.dumps(tail).encode("ascii")
        tail_at, samples = self.at, sum(map(len, self._rows))
        self._write(text)
        self._write(_TRAILER.pack(_MAGIC, rows_at, samples, tail_at, len(text), self._item))
        self.file.flush()
        self.file.seek(0)
        digest = digest_of(self.file, self._key, self.at)
        self.file.seek(self.at)
        self._write(digest)
        self.file.flush()

    def _write(self, content: bytes) -> None:
        left = memoryview(content)
        while left:  # a file without a buffer may take a part
            left = left[self.file.write(left) :]
        self.at += len(content)


class Store:
    """A store that is whole, and was written for the key under which it was found.

    Args:
        content: the file's bytes, mapped or in memory.
        files: the data's files, as they are called now, in the order in which the writer was told them.

    Attributes:
        rows: `ROW` [S], read-only: the samples, in reading order.
        records: records that were chosen and read: samples and refusals.
        available: records in the source.
        tally: what was counted while reading: shapes, ambiguous, unread.
        bounds: of each source, as `strop.data.mixture.Mixture.bounds` has it.
        files: the files that places name, by their number in the rows.
        refusals: the refused records, with their numbers, in reading order.
    """

    def __init__(self, content: bytes | mmap.mmap, files: Sequence[str]) -> None:
        self._content = memoryview(content).toreadonly()
        self._map = None if isinstance(content, bytes) else content
        self._touched = 0
        _, rows_at, samples, tail_at, tail_bytes, item = _TRAILER.unpack_from(
            self._content, len(self._content) - _DIGEST - _TRAILER.size
        )
        self._item = np.dtype("<u2" if item == 2 else "<i4")
        self.rows: npt.NDArray[np.void] = np.frombuffer(self._content, ROW, samples, rows_at)
        tail = json.loads(bytes(self._content[tail_at : tail_at + tail_bytes]))
        names = [*files, *tail["files"][len(files) :]]
        self.files: list[str] = names
        self.records: int = tail["records"]
        self.available: int = tail["available"]
        self.tally = Tally(Counter(tail["shapes"]), Counter(tail["ambiguous"]), Counter(tail["unread"]))
        self.bounds: list[tuple[int, int]] = [(available, end) for available, end in tail["bounds"]]
        self.refusals = [
            (number, Refusal(_read_place(names[file], place), *words))
            for number, file, place, *words in tail["refusals"]
        ]

    def sample(self, number: int, id_offset: int = 0) -> Example:
        """One sample; its arrays are its own, and read-only."""
        row = self.rows[number]
        length, at = int(row["tokens"]), int(row["at"])
        self._touch(length * self._item.itemsize + int(row["text"]))
        tokens = np.frombuffer(self._content, self._item, length, at).astype(np.int32)
        at += length * self._item.itemsize
        weights = None
        if int(row["marks"]) & WEIGHTED:
            weights = np.frombuffer(self._content, "<f4", length, at).astype(np.float32)
            weights.setflags(write=False)
            at += 4 * length
        bits = np.frombuffer(self._content, np.uint8, (length + 7) // 8, at)
        learned = np.unpackbits(bits, count=length).view(np.bool_)
        at += len(bits)
        tokens.setflags(write=False)
        learned.setflags(write=False)
        place = self.place(number)
        conversation = read_conversation_text(bytes(self._content[at : at + int(row["text"])]), place)
        return Example(tokens, learned, int(row["id"]) + id_offset, place, conversation, weights)

    def learned(self, number: int) -> npt.NDArray[np.bool_]:
        """What of one sample is learned [T]; its words are not read."""
        row = self.rows[number]
        length, at = int(row["tokens"]), int(row["at"])
        self._touch(length * self._item.itemsize)
        at += length * (self._item.itemsize + (4 if int(row["marks"]) & WEIGHTED else 0))
        bits = np.frombuffer(self._content, np.uint8, (length + 7) // 8, at)
        return np.unpackbits(bits, count=length).view(np.bool_)

    @property
    def held_bytes(self) -> int:
        """Bytes of memory that the store takes up at most."""
        return self.rows.nbytes + min(len(self._content), _MOST_TOUCHED) if self._map else len(self._content)

    def content(self, number: int, seed: int) -> bytes:
        """`content_key` of a sample's tokens."""
        row = self.rows[number]
        length = int(row["tokens"])
        self._touch(length * self._item.itemsize)
        return content_key(seed, np.frombuffer(self._content, self._item, length, int(row["at"])))

    def _touch(self, count: int) -> None:
        """Let go of the pages that were looked at, now and then: the system has them still, this process need not."""
        self._touched += max(count, mmap.PAGESIZE)
        if self._touched > _MOST_TOUCHED and self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0

    def place(self, number: int) -> Place:
        """Where a sample's record stands."""
        row = self.rows[number]
        return _read_place(self.files[row["file"]], int(row["place"]))


def digest_of(file: BinaryIO, key: bytes, count: int) -> bytes:
    """SHA-256 of a key and the next so many bytes of a file, a piece at a time: what is mapped would count as used."""
    digest = hashlib.sha256(key)
    piece = bytearray(min(count, 1 << 20) or 1)
    while count:
        got = file.readinto(memoryview(piece)[: min(count, len(piece))])  # type: ignore[attr-defined]  # files have it
        if not got:
            return b""
        digest.update(memoryview(piece)[:got])
        count -= got
    return digest.digest()


def is_whole(file: BinaryIO, key: bytes, size: int) -> bool:
    """Whether a file of so many bytes, read from its beginning, is a store of a key: not cut, damaged or renamed."""
    counted = size - _DIGEST
    return counted >= _TRAILER.size and digest_of(file, key, counted) == file.read(_DIGEST)


def token_type(vocabulary: int) -> np.dtype[Any]:
    """How a token is stored."""
    return np.dtype("<u2" if vocabulary <= 1 << 16 else "<i4")


def _read_place(file: str, number: int) -> Place:
    return Place(file, line=number if number > 0 else None, item=-number if number < 0 else None)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
