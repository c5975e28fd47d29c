"""Where bases in NF4 are kept, and how much room they may take; no torch, so that `strop doctor` can say it.

STROP_NF4_CACHE is ``off``, or the most gigabytes that all bases may take (default 40); the one that was not used for
longest goes first.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from strop.errors import UsageError
from strop.hub.hashes import cache_folder

BASE, MANIFEST = "base.safetensors", "manifest.json"

_DEFAULT_GIGABYTES = 40.0


def nf4_folder() -> Path:
    """Where the bases are kept."""
    return cache_folder() / "nf4"


def most_bytes() -> int:
    """The most bytes that all bases may take together; 0 where none are kept.

    Raises:
        UsageError: STROP_NF4_CACHE is neither ``off`` nor a number.
    """
    wish = os.environ.get("STROP_NF4_CACHE", "").strip().lower()
    if wish == "off":
        return 0
    try:
        gigabytes = float(wish or _DEFAULT_GIGABYTES)
        if not 0 <= gigabytes < 1e6:
            raise ValueError
    except ValueError:
        raise UsageError(
            f"STROP_NF4_CACHE={wish}: not understood",
            expected="off, or the most gigabytes that kept bases may take",
            found=wish,
            do="unset it for 40 GB",
        ) from None
    return int(gigabytes * 1e9)


def taken_bytes() -> int:
    """Bytes that the kept bases take."""
    return sum(size for _, _, size in kept_bases())


def kept_bases() -> list[tuple[float, Path, int]]:
    """(last use, folder, bytes) of every kept base."""
    found = []
    with contextlib.suppress(OSError):
        for folder in nf4_folder().iterdir():
            with contextlib.suppress(OSError):
                used = (folder / MANIFEST).stat().st_mtime
                found.append((used, folder, (folder / BASE).stat().st_size))
    return sorted(found)
