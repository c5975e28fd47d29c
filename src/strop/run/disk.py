"""The few calls that change a run's files, each with what makes it last.

    write_file    a new file: its chunks, fsync
    append        more of a file that only grows; truncate cuts it back
    replace_file  a whole file in place of another: written beside it, fsync, rename, fsync of the folder
    rename        rename, fsync of the folder
    make_folder   mkdir, fsync of the folder above
    remove        files and folders, links not followed

A file whose fsync failed is never tried again: the system may have dropped its pages and called them clean (Rebello et
al., "Can Applications Recover from fsync Failures?", ATC 2020), so that a second fsync would succeed over lost bytes.
It is abandoned, and what it held is written anew under another name.

No other module of this room changes files, and this one does it through `os` alone: tests put an `os` in its place that
fails, kills or records at the n-th call.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from strop.errors import SaveError

Chunks = Iterable[bytes | memoryview]
"""The content of a file, piece by piece."""

STAGED = ".staging-"
"""Part of the name of everything that is not finished; whoever comes later removes it."""

_BINARY = getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, slots=True)
class Written:
    """Length and SHA-256 of what was written, taken from memory and not from the disk."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class File:
    """A file to be written: its length, known before, and its content piece by piece."""

    bytes: int
    chunks: Chunks


def write_file(path: Path, chunks: Chunks) -> Written:
    """Writes a new file; when it returns, the bytes are on the disk (the name is, once the folder is synced)."""
    digest, size = hashlib.sha256(), 0
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
    try:
        for chunk in chunks:
            digest.update(chunk)
            write_all(handle, chunk)
            size += len(chunk)
        sync_handle(handle)
    finally:
        os.close(handle)
    return Written(size, digest.hexdigest())


def write_all(handle: int, chunk: bytes | memoryview) -> None:
    """Writes all of a chunk, however little the system takes at a time."""
    rest = memoryview(chunk)
    while rest:
        rest = rest[write(handle, rest) :]


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file so that whoever reads, now or after a power cut, finds the old one or the new one."""
    staged = path.with_name(f".{path.name}{STAGED}{secrets.token_hex(4)}")
    try:
        write_file(staged, [content])
        rename(staged, path)
    except OSError:
        discard(staged)
        raise


def open_to_append(path: Path) -> int:
    """A handle that adds to a file, which is made where there is none."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _BINARY, 0o666)


def write(handle: int, chunk: bytes | memoryview) -> int:
    """Writes what the system takes of a chunk, and says how much that was."""
    return os.write(handle, chunk)


def close(handle: int) -> None:
    """Gives a handle back."""
    os.close(handle)


def truncate(path: Path, size: int) -> None:
    """Cuts a file back to its first bytes, for good."""
    handle = os.open(path, os.O_WRONLY | _BINARY)
    try:
        os.ftruncate(handle, size)
        sync_handle(handle)
    finally:
        os.close(handle)


def rename(path: Path, target: Path) -> None:
    """Gives a file or a folder another name in the same folder, for good."""
    os.replace(path, target)  # noqa: PTH105 - the calls of this module go through `os`
    sync_folder(target.parent)


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, for good; one that exists is left alone."""
    if path.is_dir():
        return
    make_folder(path.parent)
    try:
        os.mkdir(path)  # noqa: PTH102
    except FileExistsError:
        if not path.is_dir():
            raise
    sync_folder(path.parent)


def remove(path: Path) -> None:
    """Removes a file, a link or a folder with all that is in it."""
    if path.is_symlink() or not path.is_dir():
        os.unlink(path)  # noqa: PTH108
        return
    for entry in sorted(path.iterdir()):
        remove(entry)
    os.rmdir(path)  # noqa: PTH106


def discard(path: Path) -> None:
    """Removes what can be removed; what cannot is left for the next one who comes by."""
    with contextlib.suppress(OSError):
        remove(path)


def sweep(folder: Path) -> None:
    """Removes from a folder what somebody began and did not finish."""
    for stray in sorted(folder.glob(f".*{STAGED}*")) + sorted(folder.glob(f"{STAGED}*")):
        discard(stray)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder last; Windows has no handle on a folder to do so."""
    if sys.platform == "win32":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        sync_handle(handle)
    finally:
        os.close(handle)


def sync_handle(handle: int) -> None:
    """Waits until a file's bytes are on the disk."""
    if sys.platform == "darwin":
        # There fsync leaves the bytes in the drive's own cache.
        import fcntl

        fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
    else:
        os.fsync(handle)


def free_bytes(path: Path) -> int | None:
    """What a user may still write to the file system of a path; None where it does not say."""
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def save_error(what: str, path: Path, reason: str, run: Path, need: int | None = None) -> SaveError:
    """A failed write in words: where, how much room it needs, how much there is."""
    free = free_bytes(path)
    room = "an unknown number of bytes" if free is None else f"{free:,} bytes"
    return SaveError(
        what,
        expected=f"room for {need:,} bytes in {path.parent}" if need else f"{path} to be writable",
        found=f"{reason}; {room} free",
        do=f"make room or put the permissions right, then go on: strop resume {run}",
        path=str(path),
        need_bytes=need,
        free_bytes=free,
    )
