"""A log that only grows, one JSON object a line, and knows how much of it is on the disk for certain.

    append ──▶ memory ──write──▶ file ──sync──▶ disk, and a Mark (length, SHA-256) for the checkpoint

A line that cannot be written stays in memory and goes out with the next one. So a full disk costs no event, and the
first that fails to be written does not stop a run. A checkpoint holds the marks of both logs: a run that goes on from
it cuts them back to exactly what they were when it was made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strop.run import disk


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a log had come: its length and the SHA-256 of all of it."""

    bytes: int
    sha256: str


class Log:
    """A log, open for adding; one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_new = not path.exists()
        content = b"" if self._is_new else path.read_bytes()
        self._digest = hashlib.sha256(content)
        self._synced = len(content)  # bytes of the file that a sync has seen, or that were there before
        self._recent = bytearray()  # the lines after them
        self._written = 0  # how many bytes of those the file has
        self._handle: int | None = None
        self._doubtful = False  # a sync failed: the file may have lost what it was given

    def append(self, value: dict[str, Any]) -> None:
        """Adds a line.

        Raises:
            OSError: it could not be written; it is kept, and goes out with the next.
        """
        line = (json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        self._digest.update(line)
        self._recent += line
        self._flush()

    def sync(self) -> Mark:
        """Waits until every line is on the disk.

        Raises:
            OSError: they are not; all of them are kept, and written under a new name the next time.
        """
        self._flush()
        if self._handle is not None:
            try:
                disk.sync_handle(self._handle)
                if self._is_new:
                    disk.sync_folder(self.path.parent)
                    self._is_new = False
            except OSError:
                self._doubtful = True
                raise
            self._settle()
        return Mark(self._synced, self._digest.hexdigest())

    def close(self) -> None:
        """Gives the file back; what could not be written is lost, so sync first."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            with contextlib.suppress(OSError):  # what matters was synced before
                disk.close(handle)

    def _flush(self) -> None:
        if self._doubtful:
            self._write_anew()
        if self._written == len(self._recent):
            return
        if self._handle is None:
            self._handle = disk.open_to_append(self.path)
        while self._written < len(self._recent):
            self._written += disk.write(self._handle, bytes(self._recent[self._written :]))

    def _write_anew(self) -> None:
        """Puts a new file in the place of one that a failed sync has made doubtful."""
        with self.path.open("rb") as file:
            before = file.read(self._synced)
        disk.replace_file(self.path, before + self._recent)
        self._doubtful = False
        self._settle()
        self.close()

    def _settle(self) -> None:
        self._synced += len(self._recent)
        self._recent.clear()
        self._written = 0


def cut(path: Path, mark: Mark) -> bool:
    """Cuts a log back to a mark; False, and nothing done, where it is not what it was when the mark was made."""
    content = path.read_bytes() if path.exists() else b""
    if Mark(len(content[: mark.bytes]), hashlib.sha256(content[: mark.bytes]).hexdigest()) != mark:
        return False
    if len(content) > mark.bytes:
        disk.truncate(path, mark.bytes)
    return True
