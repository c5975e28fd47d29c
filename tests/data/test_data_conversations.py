"""Rows to conversations: the shapes found by looking, and what is refused, with reason and cure."""

from __future__ import annotations

from typing import Any

import pytest

from strop.data.conversations import RowReader
from strop.data.records import Conversation, Place, Record, Refusal
from strop.errors import DataError, UsageError


def record(values: dict[str, Any], line: int = 1) -> Record:
    return Record(values, Place("rows.jsonl", line))


def read(values: dict[str, Any], columns: str | None = None, system: str | None = None) -> Conversation | Refusal:
    return RowReader(columns, system).read(record(values))


def check(rows: list[Record], columns: str | None = None) -> None:
    reader = RowReader(columns)
    for row in rows:
        assert isinstance(reader.read(row), Refusal)
    reader.check()


def turns(values: dict[str, Any], columns: str | None = None, system: str | None = None) -> list[tuple[str, str]]:
    conversation = read(values, columns, system)
    assert isinstance(conversation, Conversation), conversation
    return [(message.role, message.content) for message in conversation.messages]


QA = [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, QA),
        (
            {
                "messages": [
                    {"role": "system", "content": "s"},
                    {"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "r"}]},
                    {"role": "assistant", "content": "a"},
                ]
            },
            [("system", "s"), ("user", "qr"), ("assistant", "a")],
        ),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": ""}, QA),
        (
            {"conversation": [{"system": "s", "input": "q", "output": "a"}, {"input": "r", "output": "b"}]},
            [("system", "s"), *QA, ("user", "r"), ("assistant", "b")],
        ),
        ({"input": "q", "output": "a"}, QA),
        ({"problem": "q", "level": "Level 1", "type": "Algebra", "solution": "a"}, QA),
        ({"question": "q", "answer": "a"}, QA),
        ({"prompt": "q", "completion": "a"}, QA),
        ({"instruction": "q", "output": "a"}, QA),
        ({"instruction": "q", "input": "", "output": "a"}, QA),
        ({"instruction": "q", "input": None, "output": "a", "system": "s"}, [("system", "s"), *QA]),
        ({"instruction": "q", "input": "on this", "output": "a"}, [("user", "q\n\non this"), ("assistant", "a")]),
        ({"question": "q", "answer": 72}, [("user", "q"), ("assistant", "72")]),
        ({"question": " q\n", "answer": "\ta "}, [("user", " q\n"), ("assistant", "\ta ")]),
    ],
)
def test_known_shapes(values: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert turns(values) == expected


def test_the_map_names_the_columns() -> None:
    values = {"question": "q", "answer": "a", "hint": "h"}
    assert turns(values, "answer: hint") == [("user", "a"), ("assistant", "h")]


def test_mixed_shapes_are_separated_and_named() -> None:
    reader = RowReader()
    rows = [
        {"input": "q", "output": "a"},
        {"problem": "q", "solution": "a"},
        {"hint": "h"},
        {"input": "q", "output": "a"},
    ]
    readings = [reader.read(record(values, line)) for line, values in enumerate(rows, 1)]
    assert reader.shapes == {"input + output": 2, "problem + solution": 1}
    refusal = readings[2]
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "the columns are of no known shape"
    assert (refusal.found, refusal.excerpt, str(refusal.place)) == ("columns hint", "hint: h", "rows.jsonl:3")
    reader.check()


def test_of_two_shapes_the_earlier_is_taken_and_the_row_counted() -> None:
    reader = RowReader()
    both = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "prompt": "x"}
    assert isinstance(reader.read(record({**both, "completion": "y"})), Conversation)
    assert isinstance(reader.read(record(both)), Conversation)
    assert reader.shapes == {"messages": 2}
    assert reader.tally.ambiguous == {"messages, not prompt + completion": 1}
    assert reader.tally.unread == {"prompt": 2, "completion": 1}


def test_what_several_readers_counted_is_put_together() -> None:
    """Rows are read in several processes; the data set is one."""
    import pickle

    one, two = RowReader("question:answer"), RowReader("question:answer")
    one.read(record({"question": "q"}, 1))
    two.read(record({"question": "q", "answers": "a"}, 2))
    one.tally.add(pickle.loads(pickle.dumps(two.tally)))
    with pytest.raises(DataError, match=r"rows.jsonl:1: there is no column 'answer'"):
        one.check()
    three = RowReader("question:answer")
    three.read(record({"question": "q", "answer": "a", "hint": "h"}, 3))
    one.tally.add(three.tally)
    one.check()
    assert one.shapes == {"question + answer": 1}
    assert one.tally.unread == {"hint": 1}


