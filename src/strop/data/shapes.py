"""The shapes that rows come in, and how each is read.

A shape is found row by row: the first one in `SHAPES` whose columns the row has, with a value in each. So a file in
which two shapes are mixed is read as two, and the count of each is known.

    messages                                  OpenAI's turns; tools or functions beside them
    conversations                             sharegpt's
    conversation                              XTuner's
    instruction + output                      alpaca; a non-empty input follows the instruction after a blank line
    instruction + response                    the same, with context for input
    query + response, question + response, prompt + response
    prompt + completion                       texts, or lists of turns, of which the completion's are learned
    input + output, problem + solution, question + answer
    text                                      "### Human: … ### Assistant: …" is a conversation; any other text is
                                              learned whole, without a chat template

Beside most of them may stand ``system`` (or ``system_prompt``) and ``history``. What is a preference pair, or has an
image, is refused by name (`refuse_other_kinds`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from strop.data.content import MEDIA, RowRefused, content_of, text_of
from strop.data.records import Message
from strop.data.turns import check_characters, is_turns, read_history, read_tools, read_turns

Columns = Mapping[str, Any]

SYSTEM = ("system", "system_prompt")
"""Columns that hold a row's own system prompt."""

TOOLS = ("tools", "functions")
"""Columns that hold the tools that a row's model is told of."""

_OASST = re.compile(r"### (Human|Assistant|System):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant", "System": "system"}
_ASKED = ("prompt", "question", "instruction", "query", "input")
_REJECTED = ("rejected", "rejected_response", "rejected_messages")


@dataclass(frozen=True, slots=True)
class Draft:
    """What a row says, before it is held to the grammar of a conversation.

    Args:
        messages: its turns.
        tools: JSON texts of the schemas of its tools.
        text: the text, where the row is a plain one.
    """

    messages: list[Message]
    tools: tuple[str, ...] = ()
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """What the columns of a row mean.

    Args:
        name: what it is called where rows are counted.
        columns: the columns that a row must have.
        read: a row's values to what it says; raises `RowRefused`.
        beside: columns that are read where a row has them.
        turns: whether the first column holds a list of turns.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[Columns], Draft]
    beside: tuple[str, ...] = ()
    turns: bool = False

    def fits(self, values: Columns) -> bool:
        """Whether a row has the columns, with values of the kind in them."""
        for column in self.columns:
            if values.get(column) is None:
                return False
        return is_turns(values[self.columns[0]]) if self.turns else True


def find(values: Columns) -> tuple[Shape, Shape | None] | None:
    """Find a row's shape.

    Returns:
        The first shape that fits, or else whose columns are there at all; and the next one that fits and would read
        other columns, if there is one. None where there is none.
    """
    named, _ = _by_names(tuple(values))
    fitting = [shape for shape in named if shape.fits(values)]
    if not fitting:
        return (named[0], None) if named else None
    chosen = fitting[0]
    if len(fitting) == 1:
        return chosen, None
    used = {*chosen.columns, *chosen.beside}
    return chosen, next((shape for shape in fitting[1:] if not used.issuperset(shape.columns)), None)


@lru_cache(maxsize=256)
def _by_names(columns: tuple[str, ...]) -> tuple[tuple[Shape, ...], bool]:
    """What names alone decide, worked out once for rows alike: the shapes with these columns, and whether a column is
    one of those that `refuse_other_kinds` looks into."""
    shapes = tuple(shape for shape in SHAPES if set(shape.columns) <= set(columns))
    return shapes, not set(columns).isdisjoint({*_REJECTED, "label", *MEDIA})


def refuse_other_kinds(values: Columns) -> None:
    """Refuse rows that are for another kind of training.

    Raises:
        RowRefused: a preference pair, a judged answer, a row with images, sounds or videos, or one without any value.
    """
    if not any(value is not None for value in values.values()) and values:
        raise RowRefused("every column is empty", "drop the row", f"columns {', '.join(values)}")
    if not _by_names(tuple(values))[1]:
        return
    rejected = next((column for column in _REJECTED if values.get(column) is not None), None)
    if rejected is not None:
        chosen = next((column for column in values if column.startswith("chosen")), "chosen")
        asked = next((column for column in _ASKED if values.get(column) is not None), None)
        raise RowRefused(
            "a preference pair, which is not learned by fine-tuning on answers",
            "to learn the preferred answers alone "
            + (f"name them: --data.map {asked}:{chosen}" if asked else "write them into rows of their own"),
            f"columns {', '.join(values)}",
        )
    if isinstance(values.get("label"), bool) and values.get("completion") is not None:
        raise RowRefused(
            "an answer judged good or bad, which is not learned by fine-tuning on answers",
            "keep the good ones and drop the column 'label'",
            f"label {str(values['label']).lower()}",
        )
    for column, medium in MEDIA.items():
        if column != "file" and values.get(column):
            raise RowRefused(f"the row has {medium}", "drop the row: only text is learned from", f"column {column}")


def own_system(values: Columns) -> list[Message]:
    """The row's own system prompt, from a column beside its question."""
    for column in SYSTEM:
        if values.get(column) is not None:
            return [Message("system", text_of(values[column], column))]
    return []


