"""Reading a run folder for its report, from whoever it comes.

The folder may be half written (the run still goes on), broken (the machine went down) or a stranger's. So nothing in
it is trusted to be there, to be of the right type, to be finite or to be short: `read_run` takes what can be read and
writes a note for everything that cannot, and the report prints the notes. The order in which things happened is in
events.jsonl, which `Course` puts together: a resumed run repeats the steps since its last checkpoint, and the later
line counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from strop.errors import InputError

_LONGEST_FILE = 512 * 1024**2
_LARGEST_NUMBER = 1e18
_SMALLEST_NUMBER = 1e-30
_MOST_BAD_LINES_NAMED = 3
_MOST_SKIPS_NAMED = 20


@dataclass
class Course:
    """What happened, by events.jsonl.

    Attributes:
        steps: the last event of each step, by its number.
        watches: the last held-out loss of each step, by its number.
        planned: optimiser steps that the run is to take, if it says so.
        state: the kind of the last start, stop or end event; "" where there is none.
        end: the end event, or nothing.
        last_step: the last step that any event names.
        forecast: what the first start event said that the run would cost, or nothing.
        replans: the events of leaner plans that took over where memory fell short.
        skips: the events of steps that were passed over because their loss leapt, by their number.
    """

    steps: dict[int, dict[str, Any]] = field(default_factory=dict)
    watches: dict[int, dict[str, Any]] = field(default_factory=dict)
    planned: int | None = None
    state: str = ""
    end: dict[str, Any] = field(default_factory=dict)
    last_step: int = 0
    forecast: dict[str, Any] = field(default_factory=dict)
    replans: list[dict[str, Any]] = field(default_factory=list)
    skips: dict[int, dict[str, Any]] = field(default_factory=dict)

    def take(self, event: dict[str, Any]) -> bool:
        """Takes the next event in; returns whether it was understood."""
        kind, step = event.get("kind"), number(event.get("step"))
        if kind in ("step", "watch", "skip"):
            if step is None:
                return False
            {"step": self.steps, "watch": self.watches, "skip": self.skips}[kind][int(step)] = event
        elif kind == "start":
            self._start(event, int(step or 0))
        elif kind == "replan":
            self.replans.append(event)
        elif kind in ("stop", "end"):
            self.state = kind
            self.end = event if kind == "end" else {}
        if step is not None:
            self.last_step = int(step)
        return isinstance(kind, str)

    def _start(self, event: dict[str, Any], step: int) -> None:
        """A run that starts again at a checkpoint goes over the later steps anew."""
        self.state, self.end = "start", {}
        self.forecast = self.forecast or mapping(event.get("forecast"))
        planned = number(event.get("steps"))
        self.planned = int(planned) if planned is not None else self.planned
        self.steps = {key: value for key, value in self.steps.items() if key <= step}
        self.watches = {key: value for key, value in self.watches.items() if key <= step}
        self.skips = {key: value for key, value in self.skips.items() if key <= step}

    def skipped(self) -> list[str]:
        """What is said of the steps that were passed over."""
        told = []
        for step, event in sorted(self.skips.items())[:_MOST_SKIPS_NAMED]:
            places = event.get("places")
            listed = ", ".join(str(place)[:200] for place in places[:8]) if isinstance(places, list) else ""
            loss, bound = number(event.get("loss")), number(event.get("bound"))
            leap = f"its loss {loss:.4g} leapt above {bound:.4g}" if loss and bound else "its loss leapt"
            told.append(f"Step {step} was skipped: {leap}; samples {listed}.")
        more = len(self.skips) - len(told)
        return [*told, f"{more} more steps were skipped; events.jsonl has them."] if more else told

    def values(self, name: str) -> list[tuple[int, float]]:
        """The values of one field of the steps, as (step, value) in order; steps without a finite one are left out."""
        found = ((step, number(self.steps[step].get(name))) for step in sorted(self.steps))
        return [(step, value) for step, value in found if value is not None]

    def held_out(self) -> list[tuple[int, float]]:
        """The held-out losses, as (step, loss) in order."""
        found = ((step, number(self.watches[step].get("held_out_loss"))) for step in sorted(self.watches))
        return [(step, value) for step, value in found if value is not None]


@dataclass
class RunFiles:
    """What could be read of a run folder; whatever could not is empty, and named in `notes`."""

    folder: Path
    recipe: str = ""
    manifest: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    score: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    course: Course = field(default_factory=Course)
    samples: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_run(folder: Path) -> RunFiles:
    """Reads what a report needs of a run folder.

    Args:
        folder: the run folder.

    Raises:
        InputError: it is no folder, or has none of recipe.yaml, manifest.json and events.jsonl.
    """
    marks = ("recipe.yaml", "manifest.json", "events.jsonl")
    if not any((folder / name).is_file() for name in marks):
        raise InputError(
            f"{folder} is no run folder",
            expected=f"a folder with {', '.join(marks[:-1])} and {marks[-1]}",
            found="none of them there" if folder.is_dir() else "no such folder",
            do="name the folder that `strop train` wrote; `strop runs` lists them",
        )
    run = RunFiles(folder)
    run.recipe = _text(run, "recipe.yaml") or ""
    run.manifest = _object(run, "manifest.json")
    run.plan = _object(run, "plan.json")
    run.score = _object(run, "score.json", optional=True)
    run.data = _object(run, "data.json", optional=True)
    run.samples = list(_lines(run, "samples.jsonl"))
    run.refused = list(_lines(run, "refused.jsonl"))
    strange = sum(not run.course.take(event) for event in _lines(run, "events.jsonl"))
    if strange:
        run.notes.append(f"events.jsonl: {strange} events of no known shape are left out.")
    lost = len(run.course.steps) - len(run.course.values("loss"))
    run.notes += run.course.skipped()
    if lost:
        run.notes.append(f"events.jsonl: {lost} steps have no finite loss; the charts leave them out.")
    return run


def number(value: object) -> float | None:
    """Returns a value as a finite number of a size that can be drawn, or None if it is no such thing."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if abs(value) > _LARGEST_NUMBER:
        return None
    return float(value) if abs(value) > _SMALLEST_NUMBER else 0.0


