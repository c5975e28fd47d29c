"""Named tensors out of a model folder's safetensors, one at a time: the model is never in memory as a whole.

A folder holds `model.safetensors`, or shards with `model.safetensors.index.json`. Names, shapes and dtypes come from
the headers, which are checked against the spec before the first weight is read; a shard's name may not lead out of
the folder. Pickled weights (`*.bin`, `*.pt`) are never opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from strop.errors import ModelError
from strop.foreign import MOST_CONFIG_BYTES, is_there, parse_json, read_json, resolved_inside
from strop.hub.hashes import file_sha256
from strop.model.prequantized import PackedState, read_packed, states_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from strop.kernels.nf4 import NF4Tensor


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies: bytes [start, end) of a file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class WeightReader:
    """The tensors of a model folder, by the names of its files.

    Raises:
        ModelError: no safetensors, a truncated or broken file, a missing tensor or a wrong shape.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = _weight_files(folder)
        self._entries: dict[str, Entry] = {}
        for path in self.files:
            self._entries.update(read_header(path))
        self._packed: dict[str, PackedState] = states_of(self, self._entries)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the files and its shape; one in NF4 counts once, with the shape of its weight."""
        parts = tuple(f"{name}." for name in self._packed)
        plain = {name: entry.shape for name, entry in self._entries.items() if not name.startswith(parts)}
        return {**plain, **{name: packed.shape for name, packed in self._packed.items()}}

    def check_layers(self, layers: int) -> None:
        """Refuses more layers than the files have tensors, before anything is made for each."""
        if layers > len(self._entries):
            raise ModelError(
                f"{self.folder}: config.json and the weights are not of one model",
                expected=f"{layers:,} layers, as config.json says",
                found=f"{len(self._entries):,} tensors",
                do="fetch the model again",
            )

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Compares names and shapes with what the spec asks for, before anything is read."""
        for name, shape in shapes.items():
            entry, packed = self._entries.get(name), self._packed.get(name)
            found = packed.shape if packed else entry.shape if entry else None
            if found != shape:
                raise ModelError(
                    f"{self.folder}: tensor {name} is {'missing' if found is None else 'of the wrong shape'}",
                    expected=f"shape {list(shape)}, as config.json says",
                    found="no such tensor" if found is None else f"shape {list(found)}",
                    do="config.json and the weights must be of one model; fetch the model again",
                )

    def read(self, name: str, rows: Sequence[tuple[int, int]] | None = None) -> Tensor:
        """One tensor, in the dtype of the file; float32 where that is quantised.

        Plain reads, not a memory map: mapped pages would count as the process's memory until the whole model is in it.

        Args:
            name: a tensor.
            rows: ranges [start, end) of its rows, read alone and in this order; None for all.
        """
        import torch

        if name in self._packed:
            from strop.kernels import nf4

            whole = nf4.dequantize(read_packed(self, name, self._packed[name]))
            return whole if rows is None else torch.cat([whole[start:end] for start, end in rows])
        entry, dtype = self._entries[name], self._dtype(name)
        row_bytes = (entry.end - entry.start) // entry.shape[0]
        rows = [(0, entry.shape[0])] if rows is None else rows
        count = sum(end - start for start, end in rows)
        buffer = bytearray(count * row_bytes)
        view, at = memoryview(buffer), 0
        with entry.file.open("rb") as file:
            for start, end in rows:
                file.seek(entry.start + start * row_bytes)
                at += file.readinto(view[at : at + (end - start) * row_bytes])
        return torch.frombuffer(buffer, dtype=dtype).view(count, *entry.shape[1:])

    def read_rows(self, name: str, rows_U: Tensor) -> Tensor:
        """Some rows of a matrix [U, columns], in the dtype of the file; each is a read of its own.

        Args:
            name: a matrix.
            rows_U: int64 [U], the rows' numbers.
        """
        import torch

        entry, dtype = self._entries[name], self._dtype(name)
        row_bytes = entry.shape[1] * dtype.itemsize
        buffer = bytearray(len(rows_U) * row_bytes)
        view = memoryview(buffer)
        with entry.file.open("rb", buffering=0) as file:
            for place, row in enumerate(rows_U.tolist()):
                file.seek(entry.start + row * row_bytes)
                file.readinto(view[place * row_bytes : (place + 1) * row_bytes])
        return torch.frombuffer(buffer, dtype=dtype).view(len(rows_U), entry.shape[1])

    def raw(self, name: str) -> Tensor:
        """One tensor of bytes or float32, as the file has it.

        Raises:
            KeyError: no tensor has that name.
        """
        return read_tensor(self._entries[name])

    def is_quantized(self, name: str) -> bool:
        """Whether the file holds a tensor in NF4."""
        return name in self._packed

    def quantized(self, name: str) -> NF4Tensor:
        """A tensor that the file holds in NF4, byte for byte.

        Raises:
            ModelError: a part of it is missing or damaged.
        """
        return read_packed(self, name, self._packed[name])

    def file_bytes(self, name: str) -> int:
        """Bytes of a tensor in its file."""
        return self._entries[name].end - self._entries[name].start

    def item_bytes(self, name: str) -> int:
        """Bytes of a number of a tensor, as the file has it."""
        return 4 if name in self._packed else self._dtype(name).itemsize

    def _dtype(self, name: str) -> torch.dtype:
        import torch

        entry = self._entries[name]
        dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}.get(entry.dtype)
        if dtype is None:
            raise ModelError(
                f"{entry.file}: tensor {name} holds {entry.dtype}",
                expected="F32, F16 or BF16 weights",
                found=entry.dtype,
                do="use the original model in 16 bits",
            )
        return dtype

    def sha256(self, progress: Callable[[int, int], None] | None = None) -> str:
        """One hash over all weight files: the file's own, or that of the shards' hashes in the order of their names.

        A file is read for it once; after that its hash is remembered (`strop.hub.hashes`).

        Args:
            progress: called with (bytes done, bytes in all).
        """
        total, done = sum(path.stat().st_size for path in self.files), 0

        def told(count: int) -> None:
            nonlocal done
            done += count
            if progress:
                progress(done, total)

        hashes = [file_sha256(path, told) for path in self.files]
        if len(hashes) == 1:
            return hashes[0]
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def read_tensor(entry: Entry) -> Tensor:
    """A tensor of bytes or floats, whole."""
    import torch

    dtypes = {"U8": torch.uint8, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    if entry.dtype not in dtypes:
        raise ModelError(
            f"{entry.file} holds {entry.dtype}",
            expected=" or ".join(dtypes),
            found=entry.dtype,
            do="use the original model in 16 bits",
        )
    buffer = bytearray(entry.end - entry.start)
    with entry.file.open("rb", buffering=0) as file:
        file.seek(entry.start)
        if file.readinto(buffer) != len(buffer):
            raise OSError(f"{entry.file} ends at byte {entry.file.stat().st_size:,}")
    if not buffer:
        return torch.empty(entry.shape, dtype=dtypes[entry.dtype])
    return torch.frombuffer(buffer, dtype=dtypes[entry.dtype]).view(entry.shape)


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of one file; the safetensors library checks the header (size, overlaps, end of file) first."""
    try:
        real = resolved_inside(path)
        with real.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > MOST_CONFIG_BYTES:
            raise ValueError(f"a header of {length:,} bytes, at most {MOST_CONFIG_BYTES:,} are read")
        with safe_open(real, framework="np"), real.open("rb") as file:
            file.seek(8)
            header = parse_json(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be read",
            expected="a whole safetensors file",
            found=f"{error} ({path.stat().st_size if path.exists() else 0:,} bytes)",
            do="fetch the file again; it may have been cut short",
        ) from None
    entries = {}
    for name, info in header.items():
        if name != "__metadata__":
            start, end = info["data_offsets"]
            entries[name] = Entry(path, info["dtype"], tuple(info["shape"]), 8 + length + start, 8 + length + end)
    return entries


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    if index.is_file():
        return _shards(folder, index)
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    raise ModelError(
        f"{folder} has no model.safetensors",
        expected="model.safetensors, or shards with model.safetensors.index.json",
        found=", ".join(pickled) if pickled else "no weights",
        do="pickled weights can run code and are never opened: fetch the model's safetensors, or convert it where you "
        f"trust it: AutoModelForCausalLM.from_pretrained({str(folder)!r}).save_pretrained(NEW_FOLDER), of transformers"
        if pickled
        else "fetch the model again",
    )


def _shards(folder: Path, index: Path) -> list[Path]:
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        raise ModelError(f"{index} cannot be read", found=repr(error), do="fetch the model again") from None
    files = []
    for name in names:
        path = folder / str(name)
        if Path(str(name)).name != name or not is_there(path) or not path.is_file():
            raise ModelError(
                f"{index} names the shard {name!r}",
                expected="a file in the same folder",
                found="no such file" if Path(str(name)).name == name else "a path that leads elsewhere",
                do="fetch the model again",
            )
        files.append(path)
    return files
