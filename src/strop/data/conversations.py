"""Rows to conversations: what the columns mean, found by looking.

    messages / conversations / conversation   a list of turns: {role, content}, {from, value} or XTuner's
                                              {system?, input, output}; a content may be a list of text parts
    instruction + output                      a non-empty input is appended to the instruction after a blank line;
                                              here and above, a column system is the row's own system prompt
    input + output, problem + solution, question + answer, prompt + completion

One shape holds for a whole data set: the one that fits most rows, the earlier in the list where that is even. The
recipe's ``map`` (``question:answer``) names two other columns and switches the looking off.

- The recipe's system prompt wins over a row's own, an empty one removes it; without one the row's own is used.
- What comes out is always system? (user assistant)+, and contents are the row's characters, untouched.
- A row that does not give that is a `Refusal`. In particular a conversation that ends in a user turn is refused and
  not shortened: whether the last question should have had an answer only the data's owner can know.
- Numbers are accepted as their text: many data sets have answers such as 72.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strop.data.records import Conversation, Message, Record, Refusal, Role
from strop.data.sources import json_kind
from strop.errors import DataError, UsageError

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
"""What rows call the speakers, and what they are."""


class _RowRefused(Exception):
    """A row gives no conversation; carries the refusal's words."""

    def __init__(self, reason: str, cure: str, found: str = "") -> None:
        super().__init__(reason)
        self.reason, self.cure, self.found = reason, cure, found


@dataclass(frozen=True, slots=True)
class Shape:
    """What the columns of a data set mean.

    Args:
        columns: the columns that a row must have.
        read: a row's values to its messages, unchecked; raises `_RowRefused`.
    """

    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], list[Message]]

    def fits(self, values: Mapping[str, Any]) -> bool:
        """Whether a row has the columns."""
        return all(column in values for column in self.columns)


def find_shape(records: Sequence[Record], columns: str | None = None) -> Shape:
    """Find what the columns of a data set mean.

    Args:
        records: all rows, at least one.
        columns: the recipe's ``map``, as ``question:answer``; None to look.

    Raises:
        UsageError: the map is not two column names with a colon between them.
        DataError: no row has the columns; with the place of a row, its columns and the nearest names.
    """
    if columns is not None:
        question, colon, answer = (part.strip() for part in columns.partition(":"))
        if not (question and colon and answer):
            raise UsageError(
                f"data.map is {columns!r}",
                expected="the column to read and the column to learn, as question:answer",
                do="for example --data.map problem:solution",
            )
        shape = _pair(question, answer)
        if not any(shape.fits(record.values) for record in records):
            raise _missing_columns(records, shape)
        return shape
    fitting = [sum(shape.fits(record.values) for record in records) for shape in SHAPES]
    best = max(fitting)
    if best == 0:
        raise _unknown_columns(records)
    return SHAPES[fitting.index(best)]


def read_conversation(record: Record, shape: Shape, system: str | None = None) -> Conversation | Refusal:
    """Read one row.

    Args:
        record: the row.
        shape: what its columns mean, from `find_shape`.
        system: the recipe's system prompt: replaces the row's own; "" removes it; None keeps it.
    """
    try:
        missing = [column for column in shape.columns if column not in record.values]
        if missing:
            raise _RowRefused(
                f"the column {missing[0]!r} is missing",
                "add it to this row, or drop the row",
                f"columns {', '.join(record.values) or '(none)'}",
            )
        messages = shape.read(record.values)
        if system is not None:
            messages = [message for message in messages if message.role != "system"]
            messages.insert(0, Message("system", system))
        messages = [message for message in messages if not (message.role == "system" and not message.content)]
        _check_turns(messages)
    except _RowRefused as refused:
        return Refusal(record.place, refused.reason, refused.cure, refused.found)
    return Conversation(tuple(messages), record.place)


def _check_turns(messages: Sequence[Message]) -> None:
    """Hold a conversation to system? (user assistant)+, with text in every turn."""
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if not any(message.role == "assistant" for message in turns):
        raise _RowRefused("there is no assistant turn to learn", "add an answer, or drop the row")
    for number, message in enumerate(turns):
        expected = "user" if number % 2 == 0 else "assistant"
        if message.role != expected:
            raise _RowRefused(
                "the turns do not alternate between user and assistant",
                "give a system turn first, if any, then user and assistant in turn",
                "turns " + ", ".join(message.role for message in messages[:8]),
            )
    if turns[-1].role == "user":
        raise _RowRefused("the last turn is a question without an answer", "add the answer, or remove the question")
    for message in messages:
        if not message.content.strip():
            name = {"user": "question", "assistant": "answer"}.get(message.role, "system prompt")
            raise _RowRefused(f"the {name} is empty", "fill it, or drop the row")
        try:
            message.content.encode("utf-8")
        except UnicodeEncodeError:
            raise _RowRefused(
                "the text holds half of a surrogate pair, which is not a character",
                "repair the \\ud8xx escape in the row",
            ) from None


def _pair(question: str, answer: str) -> Shape:
    """Two columns: one is read, one is learned."""

    def read(values: Mapping[str, Any]) -> list[Message]:
        asked, answered = _text(values[question], question), _text(values[answer], answer)
        return [Message("user", asked), Message("assistant", answered)]

    return Shape((question, answer), read)