def mapping(value: object) -> dict[str, Any]:
    """Returns a value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def objects(value: object) -> list[dict[str, Any]]:
    """Returns the objects of a list, and nothing where it is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(run: RunFiles, name: str, *, optional: bool = False) -> str | None:
    """Returns a file's text; None, with a note unless it may be missing, if there is none to be read."""
    path = run.folder / name
    try:
        if not path.is_file():
            if not optional:
                run.notes.append(f"{name} is not there.")
            return None
        # A stranger's folder must not make the page show another file of this machine.
        if not path.resolve().is_relative_to(run.folder.resolve()):
            run.notes.append(f"{name} points out of the run folder; it is left out.")
            return None
        if path.stat().st_size > _LONGEST_FILE:
            run.notes.append(f"{name} is longer than {_LONGEST_FILE // 1024**2} MiB; it is left out.")
            return None
        return path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        run.notes.append(f"{name} cannot be read: {error.strerror or error}.")
        return None


def _object(run: RunFiles, name: str, *, optional: bool = False) -> dict[str, Any]:
    text = _text(run, name, optional=optional)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        run.notes.append(f"{name} is not JSON: {error}.")
        return {}
    if not isinstance(value, dict):
        run.notes.append(f"{name} holds no object; it is left out.")
        return {}
    return value


def _lines(run: RunFiles, name: str) -> Iterator[dict[str, Any]]:
    """Yields the objects of a file of JSON lines; lines that hold none are counted in a note."""
    text = _text(run, name, optional=name != "events.jsonl")
    bad = []
    for place, line in enumerate((text or "").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            yield value
        else:
            bad.append(place)
    if bad:
        named = ", ".join(map(str, bad[:_MOST_BAD_LINES_NAMED])) + (" …" if len(bad) > _MOST_BAD_LINES_NAMED else "")
        verb = "lines hold no JSON object and are" if len(bad) > 1 else "line holds no JSON object and is"
        run.notes.append(f"{name}: {len(bad)} {verb} left out (line {named}).")
