"""Encoded samples, kept between commands: ``strop plan`` and ``strop train`` encode the same data once.

    bytes of the data's files, recipe's section data, tokenizer, template, Strop's own code ──SHA-256──▶ key
        ──▶ <folder>/<key>.samples, a store (`strop.data.store`), mapped into memory

A key covers everything that decides the tokens, so that nothing is ever out of date: what changes has another key. Of
the recipe's section it covers all fields, whatever fields there will be; those that name files by what these hold. The
files' bytes are hashed each time, and again behind the encoding: 4 ms for GSM8K, half a second for a gigabyte; neither
sizes nor times of change are trusted.

A file whose digest is wrong (cut short, damaged, renamed) counts as none. Files appear whole, under their final name,
and never change; up to 64 MB they are read into memory all the same, and nothing depends on the file then. That the
folder cannot be read or written is no error: it costs the time of encoding again.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import jinja2
import numpy as np
import tokenizers

from strop.data.conversations import Tally
from strop.data.store import Chunk, Store, StoreWriter, is_whole
from strop.data.tokenizer import Tokenizer
from strop.errors import StropError

SUFFIX = ".samples"
LEAST_BYTES = 1 << 18
"""Less data is encoded faster than it is worth a file: in about 0.1 s."""

MOST_FILES = 20
MOST_BYTES = 4 << 30

_IN_MEMORY = 64 << 20
"""A store of more bytes is mapped, and is written to a file even where it is not kept."""

_STAGING = ".part"
_FORSAKEN_SECONDS = 24 * 60 * 60
"""A staging file this old belongs to nobody who still runs."""

_COUNTED_ELSEWHERE = ("train", "eval", "max_tokens")
"""Fields of the recipe's section that count in another way: what names files by their content, the limit as the longest
sample, which is the model's context where the recipe names none."""


class Kept:
    """Where the store of one source is kept, if anywhere.

    Args:
        folder: the folder; None to keep nothing.
        key: the key's 32 bytes; None where keeping is not worth it, or not safe.
        files: what places call the data's files.
        vocabulary: tokens of the vocabulary.
    """

    def __init__(self, folder: Path | None, key: bytes | None, files: list[str], vocabulary: int) -> None:
        self._path = folder / f"{key.hex()}{SUFFIX}" if folder and key else None
        self._key = key or bytes(32)
        self._files, self._vocabulary = files, vocabulary

    def read(self) -> Store | None:
        """The store; None where there is none that is whole."""
        if self._path is None:
            return None
        try:
            with self._path.open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                if not is_whole(file, self._key, size):
                    return None
                content = _content(file, size)
        except (OSError, ValueError):  # no file, or an empty one
            return None
        with suppress(OSError):  # what was used last is kept longest
            os.utime(self._path)
        return Store(content, self._files)

    def writer(self) -> Writing:
        """A new store, written chunk by chunk."""
        return Writing(self._path, self._key, self._files, self._vocabulary)