def _read_instruction(values: Mapping[str, Any]) -> list[Message]:
    """Alpaca's shape: an instruction, what it is applied to (often nothing), and the answer."""
    asked = _text(values["instruction"], "instruction")
    given = values.get("input")
    if given is not None and (given := _text(given, "input")).strip():
        asked = f"{asked}\n\n{given}"
    return [*_row_system(values), Message("user", asked), Message("assistant", _text(values["output"], "output"))]


def _row_system(values: Mapping[str, Any]) -> list[Message]:
    """The column ``system`` that alpaca's shape and lists of turns may have beside them."""
    value = values.get("system")
    return [] if value is None else [Message("system", _text(value, "system"))]


def _turns(column: str) -> Shape:
    """One column that holds a list of turns."""

    def read(values: Mapping[str, Any]) -> list[Message]:
        turns = values[column]
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise _RowRefused(
                f"{column!r} is not a list of turns",
                'give a list such as [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]',
                json_kind(turns),
            )
        messages = [message for number, turn in enumerate(turns) for message in _read_turn(turn, first=number == 0)]
        return messages if messages and messages[0].role == "system" else [*_row_system(values), *messages]

    return Shape((column,), read)


def _read_turn(turn: Mapping[str, Any], *, first: bool) -> list[Message]:
    for speaker, words in (("role", "content"), ("from", "value")):
        if speaker in turn and words in turn:
            role = ROLES.get(turn[speaker]) if isinstance(turn[speaker], str) else None
            if role is None:
                raise _RowRefused(
                    f"the role {turn[speaker]!r} is not known",
                    f"use {', '.join(dict.fromkeys(ROLES.values()))}; calls of tools are not learned",
                )
            return [Message(role, _text(turn[words], words))]
    if "input" in turn and "output" in turn:
        messages = [
            Message("user", _text(turn["input"], "input")),
            Message("assistant", _text(turn["output"], "output")),
        ]
        # Later turns repeat the system prompt or leave it out; the first turn's is the conversation's.
        if first and turn.get("system") is not None:
            messages.insert(0, Message("system", _text(turn["system"], "system")))
        return messages
    raise _RowRefused(
        "a turn is neither {role, content} nor {from, value} nor {input, output}",
        "name the turn's parts in one of these ways",
        f"a turn with {', '.join(turn) or 'nothing'}",
    )


def _text(value: Any, column: str) -> str:
    """A column's value as text: texts as they are, numbers as written, text parts joined."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list) and value:
        parts = [_part(part) for part in value]
        if None not in parts:
            return "".join(part for part in parts if part is not None)
    raise _RowRefused(f"{column!r} is not a text", "give a text, or drop the row", json_kind(value))


def _part(part: Any) -> str | None:
    """One part of a content in parts: a text, or {"type": "text", "text": …}; None for images and the like."""
    if isinstance(part, dict) and part.get("type", "text") == "text":
        part = part.get("text")
    return part if isinstance(part, str) else None


SHAPES: tuple[Shape, ...] = (
    _turns("messages"),
    _turns("conversations"),
    _turns("conversation"),
    Shape(("instruction", "output"), _read_instruction),
    _pair("input", "output"),
    _pair("problem", "solution"),
    _pair("question", "answer"),
    _pair("prompt", "completion"),
)
"""The shapes that are found by looking, the first first."""


def _missing_columns(records: Sequence[Record], shape: Shape) -> DataError:
    """No row has the columns that the recipe's map names."""
    for column in shape.columns:
        having = [record for record in records if column in record.values]
        if not having:
            wrong, record = column, records[0]
            break
    else:
        wrong, record = shape.columns[1], next(record for record in records if shape.columns[0] in record.values)
    near = _nearest(wrong, record.values)
    hint = f"did you mean {near!r}? " if near else ""
    return DataError(
        f"{record.place}: there is no column {wrong!r}",
        expected=f"the columns {' and '.join(map(repr, shape.columns))}, as data.map says",
        found=f"columns {', '.join(record.values) or '(none)'}",
        do=hint + "name the two columns with --data.map question:answer",
    )


def _unknown_columns(records: Sequence[Record]) -> DataError:
    """No row has columns of a known shape."""
    record = records[0]
    known = dict.fromkeys(column for shape in SHAPES for column in shape.columns)
    near = [(column, close) for column in known if (close := _nearest(column, record.values))]
    hint = f"is {near[0][1]!r} meant to be {near[0][0]!r}? " if near else ""
    return DataError(
        f"{record.place}: the columns are of no known shape",
        expected="; ".join(" and ".join(shape.columns) for shape in SHAPES),
        found=f"columns {', '.join(record.values) or '(none)'}",
        do=hint + "name the column to read and the column to learn with --data.map question:answer",
    )


def _nearest(name: str, columns: Mapping[str, Any]) -> str | None:
    """The column whose name is nearest to a wanted one, if any is near."""
    from rapidfuzz import fuzz, process, utils

    match = process.extractOne(name, list(columns), scorer=fuzz.ratio, processor=utils.default_process, score_cutoff=60)
    return match[0] if match else None
