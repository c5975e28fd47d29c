"""What happened, told twice: to the run's logs, and to whoever listens (the terminal)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from strop.run.folder import RunFolder


class Listener(Protocol):
    """Someone who is told every event as it happens."""

    def on_event(self, event: dict[str, Any]) -> None:
        """Takes one event; `kind` says what it is."""


class Journal:
    """Writes events and sample answers to a run folder and passes them on; without a folder it only passes on."""

    def __init__(self, run: RunFolder | None, listener: Listener | None) -> None:
        self._run = run
        self._listener = listener

    def event(self, kind: str, step: int, **facts: Any) -> None:
        """Records an event of a step, with the time."""
        event = {"kind": kind, "step": step, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **facts}
        if self._run:
            self._run.append(self._run.events, event)
        self._tell(event)

    def sample(self, sample: dict[str, Any]) -> None:
        """Records a sample answer."""
        if self._run:
            self._run.append(self._run.samples, sample)
        self._tell({"kind": "answer", **sample})

    def note(self, text: str) -> None:
        """Says something that is not kept."""
        self._tell({"kind": "note", "text": text})

    def progress(self, what: str) -> Callable[[int, int], None]:
        """A callback (done, all) that shows how far a piece of preparation has come; not kept."""
        return lambda done, total: self._tell({"kind": "progress", "what": what, "done": done, "total": total})

    def _tell(self, event: dict[str, Any]) -> None:
        if self._listener:
            self._listener.on_event(event)
