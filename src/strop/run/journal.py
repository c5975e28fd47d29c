"""What happened, told twice: to the run's logs, and to whoever listens (the terminal)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from strop.run import disk
from strop.run.checkpoint import Checkpoint
from strop.run.folder import RunFolder
from strop.run.log import Log, Mark


class Listener(Protocol):
    """Someone who is told every event as it happens."""

    def on_event(self, event: dict[str, Any]) -> None:
        """Takes one event; `kind` says what it is."""


class Journal:
    """Writes events and sample answers to a run folder and passes them on; without a folder it only passes on.

    A log that cannot be written stops nothing: its lines wait in memory for the next one, and the listener is told.
    """

    def __init__(self, run: RunFolder | None, listener: Listener | None) -> None:
        self._logs = {path.name: Log(path) for path in (run.events, run.samples)} if run else {}
        self._listener = listener
        self._failing: set[str] = set()

    def event(self, kind: str, step: int, **facts: Any) -> None:
        """Records an event of a step, with the time."""
        event = {"kind": kind, "step": step, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **facts}
        self._append("events.jsonl", event)
        self._tell(event)

    def sample(self, sample: dict[str, Any]) -> None:
        """Records a sample answer."""
        self._append("samples.jsonl", sample)
        self._tell({"kind": "answer", **sample})

    def saved(self, checkpoint: Checkpoint) -> None:
        """Records that a checkpoint is there; whoever goes on from it records it again, for its mark comes before."""
        self.event("save", checkpoint.step, folder=str(checkpoint.path))

    def note(self, text: str) -> None:
        """Says something that is not kept."""
        self._tell({"kind": "note", "text": text})

    def progress(self, what: str) -> Callable[[int, int], None]:
        """A callback (done, all) that shows how far a piece of preparation has come; not kept."""
        return lambda done, total: self._tell({"kind": "progress", "what": what, "done": done, "total": total})

    def sync(self) -> dict[str, Mark]:
        """Waits until both logs are on the disk, and says how far each has come.

        Raises:
            SaveError: one could not be written.
        """
        marks = {}
        for name, log in self._logs.items():
            try:
                marks[name] = log.sync()
            except OSError as error:
                reason = error.strerror or str(error)
                raise disk.save_error(f"{name} could not be written", log.path, reason, log.path.parent) from None
        return marks

    def close(self) -> None:
        """Closes both logs."""
        for log in self._logs.values():
            log.close()

    def _append(self, name: str, value: dict[str, Any]) -> None:
        log = self._logs.get(name)
        if log is None:
            return
        try:
            log.append(value)
        except OSError as error:
            if name not in self._failing:
                failed = disk.save_error("", log.path, error.strerror or str(error), log.path.parent)
                self.note(f"{log.path} cannot be written: {failed.found}; its lines are kept until they can be")
            self._failing.add(name)
        else:
            if name in self._failing:
                self.note(f"{log.path} is written again, all its lines")
            self._failing.discard(name)

    def _tell(self, event: dict[str, Any]) -> None:
        if self._listener:
            self._listener.on_event(event)