def test_a_column_without_values_is_no_column() -> None:
    """Tables give every row all columns."""
    reader = RowReader()
    reader.read(record({"messages": None, "prompt": "q", "completion": "a", "source": None}))
    assert reader.shapes == {"prompt + completion": 1}
    assert not reader.tally.ambiguous
    assert not reader.tally.unread


OWN = {
    "messages": [
        {"role": "system", "content": "own"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
}


@pytest.mark.parametrize(("system", "expected"), [(None, "own"), ("recipe", "recipe"), ("", None)])
def test_the_recipe_s_system_prompt_wins(system: str | None, expected: str | None) -> None:
    assert turns(OWN, system=system) == ([("system", expected)] if expected else []) + QA


def message_row(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"question": "", "answer": "a"}, "the question is empty"),
        ({"question": "q", "answer": " \n"}, "the answer is empty"),
        ({"question": "q", "answer": None}, "'answer' is not a text"),
        ({"question": True, "answer": "a"}, "'question' is not a text"),
        ({"question": {"text": "q"}, "answer": "a"}, "'question' is not a text"),
        ({"question": "q", "answer": "\ud800"}, "surrogate"),
        ({"messages": "hello"}, "'messages' is not a list of turns"),
        ({"messages": []}, "no assistant turn"),
        ({"messages": [{"content": "q"}]}, "a turn is neither"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "a part of 'content' is an image",
        ),
        (message_row("user"), "no assistant turn"),
        (message_row("system", "user"), "no assistant turn"),
        (message_row("user", "assistant", "user"), "a question without an answer"),
        (message_row("assistant", "user", "assistant"), "do not alternate"),
        (message_row("user", "user", "assistant"), "do not alternate"),
        (message_row("user", "system", "assistant"), "do not alternate"),
        (message_row("system", "system", "user", "assistant"), "do not alternate"),
        (message_row("user", "tool", "assistant"), "do not alternate"),
        (message_row("user", "nurse", "assistant"), "the role 'nurse' is not known"),
        ({"messages": [{"role": 7, "content": "q"}]}, "the role 7 is not known"),
        ({"instruction": "q", "input": ["x", 1], "output": "a"}, "'input' is not a text"),
    ],
)
def test_a_row_that_gives_no_conversation_is_refused(values: dict[str, Any], reason: str) -> None:
    refusal = read(values)
    assert isinstance(refusal, Refusal)
    assert reason in refusal.reason
    assert refusal.cure
    assert str(refusal.place) == "rows.jsonl:1"


def test_a_column_that_no_row_has_is_named_with_the_nearest() -> None:
    rows = [record({"Question": "q", "answer": "a"}, line) for line in (4, 5)]
    with pytest.raises(DataError) as caught:
        check(rows, "question:answer")
    message = str(caught.value)
    for word in (
        "rows.jsonl:4",
        "no column 'question'",
        "columns Question, answer",
        "did you mean 'Question'",
        "--data.map",
    ):
        assert word in message


def test_columns_that_never_stand_together_are_named() -> None:
    rows = [record({"question": "q"}, 1), record({"answer": "a"}, 2)]
    with pytest.raises(DataError, match=r"rows.jsonl:1: there is no column 'answer'"):
        check(rows, "question:answer")


def test_columns_of_no_known_shape_are_named() -> None:
    with pytest.raises(DataError) as caught:
        check([record({"problems": "q", "words": "a"})])
    message = str(caught.value)
    for word in ("rows.jsonl:1", "problems, words", "is 'problems' meant to be 'problem'", "--data.map"):
        assert word in message


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("user=q,asistant=a", "did you mean assistant=a?"),
        ("user=q", "user and assistant, with system"),
        ("user=q,assistant=", "parts such as user=question"),
        ("user=q,user=r,assistant=a", "one column for user"),
        ("text=t,system=s", "or text"),
        ("messages=m,user=q", "or messages"),
    ],
)
def test_a_map_of_parts_has_what_a_conversation_needs(columns: str, said: str) -> None:
    with pytest.raises(UsageError, match=r"data\.map") as caught:
        RowReader(columns)
    assert said in caught.value.expected + caught.value.do


@pytest.mark.parametrize("columns", ["question", "question:", ":answer", ""])
def test_a_map_that_is_no_map_is_a_wrong_recipe(columns: str) -> None:
    with pytest.raises(UsageError, match=r"data\.map"):
        RowReader(columns)
