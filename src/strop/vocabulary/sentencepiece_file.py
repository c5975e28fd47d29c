"""Read a sentencepiece ``.model`` file: a protocol-buffers message, taken apart field by field.

    field 1, repeated   a piece: 1 its text, 2 its score (float32), 3 its kind
    field 2             how it was trained: 3 model type, 35 byte fallback, 24 white space behind words
    field 3             what is done to a text first: 2 a table of characters, 3 dummy prefix, 4 and 5 white space

A field is a number ``field << 3 | wire type`` and a value: a variable-length number (0), 8 bytes (1), a length and as
many bytes (2), or 4 bytes (5). The names and numbers are those of sentencepiece's ``sentencepiece_model.proto``; the
library itself is the oracle of the tests. It is not needed here: it does not give out the table of characters.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from strop.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of pieces; llama.cpp's kinds of tokens have the same numbers."""

UNIGRAM, BPE = 1, 2

# Above every known vocabulary (the largest has 262,144 pieces, 4.7 MB); bounds what a hostile file can cost.
MOST_BYTES = 64 << 20
_TEXT_FIELDS = 2


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of the vocabulary; its place in the list is its id."""

    text: str
    score: float
    kind: int = NORMAL


@dataclass(frozen=True, slots=True)
class Pieces:
    """A sentencepiece model.

    Attributes:
        pieces: the vocabulary.
        model: UNIGRAM or BPE.
        byte_fallback: what no piece spells becomes the pieces of its bytes.
        dummy_prefix: a space is put before a text.
        collapse_spaces: white space at the ends is dropped, runs of spaces become one.
        charsmap: sentencepiece's compiled table of character replacements, or nothing.
    """

    pieces: list[Piece]
    model: int = BPE
    byte_fallback: bool = False
    dummy_prefix: bool = True
    collapse_spaces: bool = True
    charsmap: bytes = b""


def looks_like_pieces(path: Path) -> bool:
    """Whether a file begins as a sentencepiece model does: a first field that is a piece."""
    with path.open("rb") as file:
        return file.read(1) == b"\x0a"


def read_pieces(path: Path) -> Pieces:
    """Read a ``.model`` file.

    Raises:
        ModelError: it cannot be read, is no sentencepiece model, or of a kind that is not run (word, char, white space
            behind words).
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        parsed = _parse(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path} cannot be read", found=str(error), do="check the file and its permissions") from None
    except (ValueError, IndexError, struct.error) as error:
        raise ModelError(
            f"{path} is not a sentencepiece model",
            expected="pieces with scores and kinds, as the library sentencepiece writes them",
            found=str(error),
            do="download the file again",
        ) from None
    return parsed


def _parse(data: bytes) -> Pieces:
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for field, value in _fields(data):
        if field == 1:
            pieces.append(_piece(_bytes(value)))
        elif field == 2:
            trainer.update(_fields(_bytes(value)))
        elif field == 3:
            normalizer.update(_fields(_bytes(value)))
    if not pieces:
        raise ValueError("no pieces")
    model = trainer.get(3, UNIGRAM)
    if model not in (UNIGRAM, BPE) or trainer.get(24, 0) or not normalizer.get(5, 1):
        raise ValueError(f"model type {model!r}" if model not in (UNIGRAM, BPE) else "unusual white space")
    return Pieces(
        pieces,
        int(model),
        bool(trainer.get(35, 0)),
        bool(normalizer.get(3, 1)),
        bool(normalizer.get(4, 1)),
        _bytes(normalizer.get(2, b"")),
    )


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for field, value in _fields(data):
        if field == 1:
            text = _bytes(value).decode("utf-8")
        elif field == 2:
            (score,) = struct.unpack("<f", _bytes(value))
        elif field == 3 and isinstance(value, int):
            kind = value
    if not NORMAL <= kind <= BYTE or math.isnan(score):
        raise ValueError(f"a piece of kind {kind}, score {score}")
    return Piece(text, score, kind)


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where bytes belong")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            number, at = _varint(data, at)
            yield field, number
            continue
        if wire == _TEXT_FIELDS:
            length, at = _varint(data, at)
        else:
            length = {1: 8, 5: 4}.get(wire, -1)
        if length < 0 or at + length > len(data):
            raise ValueError(f"a field of wire type {wire} that ends behind the file, at byte {at:,}")
        yield field, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, lowest first; the high bit says that more follow."""
    number = shift = 0
    while shift < 64:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number, at
        shift += 7
    raise ValueError(f"a number of more than 64 bits, at byte {at:,}")