class Writing:
    """A store that is being written, under a name of its own until it is whole. A context manager.

    A folder that cannot be written, or is full before the end, costs the keeping: a temporary file takes over.
    """

    def __init__(self, path: Path | None, key: bytes, files: list[str], vocabulary: int) -> None:
        self._path, self._files, self._staging = path, files, ""
        self._file = self._open()
        self._writer = StoreWriter(self._file, key, vocabulary, files)

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._file.close()
        if self._staging:
            with suppress(OSError):
                Path(self._staging).unlink(missing_ok=True)

    def add(self, chunk: Chunk) -> None:
        """Write a chunk behind those before it."""
        try:
            self._writer.add(chunk)
        except OSError:
            self._move_elsewhere()
            self._writer.add(chunk)

    @property
    def tally(self) -> Tally:
        """What was counted while reading what is written so far."""
        return self._writer.tally

    def finish(self, available: int, bounds: Sequence[tuple[int, int]], *, keep: bool) -> Store:
        """The store, whole.

        Args:
            available: records that were read, chosen or not.
            bounds: of each source, as `strop.data.mixture.Mixture.bounds` has it.
            keep: whether it may be kept: whether the files are still those of its key.
        """
        try:
            self._writer.finish(available, bounds)
        except OSError:
            self._move_elsewhere()
            self._writer.finish(available, bounds)
        content = _content(self._file, self._writer.at)
        if self._staging and self._path and keep and len(content) <= MOST_BYTES:
            with suppress(OSError):
                os.fsync(self._file.fileno())
                Path(self._staging).replace(self._path)
                self._staging = ""
            _drop_oldest(self._path.parent)
        return Store(content, self._files)

    def _open(self) -> BinaryIO:
        if self._path is not None:
            with suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                handle, self._staging = tempfile.mkstemp(_STAGING, f".{self._path.stem[:16]}-", self._path.parent)
                return os.fdopen(handle, "w+b", buffering=0)
        return _temporary()

    def _move_elsewhere(self) -> None:
        """What is written so far goes to a temporary file, where there is one that is not yet used.

        Raises:
            StropError: this is the temporary file, and no more can be written to it.
        """
        if not self._staging:
            raise StropError(
                f"encoded samples do not fit into {tempfile.gettempdir()}",
                found=f"no room behind {self._writer.at} bytes",
                do="make room there, or name another folder in the variable TMPDIR",
            )
        elsewhere = _temporary()
        self._file.seek(0)
        left = self._writer.at
        while left:
            piece = self._file.read(min(left, 1 << 20))
            elsewhere.write(piece)
            left -= len(piece)
        self._file.close()
        with suppress(OSError):
            Path(self._staging).unlink(missing_ok=True)
        self._staging = ""
        self._file = self._writer.file = elsewhere


def key_of(
    settings: Mapping[str, Any], tokenizer: Tokenizer, longest: int | None, seed: int | None, content: bytes
) -> bytes | None:
    """Name everything that decides the samples of a source.

    Args:
        settings: the recipe's section ``data``, all of its fields.
        tokenizer: the model's tokenizer.
        longest: the longest sample.
        seed: the recipe's seed, where it chooses rows; else None.
        content: what the files hold, and how much of it is used (`strop.data.reading.Reading.content`).

    Returns:
        32 bytes; None where Strop cannot read its own code.
    """
    code = _code()
    if code is None:
        return None
    # JSON and not the characters' bytes: a setting may hold halves of surrogate pairs, which UTF-8 has no bytes for.
    facts = {
        "python": sys.version,
        "libraries": [jinja2.__version__, tokenizers.__version__, np.__version__],
        "template": [tokenizer.template.source, tokenizer.template.name, tokenizer.template.tokens],
        "tokens": [tokenizer.special_tokens, tokenizer.stop_tokens],
        "settings": {name: value for name, value in settings.items() if name not in _COUNTED_ELSEWHERE},
        "seed": seed,
        "longest": longest,
    }
    digest = hashlib.sha256()
    for part in (code, tokenizer.backend.to_str().encode(), json.dumps(facts, sort_keys=True).encode("ascii"), content):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def _temporary() -> BinaryIO:
    """In memory until it is large, then in a file without a name."""
    return tempfile.SpooledTemporaryFile(_IN_MEMORY)  # type: ignore[return-value]  # has all methods that are used


def _content(file: BinaryIO, size: int) -> bytes | mmap.mmap:
    """A file's bytes, mapped where there are many."""
    if size > _IN_MEMORY:
        return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    file.seek(0)
    return file.read(size)


def _code() -> bytes | None:
    """SHA-256 over the modules of `strop.data`, this one included; None where their source is not there."""
    digest = hashlib.sha256()
    try:
        files = sorted(Path(__file__).parent.glob("*.py"))
        for file in files:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    except OSError:
        return None
    return digest.digest() if files else None


def _drop_oldest(folder: Path) -> None:
    """Hold a folder to `MOST_FILES` and `MOST_BYTES`, and take away what broken-off writers left."""
    found: list[tuple[float, int, Path]] = []
    with suppress(OSError):
        for file in folder.iterdir():
            with suppress(OSError):  # another process may drop it at the same time
                status = file.stat()
                if file.suffix == SUFFIX:
                    found.append((status.st_mtime, status.st_size, file))
                elif file.suffix == _STAGING and status.st_mtime < time.time() - _FORSAKEN_SECONDS:
                    file.unlink()
    total = 0
    for number, (_, size, file) in enumerate(sorted(found, reverse=True)):
        total += size
        if number >= MOST_FILES or total > MOST_BYTES:
            with suppress(OSError):
                file.unlink()
