"""What the report's lower sections show: answers, learned text, refusals, facts; from the files as they were read.

Everything here is plain text in small records; the template escapes it. Long things are cut, and say so.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from strop.run.charts import bar_chart
from strop.run.figures import significant, size, whole
from strop.run.report_files import number, objects

_LONGEST_TEXT = 8_000
_MOST_QUESTIONS = 40
_MOST_SAMPLES = 20
_MOST_REFUSALS = 50
_MOST_REASONS = 20
_MOST_FACTS = 400

_MARKS = {"\n": "↵", "\t": "⇥", "\r": "␍"}
_TO_MARK = re.compile(r"\A +| +\Z| +(?=\n)|(?<=\n) +| {2,}|[\n\t\r]|[^\S \n\t\r]|[^\w\s!-~]")


@dataclass(frozen=True)
class Answer:
    """One sample answer.

    Attributes:
        step: the optimiser steps taken before it; 0 is the base model.
        text: what was answered.
        ending: how it ended, and its length in tokens.
        cut: whether it was cut off before it ended by itself.
    """

    step: int
    text: str
    ending: str
    cut: bool


@dataclass(frozen=True)
class Asked:
    """One question with the base model's answer, the tuned model's, and those between."""

    question: str
    reference: str | None
    base: Answer | None
    tuned: Answer | None
    between: list[Answer]


@dataclass(frozen=True)
class Piece:
    """A run of text in one style: "context", "learned" or "stop", or "mark" for what stands for a hidden character."""

    style: str
    text: str


@dataclass(frozen=True)
class Learned:
    """One sample as the model learns it."""

    place: str
    segments: list[tuple[str, list[Piece]]]


@dataclass(frozen=True)
class Refusals:
    """The records that are not learned.

    Attributes:
        count: all of them.
        reasons: (reason, how many), the most frequent first.
        first: (file, line, reason, cure) of the first ones.
    """

    count: int
    reasons: list[tuple[str, int]]
    first: list[tuple[str, str, str, str]]


@dataclass(frozen=True)
class RecipeLine:
    """A line of recipe.yaml, with the source that its comment names."""

    depth: int
    key: str
    value: str
    source: str


def shown(value: object) -> str:
    """Writes any JSON value as text for people, cut if it is very long."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        text = value
    elif isinstance(value, int | float):
        exact = number(value)
        text = str(value) if exact is None else whole(exact) if exact == int(exact) else significant(exact, 6)
    elif isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        text = ", ".join(shown(item) for item in value)
    else:
        text = json.dumps(value, ensure_ascii=False)
    if len(text) <= _LONGEST_TEXT:
        return text
    return f"{text[:_LONGEST_TEXT]} … ({whole(len(text) - _LONGEST_TEXT)} more characters)"


def answers(samples: Sequence[dict[str, Any]]) -> tuple[list[Asked], int]:
    """Puts the answers to each question together.

    Args:
        samples: the lines of samples.jsonl.

    Returns:
        The first 40 questions in the order in which they were first asked, and how many there are.
    """
    by_question: dict[str, dict[int, Answer]] = {}
    references: dict[str, str | None] = {}
    for sample in samples:
        step = number(sample.get("step"))
        if step is None or "question" not in sample or "answer" not in sample:
            continue
        question = shown(sample["question"])
        # A resumed run asks again at the steps it repeats; the later answer counts.
        by_question.setdefault(question, {})[int(step)] = _answer(int(step), sample)
        if sample.get("reference") is not None:
            references[question] = shown(sample["reference"])
    asked = []
    for question, given in list(by_question.items())[:_MOST_QUESTIONS]:
        steps = sorted(given)
        tuned = steps[-1] if steps[-1] > 0 else None
        between = [given[step] for step in steps if step not in (0, tuned)]
        final = given[tuned] if tuned is not None else None
        asked.append(Asked(question, references.get(question), given.get(0), final, between))
    return asked, len(by_question)


def _answer(step: int, sample: dict[str, Any]) -> Answer:
    tokens = number(sample.get("tokens"))
    length = f"{whole(tokens)} tokens" if tokens is not None else ""
    stopped = sample.get("stopped")
    if stopped is True:
        ending = f"ended by itself after {length}" if length else "ended by itself"
    elif stopped is False:
        ending = f"cut off at {length}" if length else "cut off"
    else:
        ending = length
    return Answer(step, shown(sample["answer"]), ending, cut=stopped is False)


