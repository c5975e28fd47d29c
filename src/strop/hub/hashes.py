"""SHA-256 of files, remembered: a model of many gigabytes is read once to be hashed, not at every start.

$STROP_CACHE/hashes/<hash of the path>.json     {"file": [inode, size, mtime, ctime], "sha256": …}

A remembered hash holds as long as the file's inode, size and both times are what they were; the time of change cannot
be set by a program, so a file that was written to since has another one. A file that changed in the last two seconds
(the coarsest file system's grain) is hashed but not remembered.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

_GRAIN_SECONDS = 2.0
_PIECE = 1 << 22


def cache_folder() -> Path:
    """Where Strop keeps what it can fetch or make again: $STROP_CACHE, or the user's cache folder of this system."""
    import platformdirs

    chosen = os.environ.get("STROP_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("strop", appauthor=False)


def file_sha256(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """The SHA-256 of a file, in hexadecimal; from memory where the file is the one that was hashed before.

    Args:
        path: the file.
        progress: called with the bytes that were read, piece by piece.

    Raises:
        OSError: the file cannot be read.
    """
    before = _identity(path)
    kept = known_sha256(path)
    if kept is not None:
        return kept
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            if progress:
                progress(len(piece))
    found = digest.hexdigest()
    if _identity(path) == before:
        remember_sha256(path, found)
    return found


def known_sha256(path: Path) -> str | None:
    """The remembered SHA-256 of a file; None where there is none, or the file is no longer the same."""
    try:
        kept = json.loads(_place(path).read_text(encoding="utf-8"))
        return str(kept["sha256"]) if kept["file"] == _identity(path) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def remember_sha256(path: Path, sha256: str) -> None:
    """Remember what a file's SHA-256 is, unless it changed a moment ago. What cannot be kept is not kept."""
    with contextlib.suppress(OSError):
        status = path.stat()
        if time.time() - max(status.st_mtime, status.st_ctime) < _GRAIN_SECONDS:
            return
        place = _place(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        staging = place.with_name(f"{place.name}.{os.getpid()}.part")
        staging.write_text(json.dumps({"file": _identity(path), "sha256": sha256}), encoding="utf-8")
        staging.replace(place)


def _identity(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _place(path: Path) -> Path:
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    return cache_folder() / "hashes" / f"{name}.json"
