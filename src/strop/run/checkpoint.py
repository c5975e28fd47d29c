"""Checkpoints: a folder a step, whole or not there, every file hashed.

A checkpoint is written into `.staging-…` beside its final place, each file is fsynced, `manifest.json` (step and
SHA-256 of every file) comes last, then the folder is renamed. Loading takes the newest whose hashes agree. Two are
kept; an older one goes only after a newer one was read back and verified. What is in the files is the caller's
business: this module needs no torch.

Every byte counts: files are held by their hashes, the manifest's step by the folder's name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from strop.errors import InputError

SCHEMA = 1
KEEP = 2
_MANIFEST = "manifest.json"
_STAGING = ".staging-"
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint: its folder and its step."""

    path: Path
    step: int


def write_checkpoint(folder: Path, step: int, write_files: Callable[[Path], None]) -> Checkpoint:
    """Writes a checkpoint and drops those that are no longer needed.

    Args:
        folder: the run's folder of checkpoints.
        step: optimiser steps done.
        write_files: writes the files into the folder it is given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stray in folder.glob(f"{_STAGING}*"):
        shutil.rmtree(stray, ignore_errors=True)
    staging = folder / f"{_STAGING}{step:06d}-{os.getpid()}"
    staging.mkdir()
    write_files(staging)
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(staging.iterdir())}
    for name in files:
        sync(staging / name)
    manifest = {"schema": SCHEMA, "step": step, "files": files}
    (staging / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    sync(staging / _MANIFEST)
    _sync_folder(staging)
    final = folder / _name(step)
    if final.exists():
        shutil.rmtree(final)
    staging.rename(final)
    _sync_folder(folder)
    checkpoint = verify(final)
    _drop_all_but(KEEP, folder, step)
    return checkpoint


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, or None, and why newer ones were passed over."""
    skipped: list[str] = []
    for path in _steps(folder).values():
        try:
            return verify(path), skipped
        except InputError as error:
            skipped.append(str(error))
    return None, skipped


def verify(path: Path) -> Checkpoint:
    """Reads a checkpoint's manifest and compares the hash of every file.

    Raises:
        InputError: a file is missing, has another length or other bytes.
    """
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["schema"] != SCHEMA:
            raise ValueError(f"schema {manifest['schema']}, this version of Strop reads {SCHEMA}")
        if path.name != _name(manifest["step"]):
            raise ValueError(f"{_MANIFEST} is that of step {manifest['step']}")
        for name, facts in manifest["files"].items():
            if Path(name).name != name or _sha256(path / name) != facts["sha256"]:
                raise ValueError(f"{name} is not what was written")
        return Checkpoint(path, manifest["step"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"checkpoint {path} is damaged",
            expected="every file with the hash that its manifest names",
            found=f"{error}",
            do="an older checkpoint is used where there is one",
        ) from None


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _steps(folder: Path) -> dict[int, Path]:
    """Checkpoint folders by their step, newest first."""
    paths = folder.iterdir() if folder.is_dir() else ()
    found = {int(match[1]): path for path in paths if (match := _NAME.fullmatch(path.name))}
    return dict(sorted(found.items(), reverse=True))


def _drop_all_but(count: int, folder: Path, step: int) -> None:
    """Keeps the checkpoint of a step and those before it, ``count`` in all.

    A newer one goes as well: the run was resumed before it, so it did not verify, and it may not take the place of a
    whole one.
    """
    steps = _steps(folder)
    kept = [number for number in steps if number <= step][:count]
    for number, path in steps.items():
        if number not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Waits until a file's bytes are on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Makes a rename last; Windows has no handle on a folder to do so."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
