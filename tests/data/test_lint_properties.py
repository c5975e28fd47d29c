"""Lint and fix on any text: neither raises, to fix twice is to fix once, and what is clean stays as it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from strop.data.lint import FIXED, fix, lint
from strop.data.lint.cases import excerpt
from strop.data.lint.characters import Characters, Marks
from strop.data.lint.encoding import LOSSY, REPAIRABLE, edits, losses
from strop.data.lint.private import mask
from strop.data.records import Conversation, Message, Place, Role, Span, ToolCall

# Pieces that the checks look for, put together in ways that nobody thought of.
PIECES = st.sampled_from(
    [
        *("Ã©", "Ã", "â€", "€™", "浣犲ソ", "锟斤拷", "涓", "鏄", "\x9d", "\ufffd", "\ud83d", "\ude00", "ß“", "é"),
        *("\x0c", "rac{", "\x08oxed{1}", "\t", "imes", "\r", "\r\n", "\n", " ", "\x00"),
        *("\u200b", "\u200d", "\ufeff", "👨", "م"),
        *("```", "$$", "$", "\\boxed{", "<|im_end|>", "<s>", "&amp;", "<br>", "USER: x\n", "ASSISTANT: y\n", "#### "),
        *("13812947756", "4539 1488 0343 6467", "a@b.cn", "1.2.3.4", "sk-9aZ4bQ7xLw2Rt8VnY3kP6mHs1Ue5Dc0F", "sk-"),
        *("的", "，", "因为", "and", "A long sentence here."),
    ]
)
TEXTS = st.lists(st.one_of(PIECES, st.text(st.characters(), max_size=8)), max_size=12).map("".join)
ROLES: st.SearchStrategy[Role] = st.sampled_from(["system", "user", "assistant", "tool"])


@st.composite
def messages(draw: st.DrawFn) -> Message:
    content = draw(TEXTS)
    borders = sorted(draw(st.lists(st.integers(0, len(content)), max_size=4)))
    spans = tuple(Span(a, b, 0.5) for a, b in zip(borders[::2], borders[1::2], strict=False) if a < b)
    calls = draw(st.sampled_from([(), (ToolCall("f", '{"x": "Ã©"}'),)]))
    return Message(draw(ROLES), content, spans=spans, thinking=draw(st.none() | TEXTS), calls=calls)


@st.composite
def data_sets(draw: st.DrawFn) -> list[Conversation]:
    pool = draw(st.lists(st.lists(messages(), max_size=5), min_size=1, max_size=5))
    turns = draw(st.lists(st.sampled_from(pool), max_size=10))
    made = [Conversation(tuple(some), Place("a.jsonl", line=line)) for line, some in enumerate(turns, 1)]
    return made + [
        Conversation((), Place("b.jsonl", line=line), text=text)
        for line, text in enumerate(draw(st.lists(TEXTS, max_size=2)), 1)
    ]


MANY = settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])


@MANY
@given(data_sets(), data_sets())
def test_lint_raises_nothing(learned: list[Conversation], held_out: list[Conversation]) -> None:
    lengths = [len(str(one)) for one in learned]
    for finding in lint(learned, held_out, lengths=lengths, max_tokens=200, control_tokens=("<|im_end|>",)):
        assert 0 < finding.count <= len(learned) + len(held_out)
        assert 0 < len(finding.instances) <= 5
        assert all("\n" not in one.text and len(one.text) < 400 for one in finding.instances)


@MANY
@given(data_sets(), data_sets())
def test_to_fix_twice_is_to_fix_once(learned: list[Conversation], held_out: list[Conversation]) -> None:
    once = fix(learned, held_out)
    twice = fix(once.conversations, held_out)
    assert twice.conversations == once.conversations
    assert twice.changes == ()
    assert twice.left == once.left


@MANY
@given(data_sets(), data_sets())
def test_what_lint_finds_clean_is_not_changed(learned: list[Conversation], held_out: list[Conversation]) -> None:
    found = {finding.kind for finding in lint(learned, held_out)}
    fixed = fix(learned, held_out)
    assert {change.kind for change in fixed.changes} <= found | _uncovered(found)
    if not found & set(FIXED):
        assert fixed.conversations == tuple(learned)


def _uncovered(found: set[str]) -> set[str]:
    """What can come to light when something else is repaired."""
    repairs = {"mojibake", "control-characters", "invisible-characters", "carriage-returns", "lost-backslashes"}
    return set(FIXED) if found & (repairs | {"broken-surrogates"}) else set()


@MANY
@given(st.lists(TEXTS, max_size=6))
def test_marks_miss_nothing(texts: Sequence[str]) -> None:
    """A check that a mark guards would find nothing in a text without the mark."""
    for text, mark in zip(texts, Characters(texts).marks().tolist(), strict=True):
        if not mark & REPAIRABLE:
            assert edits(text) == []
        if not mark & LOSSY:
            assert list(losses(text)) == []
        assert bool(mark & Marks.LONG_TOKEN) == _has_run(text, "_-", 16, letters=True)
        assert bool(mark & Marks.DOTTED) == _has_run(text, ".", 7, letters=False)


def _has_run(text: str, others: str, length: int, *, letters: bool) -> bool:
    run = longest = 0
    for character in text:
        fits = character in others or (
            character.isascii() and (character.isalnum() if letters else character.isdigit())
        )
        run = run + 1 if fits else 0
        longest = max(longest, run)
    return longest >= length


@MANY
@given(TEXTS, st.integers(0, 40), st.integers(0, 40))
def test_masks_keep_the_length_and_excerpts_are_one_line(text: str, start: int, length: int) -> None:
    assert len(mask(text)) == len(text)
    key = "sk-9aZ4bQ7xLw2Rt8VnY3kP6mHs1Ue5Dc0F"
    assert "9aZ4bQ7xLw" not in mask(f"{text} {key}")[-len(key) :]
    start = min(start, len(text))
    shown = excerpt(text, start, min(start + length, len(text)))
    assert len(shown.splitlines()) <= 1
    shown.encode("utf-8")


@MANY
@given(st.lists(TEXTS, min_size=1, max_size=6))
def test_code_points_are_those_of_the_texts(texts: Sequence[str]) -> None:
    characters = Characters(texts)
    for text, start, length in zip(texts, characters.starts, characters.lengths, strict=True):
        assert [chr(code) for code in characters.codes[start : start + length]] == [*text, "\n"]
    assert np.array_equal(np.bincount(characters.owner, minlength=len(texts)), characters.lengths)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "piece", ["\u200b", "\r", "<s>", "$", "Ã©", "浣犲ソ", "13812947756 ", "\\boxed{", "eyJ", "1.1."]
)
def test_a_long_text_of_one_piece_takes_no_time_that_grows_with_its_square(piece: str) -> None:
    text = (piece * 150_000)[:150_000]
    fix([Conversation((Message("user", text), Message("assistant", text)), Place("a.jsonl", line=1))])
