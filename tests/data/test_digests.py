"""What counts as the same question: as lint sees it at least, and spaces, case and forms of characters put aside."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from strop.data.digests import asked, question, said
from strop.data.lint.repeats import question_digest
from strop.data.records import Conversation, Message, Place, Role

PLACE = Place("a.jsonl", line=1)
TEXTS = st.text(st.sampled_from("aAßẞſSıİi\u0307 \t\n２2²ﬁfiα\u0345\u0301ΆΣς"), max_size=4)
TURNS = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), TEXTS), max_size=4)


def conversation(*turns: tuple[Role, str], text: str | None = None) -> Conversation:
    return Conversation(tuple(Message(role, content) for role, content in turns), PLACE, text=text)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ([("user", "What is  2+2?"), ("assistant", "4")], [("user", "what IS 2+2?\n"), ("assistant", "four")], True),
        ([("system", "Be."), ("user", "q"), ("assistant", "a")], [("user", "q"), ("assistant", "b")], True),
        ([("user", "２ ﬁ"), ("assistant", "a")], [("user", "2 fi"), ("assistant", "b")], True),
        ([("user", "q"), ("assistant", "a")], [("user", "p"), ("assistant", "a")], False),
        (
            [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "s")],
            [("user", "q"), ("assistant", "b"), ("user", "r"), ("assistant", "s")],
            False,
        ),
        ([("user", "q\n\nassistant\na"), ("assistant", "b")], [("user", "q"), ("assistant", "b")], False),
    ],
)
def test_the_same_question(one: list[tuple[Role, str]], other: list[tuple[Role, str]], same: bool) -> None:
    assert (asked(conversation(*one)) == asked(conversation(*other))) == same


def test_where_nothing_is_asked_it_counts_what_is_said() -> None:
    for one in (
        conversation(text="Once"),
        conversation(("user", "q")),
        conversation(("user", " "), ("assistant", "a")),
    ):
        assert question(one) is None
        assert asked(one) == said(one)
    assert asked(conversation(text="Once")) == asked(conversation(text=" ONCE\n")) != asked(conversation(text="Twice"))


@given(one=TURNS, other=TURNS)
@example(one=[("user", "α\u0345\u0301"), ("assistant", "a")], other=[("user", "αι\u0301"), ("assistant", "a")])
def test_what_lint_takes_for_one_question_is_one(one: list[tuple[Role, str]], other: list[tuple[Role, str]]) -> None:
    pair = conversation(*one), conversation(*other)
    digests = [question_digest(each) for each in pair]
    if digests[0] is not None and digests[0] == digests[1]:
        assert asked(pair[0]) == asked(pair[1])
    changed = conversation(*((role, f" {content.upper()} ") for role, content in one))
    if question_digest(changed) == digests[0] and digests[0] is not None:
        assert asked(changed) == asked(pair[0])
