"""The frozen base as it is loaded: each projection in NF4, from the cache, from the file, or quantised just now.

    file ──a thread reads ahead, at most 192 MiB──▶ 16-bit tensor ──NF4, all processors──▶ decoder
                                                                             └──▶ kept for the next load
    kept base ──the same thread──▶ NF4 ──▶ decoder

So the disk and the processors work at the same time, and what is in memory besides the decoder is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from strop.kernels import nf4
from strop.kernels.nf4 import NF4Tensor
from strop.model import nf4_cache
from strop.model.nf4_cache import KeptBase, NewBase, cache_key, new_base, open_kept
from strop.model.nf4_space import most_bytes
from strop.model.tensors import Tensors

T = TypeVar("T", Tensor, NF4Tensor)

AHEAD_BYTES = 192 << 20


@dataclass(frozen=True, slots=True)
class Base:
    """What a decoder's layers are made from.

    Attributes:
        read: a tensor in full, by our name, on the device.
        quantized: a projection in NF4, by our name, on the device.
    """

    read: Callable[[str], Tensor]
    quantized: Callable[[str], NF4Tensor]


@contextmanager
def open_base(tensors: Tensors, device: torch.device) -> Iterator[Base]:
    """The base of a model, for as long as it is being loaded.

    Args:
        tensors: the model.
        device: where the base shall lie.
    """
    names = tensors.projections
    kept, new = _cached(tensors, names)
    ahead = _Ahead(lambda name: _read(tensors, kept, name), names, lambda name: _bytes(tensors, kept, name))

    def quantized(name: str) -> NF4Tensor:
        tensor = ahead.take(name)
        if isinstance(tensor, NF4Tensor):
            return tensor.to(device)
        result = nf4.quantize(tensor.to(device))
        if not result.offset.isfinite():
            tensors.read(name)  # says which number it is
        if new is not None:
            new.add(name, result)
        return result

    try:
        yield Base(lambda name: tensors.read(name).to(device), quantized)
        if new is not None:
            new.keep()
    except BaseException:
        if new is not None:
            new.drop()
        raise
    finally:
        ahead.close()


def _cached(tensors: Tensors, names: list[str]) -> tuple[KeptBase | None, NewBase | None]:
    """The kept base, or one to be kept; neither where the cache is off or there is nothing to gain."""
    reader, table = tensors.reader, tensors.table
    weights = sum(table[name].shape[0] * table[name].shape[1] for name in names)
    if not most_bytes() or weights < nf4_cache.SMALLEST_WEIGHTS:
        return None, None
    if any(reader.is_quantized(table[name].name) for name in names):
        return None, None  # most of it is in NF4 on the disk
    key = cache_key(reader.sha256(), {name: repr(table[name]) for name in names})
    kept = open_kept(key)
    return kept, None if kept else new_base(key, {name: table[name].shape for name in names})


def _read(tensors: Tensors, kept: KeptBase | None, name: str) -> Tensor | NF4Tensor:
    source = tensors.table[name]
    if kept is not None:
        return kept.read(name, source.shape)
    if tensors.reader.is_quantized(source.name) and source.rows is None and not source.change:
        return tensors.reader.quantized(source.name)
    if source.shape[0] * source.shape[1] % nf4.BLOCK:
        return tensors.read(name)
    # The mean of the scales tells whether all weights are finite (a last, partial block would hide it): looking at each
    # takes a third of the time that quantising it does.
    return source.changed(tensors.reader.read(source.name, source.rows))


def _bytes(tensors: Tensors, kept: KeptBase | None, name: str) -> int:
    source = tensors.table[name]
    rows, columns = source.shape
    return rows * columns * (tensors.reader.item_bytes(source.name) if kept is None else 1)


class _Ahead:
    """Reads tensors in an order that is known, a bounded number of bytes before they are asked for."""

    def __init__(self, read: Callable[[str], Tensor | NF4Tensor], names: list[str], size: Callable[[str], int]) -> None:
        self._read, self._size = read, size
        self._next = iter(names)
        self._waiting: dict[str, Future[Tensor | NF4Tensor]] = {}
        self._bytes = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="strop-read")

    def take(self, name: str) -> Tensor | NF4Tensor:
        """A tensor; read now, where it was not read ahead."""
        self._fill()
        future = self._waiting.pop(name, None)
        if future is None:
            return self._read(name)
        tensor = future.result()
        self._bytes -= self._size(name)
        self._fill()
        return tensor

    def close(self) -> None:
        """Forget what nobody asked for."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _fill(self) -> None:
        while self._bytes < AHEAD_BYTES and (name := next(self._next, None)) is not None:
            self._bytes += self._size(name)
            self._waiting[name] = self._thread.submit(self._read, name)