def learned(data: dict[str, Any]) -> list[Learned]:
    """Returns the first 20 samples of data.json, in pieces that make hidden characters visible."""
    samples = []
    for sample in objects(data.get("samples"))[:_MOST_SAMPLES]:
        segments = [
            (kind, visible(shown(segment.get("text")), kind))
            for segment in objects(sample.get("segments"))
            if (kind := segment.get("kind")) in ("context", "learned", "stop")
        ]
        if segments:
            samples.append(Learned(shown(sample.get("place", "")), segments))
    return samples


def visible(text: str, style: str) -> list[Piece]:
    """Splits text so that line ends, tabs, spaces at the edge of a line, and characters without a shape are marked.

    Args:
        text: any text.
        style: the style of what needs no mark.
    """
    pieces, done = [], 0
    for match in _TO_MARK.finditer(text):
        mark = _mark(match.group())
        if not mark:
            continue
        if match.start() > done:
            pieces.append(Piece(style, text[done : match.start()]))
        pieces.append(Piece("mark", mark))
        if match.group() == "\n":
            pieces.append(Piece(style, "\n"))
        done = match.end()
    if done < len(text):
        pieces.append(Piece(style, text[done:]))
    return pieces


def _mark(found: str) -> str:
    """Returns what stands for a run of spaces or one other character; "" if it shows itself well enough."""
    if found[0] == " ":
        return "·" * len(found)
    if found in _MARKS:
        return _MARKS[found]
    # Controls, formats (zero width, direction), surrogates, private use, unassigned, and spaces of unusual width.
    if unicodedata.category(found) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp"):
        return f"⟨U+{ord(found):04X}⟩"
    return ""


def lengths_chart(data: dict[str, Any], width: int, height: int) -> str | None:
    """Draws the histogram of data.json's lengths; None if there is none that can be drawn.

    Args:
        data: data.json. Its bins are edges (one more than counts) or left edges alone (as many as counts).
        width: of the drawing, in its own units.
        height: likewise.
    """
    lengths = data.get("lengths")
    if not isinstance(lengths, dict):
        return None
    bins, counts = lengths.get("bins"), lengths.get("counts")
    if not isinstance(bins, list) or not isinstance(counts, list):
        return None
    edges = [edge for item in bins if (edge := number(item)) is not None]
    heights = [count for item in counts if (count := number(item)) is not None and count >= 0]
    if len(edges) == len(heights) >= 2:
        edges.append(2 * edges[-1] - edges[-2])
    ascending = all(left < right for left, right in pairwise(edges))
    if not heights or len(heights) != len(counts) or len(edges) != len(heights) + 1 or not ascending:
        return None
    label = f"Lengths of {whole(sum(heights))} samples, from {whole(edges[0])} to {whole(edges[-1])} tokens"
    return bar_chart(label, edges, heights, "tokens in a sample", width=width, height=height)


def refusals(refused: Sequence[dict[str, Any]]) -> Refusals:
    """Counts the refused records by reason, and keeps the first 50."""
    reasons = Counter(shown(record.get("reason")) for record in refused)
    first = [
        (
            shown(record.get("file")),
            shown(record.get("line", record.get("item"))),
            shown(record.get("reason")),
            shown(record.get("cure")),
        )
        for record in refused[:_MOST_REFUSALS]
    ]
    return Refusals(len(refused), reasons.most_common(_MOST_REASONS), first)


def facts(values: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Flattens an object into (dotted name, text) rows; numbers of bytes are written in a unit as well."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{before}{key}"
        if isinstance(value, dict) and value and name.count(".") < 6:
            rows += facts(value, f"{name}.")
            continue
        exact = number(value)
        text = shown(value)
        if exact is not None and str(key).endswith("bytes") and abs(exact) >= 1000:
            text = f"{size(exact)} ({text} bytes)"
        rows.append((name, text))
    return rows[:_MOST_FACTS]


def recipe_lines(recipe: str) -> list[RecipeLine]:
    """Splits a recipe into its lines' key, value and source (the comment at the line's end).

    This is for the eye: a line that is not ``key: value  # source`` is shown as it stands.
    """
    lines = []
    for line in recipe.splitlines()[:_MOST_FACTS]:
        body, _, source = line.rpartition(" #") if " #" in line else (line, "", "")
        key, colon, value = body.partition(":")
        name = key.strip()
        if colon and name and name[0] not in "#-":
            depth = min((len(key) - len(key.lstrip())) // 2, 4)
            lines.append(RecipeLine(depth, shown(name), shown(value.strip()), shown(source.strip())))
        elif line.strip():
            lines.append(RecipeLine(0, "", shown(line.strip()), ""))
    return lines