def answer(values: Columns, column: str) -> Message:
    """The assistant's turn in a column."""
    content = content_of(values[column], column)
    return Message("assistant", content.text, spans=content.spans, thinking=content.thinking)


def pair(question: str, answered: str, *, given: str = "", beside: tuple[str, ...] = ()) -> Shape:
    """Two columns: one is read, one is learned.

    Args:
        question: the column that is read.
        answered: the column that is learned.
        given: a column that follows the question after a blank line where it is not empty.
        beside: the columns of system prompt and history that are read.
    """

    def read(values: Columns) -> Draft:
        asked = text_of(values[question], question)
        more = values.get(given) if given else None
        if more is not None and (more := text_of(more, given)).strip():
            asked = f"{asked}\n\n{more}"
        system = own_system(values) if "system" in beside else []
        history = read_history(values.get("history")) if "history" in beside else []
        return Draft([*system, *history, Message("user", asked), answer(values, answered)])

    more = (*(SYSTEM if "system" in beside else ()), *(["history"] if "history" in beside else []))
    return Shape(f"{question} + {answered}", (question, answered), read, (*([given] if given else ()), *more))


def turns(column: str) -> Shape:
    """One column that holds a list of turns."""

    def read(values: Columns) -> Draft:
        messages = read_turns(values[column], column)
        own = [] if messages and messages[0].role == "system" else own_system(values)
        return Draft([*own, *messages], read_tools(values))

    return Shape(column, (column,), read, (*SYSTEM, *TOOLS), turns=True)


def plain_text(column: str) -> Shape:
    """One column that holds a whole text."""

    def read(values: Columns) -> Draft:
        text = text_of(values[column], column)
        if _OASST.match(text.lstrip()):
            return Draft(_oasst(text))
        if not text.strip():
            raise RowRefused("the text is empty", "fill it, or drop the row")
        check_characters(text)
        return Draft([], text=text)

    return Shape(column, (column,), read)


def _prompt_and_completion() -> Shape:
    texts = pair("prompt", "completion", beside=("system",))

    def read(values: Columns) -> Draft:
        if not (is_list_of_turns(values["prompt"]) or is_list_of_turns(values["completion"])):
            return texts.read(values)
        prompt = _as_turns(values["prompt"], "prompt", "user")
        # What the prompt's assistant said was said; only the completion is to be learned.
        before = [replace(message, weight=0.0) if message.role == "assistant" else message for message in prompt]
        own = [] if before and before[0].role == "system" else own_system(values)
        return Draft([*own, *before, *_as_turns(values["completion"], "completion", "assistant")], read_tools(values))

    return replace(texts, read=read, beside=(*SYSTEM, *TOOLS))


def is_list_of_turns(value: Any) -> bool:
    """Whether a value is a list of turns and not a list of text parts."""
    return isinstance(value, list) and all(
        isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value
    )


def _as_turns(value: Any, column: str, role: str) -> list[Message]:
    return read_turns(value if is_list_of_turns(value) else [{"role": role, "content": value}], column)


def _oasst(text: str) -> list[Message]:
    """Turns between the marks ``### Human:`` and ``### Assistant:``, without the white space around them."""
    pieces = _OASST.split(text)
    turns = [
        {"role": _SPEAKERS[speaker], "content": said.strip()}
        for speaker, said in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
    return read_turns(turns, "text")


_BESIDE = ("system", "history")

SHAPES: tuple[Shape, ...] = (
    turns("messages"),
    turns("conversations"),
    turns("conversation"),
    pair("instruction", "output", given="input", beside=_BESIDE),
    pair("instruction", "response", given="context", beside=_BESIDE),
    pair("query", "response", beside=_BESIDE),
    pair("question", "response", beside=_BESIDE),
    _prompt_and_completion(),
    pair("prompt", "response", beside=_BESIDE),
    pair("input", "output", beside=_BESIDE),
    pair("problem", "solution"),
    pair("question", "answer"),
    plain_text("text"),
)
"""The shapes that are found by looking, the first first."""
