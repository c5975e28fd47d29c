"""The run folder: one place that holds what was asked, what happened and what came out.

    RUN/ recipe.yaml     the resolved recipe, with the source of every value
         plan.json       how it was computed
         manifest.json   model, data, template, versions, device
         data.json       accounting, lengths, a few samples with what is learned in them
         refused.jsonl   every record that was not used: place, reason, cure
         events.jsonl    what happened, one object a line
         samples.jsonl   answers to fixed questions, before, during and after
         checkpoints/    step-000100/ …
         adapter/        the result, in PEFT's format
         report.html     all of it, to look at
         writer.lock     whose turn it is to write (`strop.run.writer`)

The folder appears under its name with all that is known before the first step in it. Files are written whole under
another name and renamed, except the two logs, which only grow (`strop.run.log`).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strop.errors import InputError, UsageError
from strop.foreign import parse_json, read_bytes, read_json, read_text
from strop.run import disk
from strop.run.log import Mark, cut

MOST_LOG_BYTES = 1 << 30
"""Of events.jsonl and samples.jsonl: those of two million steps."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of a run folder, and reading and writing its small files."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def manifest(self) -> Path:
        """Model, data, versions, device."""
        return self.path / "manifest.json"

    @property
    def events(self) -> Path:
        """What happened."""
        return self.path / "events.jsonl"

    @property
    def samples(self) -> Path:
        """Sample answers."""
        return self.path / "samples.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The result."""
        return self.path / "adapter"

    def write_json(self, name: str, value: Any) -> None:
        """Writes a small JSON file."""
        write_text(self.path / name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """Reads the object of a small JSON file.

        Raises:
            InputError: missing or broken.
        """
        path = self.path / name
        try:
            value = read_json(path)
            if not isinstance(value, dict):
                raise ValueError("no JSON object")
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from None
        return value

    def fact(self, name: str, *keys: str) -> Any:
        """A value inside a small JSON file, by the names on the way; None where there is none.

        Raises:
            InputError: the file is missing or broken.
        """
        value: Any = self.read_json(name)
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def read_recipe(self) -> str:
        """The text of the recipe.

        Raises:
            InputError: missing or broken.
        """
        try:
            return read_text(self.recipe)
        except (OSError, ValueError) as error:
            raise _unreadable(self.recipe, error) from None

    def write_lines(self, name: str, values: Iterable[Mapping[str, Any]]) -> None:
        """Writes a file of one JSON object a line; none where there is no object."""
        text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
        if text:
            write_text(self.path / name, text)

    def lines(self, log: Path) -> Iterator[dict[str, Any]]:
        """The objects of a log; a last line that was cut off by a kill, be it inside a character, is left out."""
        if not log.exists():
            return
        try:
            content = read_bytes(log, MOST_LOG_BYTES)
        except (OSError, ValueError) as error:
            raise _unreadable(log, error) from None
        # Only \n ends a line: an answer may hold U+2028 and the like.
        for line in content.split(b"\n"):
            try:
                value = parse_json(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                yield value

    def cut_logs(self, step: int, marks: Mapping[str, Mark]) -> list[str]:
        """Drops from both logs what happened after a checkpoint, so that a resumed run writes it once.

        Args:
            step: the checkpoint's step; 0 with no marks for a run that starts over.
            marks: how far each log had come when the checkpoint was made.

        Returns:
            The names of logs that are not what they were then. Of those the whole lines up to the step are kept.
        """
        damaged = []
        for log in (self.events, self.samples):
            mark = marks.get(log.name, NOTHING)
            if not cut(log, mark):
                damaged.append(log.name)
                kept = [value for value in self.lines(log) if _up_to(step, value)]
                write_text(log, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in kept))
        return damaged

    def publish_adapter(self, files: Mapping[str, disk.File]) -> None:
        """Writes the result: whole under its name, or not there.

        Raises:
            SaveError: it could not be written.
        """
        staged, old = (self.path / f"{disk.STAGED}{name}" for name in ("adapter", "adapter-before"))
        need = sum(file.bytes for file in files.values())
        try:
            self.sweep()
            disk.make_folder(staged)
            for name, file in files.items():
                disk.write_file(staged / name, file.chunks)
            disk.sync_folder(staged)
            if self.adapter.exists():
                disk.rename(self.adapter, old)
            disk.rename(staged, self.adapter)
            disk.discard(old)
        except OSError as error:
            disk.discard(staged)
            reason = error.strerror or str(error)
            raise disk.save_error("the adapter could not be written", self.adapter, reason, self.path, need) from None

    def sweep(self) -> None:
        """Removes what a killed process began and did not finish."""
        disk.sweep(self.path)
        disk.sweep(self.checkpoints)


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} cannot be read",
        expected="a file that strop train wrote",
        found=str(error),
        do="name the folder of a run; `strop runs` lists them",
    )


