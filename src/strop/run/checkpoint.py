"""Checkpoints: a folder a step, whole or not there, every file hashed.

    .staging-step-000100-1f2e3d4c/   files, each fsynced; manifest.json last; the folder fsynced
        ──rename──▶ step-000100/     the folder above fsynced, then read back and verified; only now may older ones go

Loading takes the newest that verifies: names, kinds, lengths and hashes of all files, and the manifest's own hash. Two
that verify are kept. What is in the files, and what identity says, is the caller's business: this module needs no
torch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from strop.errors import InputError, SaveError
from strop.foreign import parse_json
from strop.run import disk
from strop.run.log import Mark

SCHEMA = 2
KEEP = 2
_MANIFEST = "manifest.json"
_LARGEST_MANIFEST = 1 << 20
_MARGIN = 1 << 16
"""Bytes beside the files' own: the manifest, and the blocks of folders and file ends."""
_NAME = re.compile(r"step-(\d{6,18})|\.replaced-step-(\d{6,18})-[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        identity: what the run depended on, as it was given to `write_checkpoint`.
        logs: how far each log had come.
    """

    path: Path
    step: int
    identity: Mapping[str, Any] = field(default_factory=dict)
    logs: Mapping[str, Mark] = field(default_factory=dict)


def write_checkpoint(
    folder: Path,
    step: int,
    files: Mapping[str, disk.File],
    identity: Mapping[str, Any] | None = None,
    logs: Mapping[str, Mark] | None = None,
) -> Checkpoint:
    """Writes a checkpoint and drops those that are no longer needed.

    Args:
        folder: the run's folder of checkpoints.
        step: optimiser steps done.
        files: what to write, by name.
        identity: what the run depends on; goes into the manifest.
        logs: the marks of the run's logs; everything up to them has to be on the disk already.

    Raises:
        SaveError: it could not be written, or did not read back as written; no older one was touched.
    """
    need = sum(file.bytes for file in files.values()) + _MARGIN
    head = {"schema": SCHEMA, "step": step, "identity": dict(identity or {})}
    head["logs"] = {name: asdict(mark) for name, mark in (logs or {}).items()}
    final = folder / _name(step)
    staged = folder / f"{disk.STAGED}{final.name}-{secrets.token_hex(4)}"
    try:
        disk.make_folder(folder)
        disk.sweep(folder)
        free = disk.free_bytes(folder)
        if free is not None and free < need:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        disk.make_folder(staged)
        written = {name: asdict(disk.write_file(staged / name, file.chunks)) for name, file in files.items()}
        manifest = _signed({**head, "files": written})
        disk.write_file(staged / _MANIFEST, [_text(manifest)])
        disk.sync_folder(staged)
        _publish(staged, final)
    except OSError as error:
        disk.discard(staged)
        raise _failed(step, final, error.strerror or str(error), need) from None
    try:
        checkpoint = verify(final)
    except InputError as error:
        disk.discard(final)
        raise _failed(step, final, f"read back, {error.found}", need) from None
    _drop_old(folder, checkpoint)
    return checkpoint


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, or None, and why newer ones were passed over."""
    skipped: list[str] = []
    for _, path in _candidates(folder):
        try:
            return verify(path), skipped
        except InputError as error:
            skipped.append(str(error))
    return None, skipped


def verify(path: Path) -> Checkpoint:
    """Reads a checkpoint's manifest and compares every file with it.

    Raises:
        InputError: a file is missing, is no file, has another length or other bytes.
    """
    try:
        manifest = _read_manifest(path / _MANIFEST)
        if manifest.get("schema") != SCHEMA:
            raise ValueError(f"schema {manifest.get('schema')}, this version of Strop reads {SCHEMA}")
        if _signed(manifest)["sha256"] != manifest["sha256"]:
            raise ValueError(f"{_MANIFEST} is not what was written")
        step = manifest["step"]
        if type(step) is not int or step != _step_of(path):
            raise ValueError(f"{_MANIFEST} is that of step {step}")
        for name, facts in manifest["files"].items():
            _verify_file(path, name, facts)
        marks = {name: Mark(**facts) for name, facts in manifest["logs"].items()}
        return Checkpoint(path, step, dict(manifest["identity"]), marks)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"checkpoint {path} is damaged",
            expected="every file with the length and hash that its manifest names",
            found=f"{error}"[:500] or type(error).__name__,
            do="an older checkpoint is used where there is one",
        ) from None


def _publish(staged: Path, final: Path) -> None:
    """Gives a staged checkpoint its name; one that has it already stays readable under another until then.

    Where the name could not be made to last it is taken back: nothing may be dropped for its sake.
    """
    replaced = final.with_name(f".replaced-{final.name}-{secrets.token_hex(4)}")
    if final.exists():
        disk.rename(final, replaced)
    try:
        disk.rename(staged, final)
    except OSError:
        if not staged.exists():
            disk.discard(final)
        raise


def _drop_old(folder: Path, newest: Checkpoint) -> None:
    """Drops what is not needed once a checkpoint has verified.

    Kept are that one and the one before it that verifies. As long as there is none, older ones stay whatever they are:
    what cannot be read today may be readable tomorrow. Newer ones go: the run was resumed before them, so they did not
    verify, and its logs know nothing of them any more.
    """
    kept = {newest.step: newest.path}
    found = list(_candidates(folder))
    for step, path in found:
        if step < newest.step and step not in kept and len(kept) < KEEP and _verifies(path):
            kept[step] = path
    for step, path in found:
        if path not in kept.values() and (step >= newest.step or len(kept) == KEEP):
            disk.discard(path)


def _verifies(path: Path) -> bool:
    try:
        verify(path)
    except InputError:
        return False
    return True


def _verify_file(folder: Path, name: str, facts: Mapping[str, Any]) -> None:
    if Path(name).name != name:
        raise ValueError(f"{name} is no name of a file")
    about = (folder / name).lstat()
    # A link, a pipe or a device is never followed: it may have no end.
    if not stat.S_ISREG(about.st_mode) or about.st_size != facts["bytes"]:
        raise ValueError(f"{name} is not what was written: {about.st_size:,} bytes, {facts['bytes']:,} were")
    with (folder / name).open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
            raise ValueError(f"{name} is not what was written")


def _read_manifest(path: Path) -> dict[str, Any]:
    about = path.lstat()
    if not stat.S_ISREG(about.st_mode) or about.st_size > _LARGEST_MANIFEST:
        raise ValueError(f"{_MANIFEST} is no file of at most {_LARGEST_MANIFEST:,} bytes")
    manifest = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(manifest, dict):
        raise ValueError(f"{_MANIFEST} holds no object")
    return manifest


def _signed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest with the hash of all the rest of it, so that no change of a fact in it goes unseen."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return {**rest, "sha256": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def _text(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=2) + "\n").encode()


def _failed(step: int, final: Path, reason: str, need: int) -> SaveError:
    return disk.save_error(
        f"the checkpoint of step {step} could not be saved", final, reason, final.parent.parent, need
    )


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _step_of(path: Path) -> int | None:
    """The step that a folder's name gives; None where it is no name of a checkpoint."""
    match = _NAME.fullmatch(path.name)
    return int(match[1] or match[2]) if match else None


def _candidates(folder: Path) -> Iterator[tuple[int, Path]]:
    """Checkpoint folders with their steps, newest first; of one step the replaced one last."""
    paths = list(folder.iterdir()) if folder.is_dir() else []
    found = [(step, path) for path in paths if (step := _step_of(path)) is not None]
    yield from sorted(found, key=lambda pair: (pair[0], pair[1].name), reverse=True)
