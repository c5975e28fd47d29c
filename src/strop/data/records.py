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

Role: TypeAlias = Literal["system", "user", "assistant"]


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
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """system? (user assistant)+ — checked by `strop.data.conversations`."""

    messages: tuple[Message, ...]
    place: Place


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
    """

    tokens: Tokens
    learned: Learned
    id: int
    place: Place
    conversation: Conversation | None = None

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
    """

    place: Place
    reason: str
    cure: str
    found: str = field(default="")

    def as_dict(self) -> dict[str, str]:
        """The refusal as one line of ``refused.jsonl``."""
        return {"place": str(self.place), "reason": self.reason, "found": self.found, "cure": self.cure}