NOTHING = Mark(0, hashlib.sha256(b"").hexdigest())
"""The mark of a log that is empty."""


def _up_to(step: int, value: Mapping[str, Any]) -> bool:
    number = value.get("step", 0)
    return isinstance(number, int) and number <= step and value.get("kind") != "stop"


def refuse_existing(path: Path) -> None:
    """Refuses a run folder that is in the way.

    Raises:
        UsageError: it exists and is not empty.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(
            f"the run folder {path} exists",
            expected="a new folder",
            found="a file" if path.is_file() else f"{sum(1 for _ in path.iterdir())} files and folders in it",
            do=f"choose another --run, or continue it: strop resume {path}",
        )


def create_run(path: Path, write_record: Callable[[RunFolder], None] = lambda _: None) -> RunFolder:
    """Makes a new run folder, which appears whole or not at all.

    Args:
        path: where.
        write_record: writes all that is known before the first step into the folder that it is given.

    Raises:
        UsageError: it exists and is not empty, or cannot be made.
    """
    refuse_existing(path)
    _sweep_dead(path.parent)
    staged = path.with_name(f".{path.name}{disk.STAGED}{_machine()}-{os.getpid()}")
    try:
        disk.make_folder(path.parent)
        disk.make_folder(staged)
        write_record(RunFolder(staged))
        if os.name == "nt" and path.is_dir():
            path.rmdir()
        disk.rename(staged, path)
    except OSError as error:
        disk.discard(staged)
        failed = disk.save_error("", path, error.strerror or str(error), path)
        raise UsageError(
            f"the run folder {path} cannot be made",
            expected=failed.expected,
            found=failed.found,
            do="choose another --run",
        ) from None
    return RunFolder(path)


def _machine() -> str:
    """A short name for this machine: process numbers mean nothing on another one that shares the folder."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _sweep_dead(parent: Path) -> None:
    """Removes the beginnings of run folders whose process was one of this machine and is gone."""
    import psutil

    for stray in parent.glob(f".*{disk.STAGED}*"):
        maker, _, pid = stray.name.partition(disk.STAGED)[2].rpartition("-")
        if maker == _machine() and pid.isdecimal() and not psutil.pid_exists(int(pid)):
            disk.discard(stray)


def open_run(path: Path) -> RunFolder:
    """An existing run folder.

    Raises:
        InputError: no such folder, or no run in it.
    """
    run = RunFolder(path)
    if not run.manifest.is_file() or not run.recipe.is_file():
        raise InputError(
            f"{path} is not a run",
            expected="a folder that strop train made, with recipe.yaml and manifest.json",
            found="no such folder" if not path.exists() else "neither" if path.is_dir() else "a file",
            do="`strop runs` lists the runs of a folder",
        )
    return run


def write_text(path: Path, text: str) -> None:
    """Writes a file under another name, then renames it, so that a reader sees the old or the new, never half."""
    disk.replace_file(path, text.encode("utf-8"))
