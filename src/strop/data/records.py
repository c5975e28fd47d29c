"""The types that flow through `strop.data`, from a row in a file to the tokens that are learned.

    Record        one row as it stands in the file: column names and values
    Conversation  the same row as a system prompt, questions and answers
    Example       the same conversation as tokens, each learned or only read
    Refusal       a row that is not learned, with the reason and the cure

Each carries its `Place`, so that whatever is wrong later can be said with file and line. All are immutable.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Tokens: TypeAlias = npt.NDArray[np.int32]
    Learned: TypeAlias = npt.NDArray[np.bool_]
    Weights: TypeAlias = npt.NDArray[np.float32]

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a row stands.

    Args:
        file: the path, as the user gave it or as found in the user's folder.
        line: the line, counted from 1, where rows are lines.
        item: the item, counted from 1, where rows are items of one JSON array.
    """

    file: str
    line: int | None = None
    item: int | None = None

    def __str__(self) -> str:
        if self.line is not None:
            return f"{self.file}:{self.line}"
        if self.item is not None:
            return f"{self.file}, item {self.item}"
        return self.file


@dataclass(frozen=True, slots=True)
class Record:
    """One row: its columns in the file's order."""

    values: dict[str, Any]
    place: Place


@dataclass(frozen=True, slots=True)
class Span:
    """Characters of a turn's content, and how much they weigh in the loss.

    Args:
        start: the first character.
        end: the one behind the last.
        weight: 0 is not learned, 1 is learned as usual.
    """

    start: int
    end: int
    weight: float


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that an assistant's turn makes.

    Args:
        name: the function.
        arguments: its arguments, as JSON text in the row's own characters or made of its object.
        id: the call's name, if it has one; the tool's turn repeats it.
    """

    name: str
    arguments: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Args:
        role: who speaks.
        content: the text; empty only where there are calls.
        weight: of an assistant's turn in the loss: 0 is read and not learned, 1 is learned as usual; None where the
            row says nothing, so that the recipe decides.
        spans: parts of the content with weights of their own, in order and apart; what lies between has the turn's.
        thinking: the reasoning that a row keeps beside the answer (``reasoning_content``), for templates that render
            it; None where there is none.
        calls: calls of tools, for templates that render them.
        call_id: in a tool's turn, the call that it answers.
        name: the speaker's or the tool's name, where the row gives one.
    """

    role: Role
    content: str
    weight: float | None = None
    spans: tuple[Span, ...] = ()
    thinking: str | None = None
    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """system? (user assistant)+, with tools' turns between — checked by `strop.data.conversations`.

    Args:
        messages: the turns; none where the record is a plain text.
        place: where the record stands.
        tools: the tools that the model is told of, as JSON texts of their schemas, in order.
        text: a plain text, learned whole and without a chat template; None for a conversation.
    """

    messages: tuple[Message, ...]
    place: Place
    tools: tuple[str, ...] = ()
    text: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A conversation as the model sees it.

    Args:
        tokens: int32 [T], read-only.
        learned: bool [T], read-only: whether the model is taught to produce this token.
        id: the record's number in reading order, from 0, refused records counted. It names the sample wherever
            something depends on it, so that it must not change with the plan.
        place: where the record stands.
        conversation: what the tokens were made of, for asking its questions again.
        weights: float32 [T], read-only: how much each learned token counts in the loss, 0 where it is not learned;
            None where every learned token counts 1.
    """

    tokens: Tokens
    learned: Learned
    id: int
    place: Place
    conversation: Conversation | None = None
    weights: Weights | None = None

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A record that is not learned from.

    Args:
        place: where the record stands.
        reason: why, in words that are equal for equal faults, so that they can be counted.
        cure: what the user can do about it.
        found: what was there instead, where that says more than the reason.
        excerpt: the beginning of the record's columns, to know it by.
    """

    place: Place
    reason: str
    cure: str
    found: str = field(default="")
    excerpt: str = field(default="")

    def as_dict(self) -> dict[str, str | int]:
        """The refusal as one line of ``refused.jsonl``; line or item only where the file has such."""
        place: dict[str, str | int] = {"file": self.place.file}
        if self.place.line is not None:
            place["line"] = self.place.line
        if self.place.item is not None:
            place["item"] = self.place.item
        return {
            **place,
            "reason": self.reason,
            "found": self.found,
            "cure": self.cure,
            "excerpt": self.excerpt,
        }
