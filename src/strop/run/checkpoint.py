"""Checkpoints: a folder a step, whole or not there, every file hashed.

A checkpoint is written into `.staging-…` beside its final place, each file is fsynced, `manifest.json` (step and
SHA-256 of every file) comes last, then the folder is renamed. Loading takes the newest whose hashes agree. Two are
kept; an older one goes only after a newer one was read back and verified. What is in the files is the caller's
business: this module needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strop.errors import InputError

SCHEMA = 1
KEEP = 2
_MANIFEST = "manifest.json"
_STAGING = ".staging-"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint: its folder, its step, and what its writer noted beside."""

    path: Path
    step: int
    state: dict[str, Any]


def write_checkpoint(folder: Path, step: int, state: dict[str, Any], write_files: Callable[[Path], None]) -> Checkpoint:
    """Writes a checkpoint and drops those that are no longer needed.

    Args:
        folder: the run's folder of checkpoints.
        step: optimiser steps done.
        state: small JSON values kept in the manifest.
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
        _sync(staging / name)
    manifest = {"schema": SCHEMA, "step": step, "state": state, "files": files}
    (staging / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    _sync(staging / _MANIFEST)
    final = folder / f"step-{step:06d}"
    if final.exists():
        shutil.rmtree(final)
    staging.rename(final)
    _sync_folder(folder)
    checkpoint = verify(final)
    for old in _steps(folder)[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)
    return checkpoint


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, or None, and why newer ones were passed over."""
    skipped: list[str] = []
    for path in _steps(folder):
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
        for name, facts in manifest["files"].items():
            if Path(name).name != name or _sha256(path / name) != facts["sha256"]:
                raise ValueError(f"{name} is not what was written")
        return Checkpoint(path, int(manifest["step"]), dict(manifest["state"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"checkpoint {path} is damaged",
            expected="every file with the hash that its manifest names",
            found=f"{error}",
            do="an older checkpoint is used where there is one",
        ) from None


def _steps(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted(folder.glob("step-*"), reverse=True) if folder.is_dir() else []


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
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
