"""Small files that a stranger may have written: whole, within limits, from inside their folder, as text or JSON.

A config is read with one call, and that call may not be made to read a pipe that never answers, a device that never
ends, a file of the system that a link leads to, or lists in lists until the interpreter gives up. What is wrong is an
`OSError` or a `ValueError`, which every reader of configs words with its own place and cure.

    open what the path leads to ─ a plain file? inside the folder? short enough? ─▶ bytes ─▶ text ─▶ JSON

The cache of Hugging Face's hub keeps a model as links from `snapshots/<commit>/` to `blobs/` beside it, and Strop's own
cache links from `models--owner--name/<commit>/` to the `blobs/` of the same repository there: those are followed.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, Final

MOST_CONFIG_BYTES: Final = 16 << 20
"""Of a config, an index or a manifest; the longest index of shards that models come with has about 1 MB."""

MOST_LEVELS: Final = 100


def resolved_inside(path: Path, folder: Path | None = None) -> Path:
    """Where a file of a folder really lies.

    Args:
        path: the file.
        folder: the folder that it may not leave (default: the one that it stands in).

    Raises:
        OSError: there is no such file.
        ValueError: a link leads out of the folder, or it is a pipe, a device or a folder.
    """
    root = (folder or path.parent).resolve()
    real = path.resolve(strict=True)
    blobs = (root.parent.parent / "blobs",) if root.parent.name == "snapshots" else ()
    repository = root.parent.name if root.parent.name.startswith("models--") else None
    same_repository = real.parent.name == "blobs" and real.parent.parent.name == repository
    if not same_repository and not any(real.is_relative_to(place) for place in (root, *blobs)):
        raise ValueError(f"{path.name} is a link that leads out of its folder; put a copy in its place")
    if not stat.S_ISREG(real.stat().st_mode):
        raise ValueError(f"{path.name} is no plain file")
    return real


def home_path(text: str | Path) -> Path:
    """A path, with ``~`` in front of it for a home; one of nobody's stays as it is."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path raises where there is no such home


def is_there(path: str | Path) -> bool:
    """Whether a path leads to something; a name that no file can have leads nowhere."""
    return os.path.exists(path)  # noqa: PTH110 - Path raises at a name that is too long


def read_text(path: Path, most: int = MOST_CONFIG_BYTES, folder: Path | None = None) -> str:
    """A file as UTF-8 text, without a byte order mark.

    Args:
        path: the file.
        most: the most bytes that it may have.
        folder: the folder that it may not leave (default: the one that it stands in).

    Raises:
        OSError: it cannot be read.
        ValueError: it is too long, no UTF-8, no plain file, or a link out of its folder.
    """
    return read_bytes(path, most, folder).decode("utf-8-sig")


def read_bytes(path: Path, most: int = MOST_CONFIG_BYTES, folder: Path | None = None) -> bytes:
    """The same as bytes."""
    # Without O_NONBLOCK, opening what became a pipe after it was looked at would wait for ever.
    handle = os.open(
        resolved_inside(path, folder), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    with os.fdopen(handle, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"more than {most:,} bytes, which is the most that is read")
    return content


def read_json(path: Path, most: int = MOST_CONFIG_BYTES, folder: Path | None = None) -> Any:
    """A file as JSON; raises as `read_text` and `parse_json` do."""
    return parse_json(read_text(path, most, folder))


def parse_json(text: str | bytes) -> Any:
    """A JSON value. Of a name that stands twice the last value counts, as in every other reader of model files.

    Raises:
        ValueError: it is no JSON, or is nested too deep.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"lists or objects nested deeper than {MOST_LEVELS} levels") from None
    if levels(value) > MOST_LEVELS:
        raise ValueError(f"lists or objects nested deeper than {MOST_LEVELS} levels")
    return value


def levels(value: Any) -> int:
    """How deep lists and objects lie inside each other; without recursion, which is what it guards."""
    deepest, open_values = 0, [(value, 1)]
    while open_values:
        inside, level = open_values.pop()
        if isinstance(inside, dict | list):
            deepest = max(deepest, level)
            open_values += [(item, level + 1) for item in (inside.values() if isinstance(inside, dict) else inside)]
    return deepest
