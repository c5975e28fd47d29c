"""A disk that keeps only what was synced, and of the rest what it likes: the states after a power cut.

    Recorder ──calls──▶ Disk (inodes; what is durable, what is pending) ──crash(random)──▶ a folder as it may be found

What POSIX leaves open is used to the full. Bytes written since the last fsync of their file may be there, missing,
torn or zeros, sector by sector, and the file as long as before, as now, or in between. Names made, changed or removed
since the last fsync of their folder may be so or not, in the order in which they were made or in any other; a rename
is one change. Stricter than ext4 and xfs, which keep names in order.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from faults import Counting

SECTOR = 512


@dataclass
class Inode:
    """A file or a folder; content and names as they are now, and as they are for certain."""

    is_folder: bool
    now: bytes = b""
    durable: bytes = b""
    names: dict[str, Inode] = field(default_factory=dict)
    durable_names: dict[str, Inode] = field(default_factory=dict)
    pending: list[tuple[str, str, str, Inode]] = field(default_factory=list)


class Disk:
    """A model of a file system below a folder, built from the calls that were made."""

    def __init__(self, root: Path) -> None:
        self.root, self.top = root, Inode(True)
        self.handles: dict[int, Inode] = {}

    def apply(self, name: str, arguments: tuple[Any, ...], result: Any) -> None:
        """One call that succeeded."""
        getattr(self, f"_{name}")(arguments, result)

    def crash(self, random: Random, target: Path) -> None:
        """Writes one of the states that may be found after the power is back."""
        self._crash_folder(self.top, random, target)

    def _crash_folder(self, folder: Inode, random: Random, target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        names = dict(folder.durable_names)
        kept = folder.pending[: random.randint(0, len(folder.pending))]
        if random.random() < 0.5:
            kept = [change for change in folder.pending if random.random() < 0.5]
        for change, name, other, inode in kept:
            if change == "add":
                names[name] = inode
            elif change == "rename":
                names.pop(name, None)
                names[other] = inode
            elif names.get(name) is inode:
                del names[name]
        for name, inode in names.items():
            if inode.is_folder:
                self._crash_folder(inode, random, target / name)
            else:
                (target / name).write_bytes(self._crash_content(inode, random))

    @staticmethod
    def _crash_content(file: Inode, random: Random) -> bytes:
        now, durable = file.now, file.durable
        if now == durable:
            return now
        low, high = sorted((len(now), len(durable)))
        length = random.choice((len(now), len(durable), random.randint(low, high)))
        parts = []
        for place in range(0, length, SECTOR):
            choices = [part for part in (now[place : place + SECTOR], durable[place : place + SECTOR]) if part]
            if place >= len(durable):
                choices.append(bytes(SECTOR))
            parts.append(random.choice(choices).ljust(SECTOR, b"\0"))
        return b"".join(parts)[:length]

    # ── calls ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _inode(self, path: Path) -> Inode:
        inode = self.top
        for name in Path(path).relative_to(self.root).parts:
            inode = inode.names[name]
        return inode

    def _change(self, path: Path, change: str, inode: Inode, other: str = "") -> None:
        folder = self._inode(path.parent)
        folder.pending.append((change, path.name, other, inode))
        if change != "add":
            del folder.names[path.name]
        if change != "remove":
            folder.names[other or path.name] = inode

    def _open(self, arguments: tuple[Any, ...], handle: int) -> None:
        path, flags = Path(arguments[0]), arguments[1]
        if flags & os.O_CREAT and path.name not in self._inode(path.parent).names:
            self._change(path, "add", Inode(False))
        self.handles[handle] = self._inode(path)

    def _write(self, arguments: tuple[Any, ...], count: int) -> None:
        self.handles[arguments[0]].now += bytes(arguments[1])[:count]

    def _ftruncate(self, arguments: tuple[Any, ...], _: None) -> None:
        file = self.handles[arguments[0]]
        file.now = file.now[: arguments[1]]

    def _fsync(self, arguments: tuple[Any, ...], _: None) -> None:
        inode = self.handles[arguments[0]]
        inode.durable, inode.durable_names = inode.now, dict(inode.names)
        inode.pending.clear()

    def _close(self, arguments: tuple[Any, ...], _: None) -> None:
        del self.handles[arguments[0]]

    def _replace(self, arguments: tuple[Any, ...], _: None) -> None:
        path, target = map(Path, arguments)
        assert path.parent == target.parent, "names change within a folder"
        self._change(path, "rename", self._inode(path), target.name)

    def _mkdir(self, arguments: tuple[Any, ...], _: None) -> None:
        self._change(Path(arguments[0]), "add", Inode(True))

    def _unlink(self, arguments: tuple[Any, ...], _: None) -> None:
        self._change(Path(arguments[0]), "remove", self._inode(Path(arguments[0])))

    _rmdir = _unlink


class Recorder(Counting):
    """Passes calls on and keeps them."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self.calls: list[tuple[str, tuple[Any, ...], Any]] = []

    def do(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        kept = (arguments[0], bytes(arguments[1])) if name == "write" else arguments
        result = real()
        self.calls.append((name, kept, result))
        return result

    def disk_after(self, count: int) -> Disk:
        """The disk when the first calls have been made."""
        disk = Disk(self.root)
        for call in self.calls[:count]:
            disk.apply(*call)
        return disk
