"""Open a GGUF file without trusting it.

GGUF is llama.cpp's model file: a head of key-value pairs and tensor descriptions, then the tensors' bytes.

    "GGUF" version tensor_count key_count │ key kind value … │ name shape type offset … │ padding │ tensor bytes …

The `gguf` library parses it by slicing a memory map. A slice past the end of a file is silently empty, so an array
that claims 2^60 numbers makes the library loop until memory is gone, and arrays within arrays make it recurse. That is
why the key-value part is walked here first, with every length checked against the bytes that are left; the library
parses only what passed. Whatever it refuses after that becomes a `ModelError` that names the file.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn, Self, TypeVar

import numpy as np
from gguf.gguf_reader import GGUFReader, ReaderTensor

from strop.errors import ModelError

T = TypeVar("T", str, int, float, bool)

# Far above any real model (the largest vocabularies have 262,144 tokens, with as many scores and types and twice as
# many merges; the deepest models have a few thousand tensors), and low enough to bound what a hostile file can cost.
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_ARRAY_ITEMS = 1 << 22

_STRING, _ARRAY = 8, 9
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_KIND_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


class GGUFFile:
    """A GGUF file whose structure was checked: typed metadata by key, tensors by name.

    The tensors' bytes stay in the file (memory-mapped) until they are looked at. Use it as a context manager, or call
    `close`, so that the file can be deleted on Windows too.

    Args:
        path: the ``.gguf`` file.

    Raises:
        ModelError: the file is missing, truncated, not GGUF, or breaks the format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                _MetadataWalk(self.path, file).run()
            with np.errstate(over="ignore"):  # a hostile offset wraps around; the reader then finds too few bytes
                self._reader: GGUFReader | None = GGUFReader(self.path)
        except FileNotFoundError:
            raise ModelError(f"{self.path} does not exist", expected="a .gguf file", do="check the path") from None
        except OSError as error:
            raise ModelError(
                f"{self.path} cannot be opened", expected="a .gguf file that can be read", found=str(error)
            ) from None
        except (ValueError, LookupError, TypeError, ArithmeticError) as error:
            self.refuse("it breaks the GGUF format", found=f"{type(error).__name__}: {error}")
        if self.value("split.count", int, 1) > 1:
            self.refuse(
                "it is one part of a model that was split over several files",
                expected="the whole model in one file",
                do="join the parts with llama.cpp's llama-gguf-split --merge",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file. Arrays that `tensors` gave out keep their part of the map alive."""
        self._reader = None

    @property
    def reader(self) -> GGUFReader:
        """The library's reader of the open file.

        Raises:
            ValueError: the file was closed.
        """
        if self._reader is None:
            raise ValueError(f"{self.path} is closed")
        return self._reader

    @property
    def tensors(self) -> dict[str, ReaderTensor]:
        """The library's tensor descriptions, by GGUF name, in the file's order."""
        return {tensor.name: tensor for tensor in self.reader.tensors}

    def refuse(
        self,
        reason: str,
        *,
        expected: str = "a complete GGUF file of version 2 or 3",
        found: str = "",
        do: str = "download the file again, or use another model",
    ) -> NoReturn:
        """Raise the `ModelError` that says why this file cannot be used."""
        _refuse(self.path, reason, expected=expected, found=found, do=do)

    def has(self, key: str) -> bool:
        """Whether the metadata has this key."""
        return key in self.reader.fields

    def value(self, key: str, kind: type[T], default: T | None = None) -> T:
        """One metadata value.

        Args:
            key: the metadata's name, such as ``llama.block_count``.
            kind: str, int, float (whole numbers pass) or bool.
            default: returned when the key is missing; None makes the key required.

        Raises:
            ModelError: the key is missing and required, or its value is of another kind.
        """
        if default is not None and not self.has(key):
            return default
        value = self._contents(key)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            self.refuse(f"metadata {key} is of the wrong kind", expected=_KIND_NAMES[kind], found=repr(value)[:80])
        return value

    def values(self, key: str, kind: type[T]) -> list[T]:
        """One metadata array, every item of the given kind.

        Raises:
            ModelError: the key is missing, or is not an array of that kind.
        """
        values = self._contents(key)
        if not isinstance(values, list) or any(type(value) is not kind for value in values):
            self.refuse(f"metadata {key} is of the wrong kind", expected=f"a list, each item {_KIND_NAMES[kind]}")
        return values

    def _contents(self, key: str) -> Any:
        field = self.reader.get_field(key)
        if field is None:
            self.refuse(f"metadata {key} is missing", expected=f"{key} in the file's metadata")
        try:
            return field.contents()
        except (ValueError, LookupError) as error:  # text that is not UTF-8, an empty value
            self.refuse(f"metadata {key} cannot be read", found=str(error))


def _refuse(path: Path, reason: str, *, expected: str, found: str, do: str) -> NoReturn:
    raise ModelError(f"{path} cannot be used: {reason}", expected=expected, found=found, do=do) from None


class _MetadataWalk:
    """Steps over the key-value part of a GGUF file, checking every length against the file's size."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self.position = 0
        self.array_items = 0

    def run(self) -> None:
        """Walk over everything before the tensor descriptions; raise ModelError at the first impossible length."""
        magic = self.file.read(4)
        self.position = 4
        if magic != b"GGUF":
            self.refuse("it is not a GGUF file", found=f"first bytes {magic!r}")
        version = self.number("<I")
        if version not in (2, 3):
            byte_order = " (a file for big-endian machines)" if version and version & 0xFFFF == 0 else ""
            self.refuse("its version is not supported", found=f"version {version}{byte_order}")
        tensors, keys = self.number("<Q"), self.number("<Q")
        if tensors > MAX_TENSORS or keys > MAX_KEYS:
            self.refuse("its counts are impossible", found=f"{tensors:,} tensors and {keys:,} metadata keys")
        for _ in range(keys):
            self.skip(self.number("<Q"))
            self.skip_value(self.number("<I"))

    def skip_value(self, kind: int) -> None:
        if kind != _ARRAY:
            self.skip_items(kind, 1)
            return
        item_kind, items = self.number("<I"), self.number("<Q")
        self.array_items += items
        if item_kind == _ARRAY:
            self.refuse("it holds an array of arrays", expected="arrays of numbers or texts only")
        if self.array_items > MAX_ARRAY_ITEMS:
            self.refuse(
                "its metadata is impossibly long",
                expected=f"at most {MAX_ARRAY_ITEMS:,} array items",
                found=f"{self.array_items:,}",
            )
        self.skip_items(item_kind, items)

    def skip_items(self, kind: int, items: int) -> None:
        if kind == _STRING:
            for _ in range(items):
                self.skip(self.number("<Q"))
        elif kind in _SCALAR_BYTES:
            self.skip(items * _SCALAR_BYTES[kind])
        else:
            self.refuse("it holds metadata of an unknown kind", found=f"kind {kind} at byte {self.position:,}")

    def number(self, layout: str) -> int:
        length = struct.calcsize(layout)
        self.check(length)
        self.position += length
        return int(struct.unpack(layout, self.file.read(length))[0])

    def skip(self, length: int) -> None:
        self.check(length)
        self.position += length
        self.file.seek(length, os.SEEK_CUR)

    def check(self, length: int) -> None:
        if length > self.size - self.position:
            self.refuse(
                "it ends in the middle of its head",
                found=f"{length:,} bytes wanted at byte {self.position:,} of {self.size:,}",
            )

    def refuse(
        self, reason: str, *, found: str = "", expected: str = "a complete GGUF file of version 2 or 3"
    ) -> NoReturn:
        _refuse(self.path, reason, expected=expected, found=found, do="download the file again, or use another model")
