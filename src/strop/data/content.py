"""A column's value to text: texts, numbers, and contents that come in parts with weights of their own.

    "Four."                                               the text as it stands, not a character changed
    72 · 72.50                                            a number as it is written in the file
    [{"type": "text", "text": "So: "},                    parts, joined; a part's weight becomes a span of the turn
     {"type": "text", "text": "4", "weight": 0}]
    [{"type": "thinking", "thinking": "2 + 2 …"}, …]      reasoning beside the answer

Images, audio and the like are refused by name: a text model cannot learn from them, and a row without its image is
another row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from strop.data.records import Span
from strop.data.sources_json import json_kind

MEDIA: Mapping[str, str] = {
    "image": "an image",
    "images": "an image",
    "image_url": "an image",
    "input_image": "an image",
    "audio": "a sound",
    "audios": "a sound",
    "audio_url": "a sound",
    "input_audio": "a sound",
    "video": "a video",
    "videos": "a video",
    "video_url": "a video",
    "file": "a file",
}
"""Kinds of parts, and names of columns, that are no text; and what they are."""

_TEXT_PARTS = ("text", "input_text", "output_text")
_THINKING_PARTS = ("thinking", "reasoning")
_WEIGHTS = ("weight", "loss", "train", "training")


class RowRefused(Exception):
    """A row gives no conversation; carries the words of its refusal."""

    def __init__(self, reason: str, cure: str, found: str = "") -> None:
        super().__init__(reason)
        self.reason, self.cure, self.found = reason, cure, found


@dataclass(frozen=True, slots=True)
class Content:
    """What a turn says.

    Args:
        text: its text.
        spans: characters of it that have weights of their own.
        thinking: the reasoning among its parts; None where there is none.
    """

    text: str
    spans: tuple[Span, ...] = ()
    thinking: str | None = None


def text_of(value: Any, column: str) -> str:
    """A column's value as text.

    Raises:
        RowRefused: it is no text, no number and no list of text parts.
    """
    return value if isinstance(value, str) else content_of(value, column).text


def content_of(value: Any, column: str) -> Content:
    """A turn's content, in one piece or in parts.

    Raises:
        RowRefused: it is no text, no number and no list of text parts.
    """
    if isinstance(value, str):
        return Content(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise _no_text(column, "a number that is not finite")
        return Content(str(value))
    if isinstance(value, list) and value:
        return _joined(value, column)
    raise _no_text(column, json_kind(value))


def weight_of(turn: Mapping[str, Any]) -> float | None:
    """The weight that a turn or a part gives itself: weight, loss, train or training, as a number or true and false.

    Raises:
        RowRefused: it is neither.
    """
    for name in _WEIGHTS:
        value = turn.get(name)
        if value is None:
            continue
        if isinstance(value, int | float) and math.isfinite(value) and value >= 0:
            return float(value)
        raise RowRefused(f"{name!r} is not a weight", "give a number of 0 or more, or true or false", repr(value)[:40])
    return None


def detailed_spans(turn: Mapping[str, Any], text: str) -> tuple[Span, ...]:
    """The spans of ``train_detail``: [{"begin_offset": 0, "end_offset": 4, "train": false}, …], both ends included.

    Raises:
        RowRefused: the offsets lie outside the text or overlap.
    """
    details = turn.get("train_detail")
    if not details:
        return ()
    if not isinstance(details, list) or not all(isinstance(detail, dict) for detail in details):
        raise RowRefused("'train_detail' is not a list of spans", "give begin_offset, end_offset and train for each")
    spans = []
    for detail in details:
        begin, end = detail.get("begin_offset"), detail.get("end_offset")
        if not isinstance(begin, int) or not isinstance(end, int) or not 0 <= begin <= end < len(text):
            raise RowRefused(
                "a span of 'train_detail' lies outside the text", "count characters from 0", f"{begin} to {end}"
            )
        weight = weight_of(detail)
        spans.append(Span(begin, end + 1, 1.0 if weight is None else weight))
    spans.sort(key=lambda span: span.start)
    if any(before.end > behind.start for before, behind in pairwise(spans)):
        raise RowRefused("spans of 'train_detail' overlap", "give each character to one span")
    return tuple(spans)


def json_in_text(value: Any, opening: str) -> Any:
    """A list or object that a table keeps as JSON text; anything else as it is.

    Args:
        value: the column's value.
        opening: what such a text begins with: ``[``, ``{`` or both.
    """
    if isinstance(value, str) and value.lstrip()[:1] in tuple(opening):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _joined(parts: list[Any], column: str) -> Content:
    """Text parts put together; a part's weight holds for the characters that it gives."""
    text, spans, thinking = "", [], []
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        if not isinstance(part, Mapping):
            raise _no_text(column, f"a list with {json_kind(part)} in it")
        kind = _kind(part)
        if kind in MEDIA:
            raise RowRefused(
                f"a part of {column!r} is {MEDIA[kind]}", "drop the row: only text is learned from", f"type {kind}"
            )
        words = part.get("thinking") or part.get("text") if kind in _THINKING_PARTS else part.get("text")
        if kind not in _TEXT_PARTS + _THINKING_PARTS or not isinstance(words, str):
            raise _no_text(column, f"a part of type {kind}")
        if kind in _THINKING_PARTS:
            thinking.append(words)
            continue
        weight = weight_of(part)
        if weight is not None and words:
            spans.append(Span(len(text), len(text) + len(words), weight))
        text += words
    return Content(text, tuple(spans), "".join(thinking) or None)


def _kind(part: Mapping[str, Any]) -> str:
    """What a part is: its type, or the medium that it names where it has none."""
    kind = part.get("type")
    if kind is None:
        return next((name for name in MEDIA if part.get(name) is not None), "text")
    return str(kind)


def _no_text(column: str, found: str) -> RowRefused:
    return RowRefused(f"{column!r} is not a text", "give a text, or drop the row", found)
