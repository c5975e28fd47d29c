"""What is learned, for the eye."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.data.preview import Bucket, length_histogram, segments
from strop.data.records import Conversation, Example, Message, Place
from strop.data.tokenizer import Tokenizer
from strop.data.tokens import encode_conversation
from tiny_tokenizers import KINDS

PLACE = Place("f", 1)


def example_of(tokenizer: Tokenizer, *turns: tuple[str, str]) -> Example:
    messages = tuple(Message(role, text) for role, text in turns)  # type: ignore[arg-type]
    tokens, learned, _ = encode_conversation(tokenizer, Conversation(messages, PLACE))
    return Example(tokens, learned, 0, PLACE)


def test_runs_of_one_kind(chatml: Tokenizer) -> None:
    example = example_of(chatml, ("user", "q"), ("assistant", "Größe <|im_end|> 🙂"), ("user", "r"), ("assistant", "b"))
    assert segments(example, chatml) == [
        ("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "context"),
        ("Größe <|im_end|> 🙂", "learned"),
        ("<|im_end|>", "stop"),
        ("\n<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n", "context"),
        ("b", "learned"),
        ("<|im_end|>", "stop"),
        ("\n", "context"),
    ]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_runs_are_the_whole_text(tokenizer_of: Callable[[str], Tokenizer], kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    example = example_of(tokenizer, ("user", "日本 how"), ("assistant", "🙂 done"), ("user", "And"), ("assistant", "é"))
    runs = segments(example, tokenizer)
    text = "".join(run for run, _ in runs)
    assert text == tokenizer.decode(example.tokens.tolist())
    assert "\ufffd" not in text
    assert [kind for _, kind in runs].count("stop") == 2


def of_length(length: int) -> Example:
    return Example(np.zeros(length, np.int32), np.zeros(length, np.bool_), 0, PLACE)


def test_histogram() -> None:
    assert length_histogram([]) == []
    assert length_histogram([of_length(7)]) == [Bucket(7, 7, 1)]
    bars = length_histogram([of_length(length) for length in (3, 4, 12, 39)], buckets=5)
    assert bars == [Bucket(0, 9, 2), Bucket(10, 19, 1), Bucket(20, 29, 0), Bucket(30, 39, 1)]


@given(lengths=st.lists(st.integers(1, 5000), min_size=1, max_size=50), buckets=st.integers(1, 20))
def test_histogram_counts_everything_once(lengths: list[int], buckets: int) -> None:
    bars = length_histogram([of_length(length) for length in lengths], buckets)
    assert len(bars) <= buckets
    assert sum(bar.count for bar in bars) == len(lengths)
    for bar in bars:
        assert bar.count == sum(bar.low <= length <= bar.high for length in lengths)
    assert bars[0].count > 0 < bars[-1].count
