"""The NF4 base of a model, kept: the second load reads 0.52 bytes a weight instead of quantising 2.

    $STROP_CACHE/nf4/<key>/base.safetensors    packed, absmax8, nested_absmax, offset of every projection
                           manifest.json       the key's parts; size and SHA-256 of the base

The key is a hash over the hash of the model's weight files, what is read of them under which name, and the version of
the quantisation: the content of a folder can only be one thing. A folder is written beside its name and takes it when
it is whole. Its hash is checked once after it was written, and again whenever the file was touched
(`strop.hub.hashes`).

Models that load in a moment are not kept; how much may be is `strop.model.nf4_space`'s.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from strop.hub.hashes import file_sha256, remember_sha256
from strop.kernels import nf4
from strop.kernels.nf4 import NF4Tensor
from strop.model.nf4_space import BASE, MANIFEST, kept_bases, most_bytes, nf4_folder
from strop.model.tensor_file import Layout, TensorFile, data_bytes
from strop.model.weights import read_header, read_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

FORMAT = 1
"""Raised when the same files would give other NF4 bytes, so that old folders are not found."""

SMALLEST_WEIGHTS = 1 << 27
"""Weights below which a base is not kept: 134 million are quantised in a quarter of a second."""

_SPARE_BYTES = 4 << 30
_STALE_SECONDS = 3600.0
_PARTS = ("packed", "absmax8", "nested_absmax", "offset")


def cache_key(weights_sha256: str, reads: Mapping[str, str]) -> str:
    """The name of a base.

    Args:
        weights_sha256: hash of the model's weight files.
        reads: our name of each quantised tensor → what is read of the files for it.
    """
    content = json.dumps([FORMAT, weights_sha256, sorted(reads.items())], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:40]


class KeptBase:
    """A base in the cache, tensor by tensor."""

    def __init__(self, folder: Path) -> None:
        self._entries = read_header(folder / BASE)

    def read(self, name: str, shape: tuple[int, ...]) -> NF4Tensor:
        """One projection."""
        packed, absmax8, nested_absmax, offset = (read_tensor(self._entries[f"{name}.{part}"]) for part in _PARTS)
        return NF4Tensor(packed, absmax8, nested_absmax, offset.view(()), shape)


def open_kept(key: str) -> KeptBase | None:
    """The base of this key, if there is a whole one."""
    folder = nf4_folder() / key
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if (folder / BASE).stat().st_size != manifest["bytes"] or file_sha256(folder / BASE) != manifest["sha256"]:
            shutil.rmtree(folder, ignore_errors=True)
            return None
        os.utime(folder / MANIFEST)  # used now
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return KeptBase(folder)


@dataclass(slots=True)
class NewBase:
    """A base that is being kept, as it is quantised."""

    key: str
    staging: Path
    file: TensorFile
    missing: set[str]

    def add(self, name: str, tensor: NF4Tensor) -> None:
        """Write one projection; after the last one `keep` gives the folder its name."""
        for part in _PARTS:
            self.file.write(f"{name}.{part}", _content(getattr(tensor, part)))
        self.missing.discard(name)

    def keep(self) -> None:
        """Finish: synced, hashed, renamed; and what was not used for longest makes room."""
        if self.missing:
            self.drop()
            return
        self.file.__exit__(None, None, None)
        base = self.staging / BASE
        sha256 = file_sha256(base)
        manifest = {
            "format": FORMAT,
            "key": self.key,
            "bytes": base.stat().st_size,
            "sha256": sha256,
            "written_by": f"strop {version('strop')}",
        }
        (self.staging / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        target = nf4_folder() / self.key
        with contextlib.suppress(OSError):  # another process put its equal folder there
            self.staging.rename(target)
            remember_sha256(target / BASE, sha256)
        shutil.rmtree(self.staging, ignore_errors=True)
        _make_room(keep=target)

    def drop(self) -> None:
        """Give up: nothing is kept."""
        self.file.__exit__(OSError, None, None)
        shutil.rmtree(self.staging, ignore_errors=True)


def new_base(key: str, shapes: Mapping[str, tuple[int, ...]]) -> NewBase | None:
    """A base to be filled; None where none is kept: switched off, too small, no room.

    Args:
        key: see `cache_key`.
        shapes: our name and shape of every projection.
    """
    layout = _layout(shapes)
    needed = data_bytes(layout)
    if sum(map(prod, shapes.values())) < SMALLEST_WEIGHTS or needed > most_bytes():
        return None
    try:
        nf4_folder().mkdir(parents=True, exist_ok=True)
        _sweep()
        if shutil.disk_usage(nf4_folder()).free < needed + _SPARE_BYTES:
            return None
        staging = nf4_folder() / f".{key}.{secrets.token_hex(6)}"
        staging.mkdir()
        return NewBase(key, staging, TensorFile(staging / BASE, layout, {"format": "strop nf4"}), set(shapes))
    except OSError:  # a disk that is full or may not be written to: the model loads without
        return None


def _layout(shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        blocks = -(-prod(shape) // nf4.BLOCK)
        layout |= {
            f"{name}.packed": ("U8", (-(-prod(shape) // 2),)),
            f"{name}.absmax8": ("U8", (blocks,)),
            f"{name}.nested_absmax": ("F32", (-(-blocks // nf4.NESTED_BLOCK),)),
            f"{name}.offset": ("F32", (1,)),
        }
    # float32 first: behind an odd number of bytes it would not be aligned
    return dict(sorted(layout.items(), key=lambda item: item[1][0]))


def _content(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).cpu().numpy().data.cast("B")


def _make_room(keep: Path) -> None:
    kept, limit = kept_bases(), most_bytes()
    total = sum(size for _, _, size in kept)
    for _, folder, size in kept:
        if total <= limit:
            return
        if folder != keep:
            shutil.rmtree(folder, ignore_errors=True)
            total -= size


def _sweep() -> None:
    """Delete what killed processes left."""
    for staging in nf4_folder().glob(".*"):
        with contextlib.suppress(OSError):
            newest = max(path.stat().st_mtime for path in (staging, *staging.iterdir()))
            if time.time() - newest > _STALE_SECONDS:
                shutil.rmtree(staging, ignore_errors=True)
