"""Turn a GGUF file into a standard model folder, once.

    model.gguf ─▶ .folder.staging-x1y2/  config.json · generation_config.json · tokenizer.json · tokenizer_config.json
                  chat_template.jinja · model.safetensors · strop_source.json
               ─▶ (every file fsynced) rename ─▶ folder/

The folder has its final name only when it is complete, so an interrupted conversion leaves nothing that looks like a
model, and of several processes that convert at once each ends with a complete folder. `strop_source.json` says which
file (SHA-256) it was made from, and the size and SHA-256 of everything in it.

The safetensors file is written as a stream: its head follows from the shapes alone, then one tensor after the other is
dequantised, rounded and written. The whole model is never in memory.

Weights are stored in float16, the norms too, so that the folder has one dtype. Measured on SmolLM2-135M-Instruct
(Q4_1, its embedding Q8_0): the largest relative rounding error is 4.88e-4 (float16's bound is 2^-11), the norms and the
19,599 weights below 2^-14 come through exactly, and the error's norm is 1.9e-4 of the weights' norm, where the rounding
to 4 bits was 8e-2. bfloat16 would be 8 times coarser. A weight that float16 cannot hold is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from strop.errors import ModelError
from strop.model.gguf_reader import GGUFModel
from strop.model.tensor_file import Layout, TensorFile, data_bytes

Progress = Callable[[str, float], None]
"""Called with what is being done and how much of it is done, from 0 to 1."""

SOURCE_FILE = "strop_source.json"
FOLDER_FORMAT = 1  # raised when a conversion of the same file would write other bytes, so that old folders are remade

# A living conversion writes all the time; a staging folder in which nothing was written for this long is left over
# from one that was killed. (Process ids would not do: containers that share a folder do not share them.)
STALE_SECONDS = 600.0

# The tokenizer and what else is written beside the weights.
_SPARE_BYTES = 256 << 20

# How often the finished folder is offered its name while other processes put theirs there and take it away again.
_ATTEMPTS = 8


def gguf_to_folder(
    gguf_path: str | Path, folder: str | Path, progress: Progress | None = None, *, replace: bool = False
) -> Path:
    """Convert a GGUF file to a model folder, unless the folder already holds just that.

    Args:
        gguf_path: a llama-architecture ``.gguf`` file (see `strop.model.gguf_reader`).
        folder: where the model shall be; its parents are made.
        progress: called as the work goes on.
        replace: whether anything else that stands at `folder` is deleted for it.

    Returns:
        `folder`.

    Raises:
        ModelError: the file cannot be used, the folder is taken by something else, or it cannot be written.
    """
    report: Progress = progress or (lambda _message, _share: None)
    source, target = Path(gguf_path), Path(folder)
    source_sha256 = file_sha256(source)
    if is_converted(target, source_sha256):
        return target
    with GGUFModel(source) as model:
        if not replace and target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise ModelError(
                f"{target} is in the way of the model converted from {source.name}",
                expected="no such folder, or one converted from that file",
                do="move it away, or name another folder",
            )
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            sweep_staging(target)
            _require_room(model, target)
            staging = _new_staging(target)
            try:
                _write_folder(model, staging, source_sha256, report)
                _put_in_place(staging, target, source_sha256)
            finally:
                shutil.rmtree(staging, ignore_errors=True)  # gone already, unless something went wrong
        except OSError as error:
            raise ModelError(
                f"{target} cannot be written",
                found=str(error),
                do=f"free {data_bytes(_layout(model)) / 1e9:.1f} GB there, or name another folder",
            ) from error
    return target


def _require_room(model: GGUFModel, target: Path) -> None:
    """Refuses to begin what cannot end: the weights in 16 bits are up to four times the file."""
    needed, free = data_bytes(_layout(model)) + _SPARE_BYTES, shutil.disk_usage(target.parent).free
    if free < needed:
        raise ModelError(
            f"there is no room for {model.path.name} in 16 bits, which it is read through",
            expected=f"{needed / 1e9:.1f} GB free in {target.parent}",
            found=f"{free / 1e9:.1f} GB",
            do="free some, set STROP_CACHE to a folder on another disk, or use the model's own folder of safetensors",
        )


def is_converted(folder: Path, source_sha256: str) -> bool:
    """Whether a folder is a complete conversion of the GGUF file with this SHA-256 (by marker and file sizes)."""
    try:
        marker = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
        return (
            marker["format"] == FOLDER_FORMAT
            and marker["sha256"] == source_sha256
            and all((folder / name).stat().st_size == entry["bytes"] for name, entry in marker["files"].items())
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # no marker, or not one of ours
        return False


def sweep_staging(folder: Path) -> None:
    """Delete what killed conversions to this folder left beside it."""
    prefix = _staging_prefix(folder)
    if not folder.parent.is_dir():
        return
    for entry in folder.parent.iterdir():
        if entry.name.startswith(prefix):
            with contextlib.suppress(OSError):  # another process swept it, or is renaming it
                newest = max(path.stat().st_mtime for path in (entry, *entry.iterdir()))
                if time.time() - newest > STALE_SECONDS:
                    shutil.rmtree(entry, ignore_errors=True)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
        ModelError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read", expected="a file", found=error.strerror or str(error), do="check the path"
        ) from None


def _staging_prefix(folder: Path) -> str:
    return f".{folder.name}.staging-"


def _new_staging(folder: Path) -> Path:
    staging = folder.parent / f"{_staging_prefix(folder)}{secrets.token_hex(8)}"
    staging.mkdir()
    return staging


def _write_folder(model: GGUFModel, staging: Path, source_sha256: str, report: Progress) -> None:
    ends = list(model.eos_token_ids)
    generation = {
        "bos_token_id": model.config["bos_token_id"],
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
        "pad_token_id": model.config["pad_token_id"],
    }
    texts = {
        "config.json": _json_text(model.config),
        "generation_config.json": _json_text(generation),
        "tokenizer.json": _json_text(model.tokenizer_json),
        "tokenizer_config.json": _json_text(model.tokenizer_config),
    }
    if model.chat_template is not None:
        texts["chat_template.jinja"] = model.chat_template
    for name, text in texts.items():
        _write_file(staging / name, text.encode("utf-8"))
    _write_safetensors(model, staging / "model.safetensors", report)
    names = sorted([*texts, "model.safetensors"])
    marker = {
        "format": FOLDER_FORMAT,
        "file": model.path.name,
        "sha256": source_sha256,
        "converted_by": f"strop {version('strop')}",
        "files": {
            name: {"bytes": (staging / name).stat().st_size, "sha256": file_sha256(staging / name)} for name in names
        },
    }
    _write_file(staging / SOURCE_FILE, _json_text(marker).encode("utf-8"))
    _sync_folder(staging)


def _json_text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _write_file(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        _sync_file(file)


def _sync_file(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _layout(model: GGUFModel) -> Layout:
    return {name: ("F16", shape) for name, shape in model.tensor_shapes().items()}


def _write_safetensors(model: GGUFModel, path: Path, report: Progress) -> None:
    layout = _layout(model)
    total, done = data_bytes(layout), 0
    message = f"converting {model.path.name} ({total / 1e9:.1f} GB in 16 bits)"
    report(message, 0.0)
    with TensorFile(path, layout, {"format": "pt"}) as file:
        for name in layout:
            with np.errstate(over="ignore", invalid="ignore"):  # checked below, with the tensor's name
                half = model.tensor(name).astype("<f2", order="C")
            if not np.isfinite(half).all():
                raise ModelError(
                    f"{model.path}: tensor {name} has weights that float16 cannot hold",
                    expected="finite weights between -65504 and 65504",
                    do="download the file again, or use another model",
                )
            file.write(name, half.data)
            done += half.nbytes
            report(message, done / total)


def _put_in_place(staging: Path, target: Path, source_sha256: str) -> None:
    """Give the finished folder its name; if another process was faster, its equal folder stays and ours goes."""
    for attempts_left in range(_ATTEMPTS - 1, -1, -1):
        if is_converted(target, source_sha256):
            return
        _move_aside(target)
        try:
            staging.rename(target)
        except OSError:  # another process put its folder there in this moment
            if not attempts_left:
                raise
        else:
            _sync_folder(target.parent)
            return


def _move_aside(target: Path) -> None:
    """Delete what stands under a name, after a rename, so that it is never seen half deleted."""
    if target.exists():
        aside = _new_staging(target)
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            target.rename(aside / "replaced")
        shutil.rmtree(aside, ignore_errors=True)
