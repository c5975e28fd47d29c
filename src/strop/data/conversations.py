"""Rows to conversations: what the columns mean, found by looking, row by row.

    Record ──shapes (or the recipe's map)──▶ turns, tools, or a plain text ──grammar──▶ Conversation or Refusal

- The recipe's system prompt wins over a row's own, an empty one removes it; without one the row's own is used.
- What comes out is system? (user assistant)+, with tools' turns between (`strop.data.turns`), or a plain text. Contents
  are the row's characters, untouched.
- A row that does not give that is a `Refusal`. In particular a conversation that ends in a user turn is refused and
  not shortened: whether the last question should have had an answer only the data's owner can know.
- Numbers are accepted as their text: many data sets have answers such as 72.
- Shapes are counted by name (`RowReader.shapes`); so are rows that two shapes would fit, and columns that nobody reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from strop.data.columns import (
    columns_of,
    cure_of_unknown,
    half_of_a_shape,
    mapped_shape,
    missing_columns,
    nearest,
    unknown_columns,
)
from strop.data.content import RowRefused
from strop.data.records import Conversation, Message, Record, Refusal
from strop.data.shapes import Draft, Shape, find, refuse_other_kinds
from strop.data.turns import check_turns

_EXCERPT = 160
_EXCERPT_OF_COLUMN = 60


@dataclass(slots=True)
class Tally:
    """What reading rows has counted; small, can be sent between processes and put together.

    Attributes:
        shapes: name of a shape → rows that were read so.
        ambiguous: "one shape, not another" → rows that both would fit; the earlier of `strop.data.shapes` was taken.
        unread: column → rows that have a value in it which nothing read.
        known: whether a row has had the columns of a shape.
        seen: until then, columns of the map that some row has had.
        first: the first row's columns and place.
        first_without: the first row without a column of the map, by column.
    """

    shapes: Counter[str] = field(default_factory=Counter)
    ambiguous: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    known: bool = False
    seen: set[str] = field(default_factory=set)
    first: Record | None = None
    first_without: dict[str, Record] = field(default_factory=dict)

    def add(self, later: Tally) -> None:
        """Put what was counted over later rows to what was counted before."""
        self.shapes += later.shapes
        self.ambiguous += later.ambiguous
        self.unread += later.unread
        self.known = self.known or later.known
        self.seen |= later.seen
        self.first = self.first or later.first
        self.first_without = {**later.first_without, **self.first_without}


class RowReader:
    """Reads rows one by one; needs to see no other row to read one.

    Args:
        columns: the recipe's ``map``; None to find the shape of each row by looking.
        system: the recipe's system prompt: replaces the rows' own; "" removes them; None keeps them.

    Attributes:
        tally: what was counted; where rows are read in several places, put together by `Tally.add`.

    Raises:
        UsageError: the map is no map.
    """

    def __init__(self, columns: str | None = None, system: str | None = None) -> None:
        self._mapped = mapped_shape(columns) if columns is not None else None
        self._system = system
        self.tally = Tally()

    @property
    def shapes(self) -> Counter[str]:
        """Name of a shape → rows that were read so."""
        return self.tally.shapes

    def read(self, record: Record) -> Conversation | Refusal:
        """Read one row: a conversation, or the refusal that says why it is none."""
        try:
            shape, draft = self._draft(record)
            messages = self._with_system(draft)
            if draft.text is None:
                check_turns(messages)
        except RowRefused as refused:
            return Refusal(record.place, refused.reason, refused.cure, refused.found, excerpt(record.values))
        name = shape.name
        if self._mapped is None and shape.columns == ("text",):
            name = "text (plain)" if draft.text is not None else "text (### Human, ### Assistant)"
        self.tally.shapes[name] += 1
        used = {*shape.columns, *shape.beside}
        for column, value in record.values.items():
            if column not in used and value not in (None, "", []):
                self.tally.unread[column] += 1
        return Conversation(tuple(messages), record.place, draft.tools, draft.text)

    def check(self) -> None:
        """Hold what was read to having had the columns of a shape at least once.

        Raises:
            DataError: rows were read, and none had the columns; with the place of a row, its columns and the nearest
                names.
        """
        tally = self.tally
        if tally.known or tally.first is None:
            return
        if self._mapped is None:
            raise unknown_columns(tally.first)
        columns = self._mapped.columns
        wrong = next((column for column in columns if column not in tally.seen), columns[-1])
        raise missing_columns(self._mapped, wrong, tally.first_without.get(wrong, tally.first))

    def _draft(self, record: Record) -> tuple[Shape, Draft]:
        values = record.values
        if self.tally.first is None:
            self.tally.first = _columns_alone(record)
        if self._mapped is not None:
            self._check_mapped(self._mapped, record)
            return self._mapped, self._mapped.read(values)
        try:
            refuse_other_kinds(values)
        except RowRefused:
            self.tally.known = True
            raise
        found = find(values)
        if found is None:
            raise _unknown(values)
        self.tally.known = True
        shape, other = found
        if other is not None:
            self.tally.ambiguous[f"{shape.name}, not {other.name}"] += 1
        return shape, shape.read(values)

    def _check_mapped(self, shape: Shape, record: Record) -> None:
        missing = [column for column in shape.columns if column not in record.values]
        tally = self.tally
        if not tally.known:
            tally.seen.update(column for column in shape.columns if column not in missing)
            for column in missing:
                tally.first_without.setdefault(column, _columns_alone(record))
        if missing:
            near = nearest(missing[0], record.values)
            raise RowRefused(
                f"the column {missing[0]!r} is missing",
                (f"is {near!r} meant? " if near else "") + "add it to this row, or drop the row",
                columns_of(record.values),
            )
        tally.known = True

    def _with_system(self, draft: Draft) -> list[Message]:
        """The turns with the system prompt that holds; empty ones are none."""
        messages = draft.messages
        if self._system is not None and draft.text is None:
            messages = [message for message in messages if message.role != "system"]
            messages.insert(0, Message("system", self._system))
        return [message for message in messages if not (message.role == "system" and not message.content)]


def _columns_alone(record: Record) -> Record:
    return Record(dict.fromkeys(record.values), record.place)


def _unknown(values: Mapping[str, Any]) -> RowRefused:
    """What to say of a row that no shape fits."""
    half = half_of_a_shape(values)
    if half is None:
        return RowRefused("the columns are of no known shape", cure_of_unknown(values), columns_of(values))
    column, beside = half
    return RowRefused(
        f"{column!r} has nothing to learn or to ask beside it",
        f"add a column {' or '.join(map(repr, beside))}, drop the row, or name the columns with --data.map",
        columns_of(values),
    )


def excerpt(values: Mapping[str, Any]) -> str:
    """The beginning of a row's columns, short enough for a list of refusals."""
    pieces, length = [], 0
    for column, value in values.items():
        text = (
            value if isinstance(value, str) else repr(value) if not isinstance(value, list | dict) else _opened(value)
        )
        piece = f"{column}: {' '.join(text[: _EXCERPT_OF_COLUMN * 2].split())[:_EXCERPT_OF_COLUMN]}"
        pieces.append(piece)
        length += len(piece)
        if length > _EXCERPT:
            break
    text = " · ".join(pieces).encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…"


def excerpt_of(conversation: Conversation) -> str:
    """The same of a row that has been read."""
    if conversation.text is not None:
        return excerpt({"text": conversation.text})
    return excerpt({message.role: message.content for message in conversation.messages[:3]})


def _opened(value: Any) -> str:
    """The beginning of a list or an object; a whole one may be as long as a book."""
    if isinstance(value, dict):
        return ", ".join(
            f"{key}: {str(item)[:40] if not isinstance(item, list | dict) else '…'}"
            for key, item in [*value.items()][:4]
        )
    return "; ".join(_opened(item) if isinstance(item, dict) else str(item)[:40] for item in value[:2])
