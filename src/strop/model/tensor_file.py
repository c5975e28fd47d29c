"""A safetensors file written as a stream: its head follows from names, dtypes and shapes alone.

    length of the head │ {"name": {"dtype", "shape", "data_offsets"}, …} │ the tensors' bytes, in any order

Nothing but the tensor that is being written is in memory. Format: the safetensors library's README; the head is padded
with spaces so that the data start at a multiple of 8.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

ITEM_BYTES = {"U8": 1, "F16": 2, "BF16": 2, "F32": 4}

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name → dtype, in safetensors' words, and shape."""


def head_bytes(layout: Layout, about: Mapping[str, str]) -> bytes:
    """The head of a file with these tensors, in this order."""
    head: dict[str, Any] = {"__metadata__": dict(about)}
    place = 0
    for name, (dtype, shape) in layout.items():
        length = ITEM_BYTES[dtype] * prod(shape)
        head[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + length]}
        place += length
    text = json.dumps(head, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def data_bytes(layout: Layout) -> int:
    """Bytes of the tensors alone."""
    return sum(ITEM_BYTES[dtype] * prod(shape) for dtype, shape in layout.values())


class TensorFile:
    """A file to be filled tensor by tensor; a context manager that syncs it to the disk at its end.

    Args:
        path: a new file.
        layout: all its tensors.
        about: metadata.
    """

    def __init__(self, path: Path, layout: Layout, about: Mapping[str, str]) -> None:
        self._layout = layout
        head = head_bytes(layout, about)
        self._places: dict[str, int] = {}
        place = len(head)
        for name, (dtype, shape) in layout.items():
            self._places[name] = place
            place += ITEM_BYTES[dtype] * prod(shape)
        self._file: BinaryIO = path.open("wb")
        self._file.write(head)
        self._file.truncate(place)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def write(self, name: str, content: memoryview | bytes) -> None:
        """The bytes of one tensor.

        Raises:
            ValueError: they are not as many as the layout says.
        """
        dtype, shape = self._layout[name]
        length = ITEM_BYTES[dtype] * prod(shape)
        if memoryview(content).nbytes != length:
            raise ValueError(f"{name}: {memoryview(content).nbytes} bytes, not {length}")
        self._file.seek(self._places[name])
        self._file.write(content)
