"""What every page is made of: its pieces, its template, and how it is put into place.

    view (plain records) ──template, everything escaped──▶ HTML ──beside, then renamed──▶ the file

A page needs no network and no script, and forbids itself both. Characters that would steer how it is read, controls and
those that turn the direction of text, are shown as ⟨U+202E⟩ instead.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Controls but tab and line end; embeddings, overrides and isolates. The marks U+200E and U+200F, which honest texts in
Arabic and Hebrew hold, turn nothing but their neighbours."""


@dataclass(frozen=True)
class Value:
    """A number as it is shown, and exactly."""

    shown: str
    exact: str


@dataclass(frozen=True)
class Chart:
    """A chart with its heading; the narrow drawing is for telephones, where the wide one would be too small."""

    title: str
    unit: str
    wide: Markup
    narrow: Markup | None = None
    legend: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Share:
    """A part of a whole: its name, its size in words, and its share from 0 to 100."""

    name: str
    value: Value
    percent: float


def shares(values: Mapping[str, float], written: Mapping[str, str]) -> list[Share]:
    """The parts of a whole.

    Args:
        values: a number of at least 0 by name, in the order that they are shown in.
        written: the same in words.
    """
    whole = sum(values.values()) or 1.0
    return [
        Share(name, Value(written[name], repr(value)), value / whole * 100) for name, value in values.items() if value
    ]


def render(template: Path, view: Mapping[str, Any]) -> str:
    """A page from a template; beside its own folder, what all pages have in common is found in this one."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_without_steering,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(view)


def _without_steering(value: object) -> object:
    """What stands for a value on a page: its text; markup is the page's own."""
    if hasattr(value, "__html__"):
        return value
    return _STEERING.sub(lambda found: f"⟨U+{ord(found.group()):04X}⟩", str(value))


def write_page(target: Path, page: str) -> None:
    """Writes a page.

    It is renamed into place: a page that somebody has open is never half there, and a link is replaced, not followed.

    Raises:
        OSError: the page cannot be written there.
    """
    beside = target.with_name(f".{target.stem}-{os.getpid()}.html")
    beside.unlink(missing_ok=True)
    try:
        with beside.open("xb") as file:
            file.write(page.encode("utf-8", errors="xmlcharrefreplace"))
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
