"""Named tensors as the bytes of a safetensors file, piece by piece: nothing is copied that is in memory already.

    ┌ 8 bytes: length of the head ┬ head: JSON, padded with spaces to a multiple of 8 ┬ tensors, one after another ┐

Format: the safetensors library's README. The bytes are those that its `save` gives; it writes to a path of its own
accord, and a checkpoint has to see every byte on its way to the disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

_DTYPES = {torch.float32: "F32", torch.int64: "I64"}

Content = tuple[int, Iterable[bytes | memoryview]]
"""A file that is still to be written: its length, and its bytes piece by piece."""


def safetensors_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Content:
    """The file of some tensors.

    Args:
        tensors: float32 or int64, on any device; their numbers are taken when their turn comes.
        metadata: texts for the head.
    """
    head = _head(tensors, metadata)
    return len(head) + sum(tensor.nbytes for tensor in tensors.values()), _chunks(head, tensors)


def _chunks(head: bytes, tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    yield head
    for name in sorted(tensors):
        yield tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _head(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> bytes:
    head: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    place = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"{name} is {tensor.dtype}; adapters and moments are float32, counts are int64")
        head[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [place, place + tensor.nbytes],
        }
        place += tensor.nbytes
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
