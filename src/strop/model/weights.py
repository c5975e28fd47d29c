"""Named tensors out of a model folder's safetensors, one at a time: the model is never in memory as a whole.

A folder holds `model.safetensors`, or shards with `model.safetensors.index.json`. Names, shapes and dtypes come from
the headers, which are checked against the spec before the first weight is read; a shard's name may not lead out of
the folder. Pickled weights (`*.bin`, `*.pt`) are never opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from strop.errors import ModelError
from strop.foreign import MOST_CONFIG_BYTES, parse_json, read_json, resolved_inside
from strop.model.spec import PROJECTIONS, DecoderSpec, module_path

if TYPE_CHECKING:
    import torch
    from torch import Tensor

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a tensor lies: bytes [start, end) of a file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class WeightReader:
    """The tensors of a model folder, by Hugging Face's names.

    Raises:
        ModelError: no safetensors, a truncated or broken file, a missing tensor or a wrong shape.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = _weight_files(folder)
        self._entries: dict[str, _Entry] = {}
        for path in self.files:
            self._entries.update(_read_header(path))

    def check(self, spec: DecoderSpec) -> None:
        """Compares names and shapes with what the spec asks for, before anything is read."""
        if spec.layers > len(self._entries):
            raise ModelError(
                f"{self.folder}: config.json and the weights are not of one model",
                expected=f"{spec.layers:,} layers, as config.json says",
                found=f"{len(self._entries):,} tensors",
                do="fetch the model again",
            )
        for name, shape in expected_shapes(spec).items():
            entry = self._entries.get(name)
            found = entry.shape if entry else None
            if found != shape:
                raise ModelError(
                    f"{self.folder}: tensor {name} is {'missing' if found is None else 'of the wrong shape'}",
                    expected=f"shape {list(shape)}, as config.json says",
                    found="no such tensor" if found is None else f"shape {list(found)}",
                    do="config.json and the weights must be of one model; fetch the model again",
                )

    def read(self, name: str) -> Tensor:
        """One tensor, in the dtype of the file.

        Plain reads, not a memory map: mapped pages would count as the process's memory until the whole model is in it.
        """
        import torch

        entry, dtype = self._entries[name], self._dtype(name)
        buffer = bytearray(entry.end - entry.start)
        with entry.file.open("rb") as file:
            file.seek(entry.start)
            file.readinto(buffer)
        return torch.frombuffer(buffer, dtype=dtype).view(entry.shape)

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

    def item_bytes(self, name: str) -> int:
        """Bytes of a number of a tensor, as the file has it."""
        return self._dtype(name).itemsize

    def _dtype(self, name: str) -> torch.dtype:
        import torch

        entry = self._entries[name]
        dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}.get(entry.dtype)
        if dtype is None:
            raise ModelError(
                f"{entry.file}: tensor {name} holds {entry.dtype}",
                expected="F32, F16 or BF16 weights",
                found=entry.dtype,
                do="use the original, unquantised model",
            )
        return dtype

    def sha256(self, progress: Callable[[int], None] | None = None) -> str:
        """One hash over all weight files, in the order of their names."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
                    if progress:
                        progress(len(block))
        return digest.hexdigest()


def expected_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a decoder of this spec reads."""
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (spec.vocabulary, spec.hidden)}
    for layer in range(spec.layers):
        for name in PROJECTIONS:
            path, shape = module_path(layer, name), spec.projection_shape(name)
            shapes[f"{path}.weight"] = shape
            if spec.has_bias(name):
                shapes[f"{path}.bias"] = shape[:1]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{norm}.weight"] = (spec.hidden,)
    shapes[FINAL_NORM] = (spec.hidden,)
    if not spec.tied_head:
        shapes[HEAD] = (spec.vocabulary, spec.hidden)
    return shapes


def _read_header(path: Path) -> dict[str, _Entry]:
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
            entries[name] = _Entry(path, info["dtype"], tuple(info["shape"]), 8 + length + start, 8 + length + end)
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
        do="pickled weights can run code and are never opened: fetch the safetensors of the model"
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
        if Path(str(name)).name != name or not path.is_file():
            raise ModelError(
                f"{index} names the shard {name!r}",
                expected="a file in the same folder",
                found="no such file" if Path(str(name)).name == name else "a path that leads elsewhere",
                do="fetch the model again",
            )
        files.append(path)
    return files
