"""The prompt that was trained beside the prompt that chat sends."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from strop.data.prompts import compare_prompts, compare_some, unequal
from strop.data.records import Conversation, Example, Message, Place
from strop.data.tokenizer import Tokenizer
from strop.data.tokens import encode_conversation
from tiny_tokenizers import CHATML, KINDS, write_folder

PLACE = Place("f", 1)


def example_of(tokenizer: Tokenizer, number: int = 0) -> Example:
    turns = [("user", "One, how?"), ("assistant", "So."), ("user", "And 日本?"), ("assistant", "Thus 🙂.")]
    said = Conversation(tuple(Message(role, text) for role, text in turns), PLACE)  # type: ignore[arg-type]
    tokens, learned = encode_conversation(tokenizer, said)[:2]
    return Example(tokens, learned, number, PLACE, said)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_they_are_equal_in_every_style(tokenizer_of: Callable[[str], Tokenizer], kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    example = example_of(tokenizer)
    pairs = compare_prompts(example, tokenizer)
    assert [pair.turn for pair in pairs] == [1, 2]
    assert all(pair.equal and pair.first_difference is None for pair in pairs)
    for pair in pairs:
        assert example.learned[len(pair.trained)]
        assert not example.learned[len(pair.trained) - 1]
        assert tuple(example.tokens[: len(pair.trained)].tolist()) == pair.sent


def test_another_token_is_found(chatml: Tokenizer) -> None:
    example = example_of(chatml)
    tokens = example.tokens.copy()
    tokens[5] += 1
    tampered = Example(tokens, example.learned, 0, PLACE, example.conversation)
    pairs = compare_prompts(tampered, chatml)
    assert [pair.first_difference for pair in pairs] == [5, 5]
    assert unequal(pairs) == pairs


def test_a_token_more_in_training_is_found(chatml: Tokenizer) -> None:
    """A double BOS, say: every token of chat is there, only later."""
    example = example_of(chatml)
    tokens, learned = np.insert(example.tokens, 0, example.tokens[0]), np.insert(example.learned, 0, False)
    doubled = compare_prompts(Example(tokens, learned, 0, PLACE, example.conversation), chatml)
    assert [pair.equal for pair in doubled] == [False, False]
    assert [len(pair.trained) - len(pair.sent) for pair in doubled] == [1, 1]


def test_a_template_that_cannot_ask_is_a_fault(chatml: Tokenizer, tmp_path: object) -> None:
    from pathlib import Path

    refusing = (
        CHATML + "{%- if add_generation_prompt and messages|length > 1 -%}{{ raise_exception('no') }}{%- endif -%}"
    )
    broken = Tokenizer.from_folder(write_folder(Path(str(tmp_path)) / "m", "chatml", template=refusing))
    pairs = compare_prompts(example_of(chatml), broken)
    assert [bool(pair.fault) for pair in pairs] == [False, True]
    assert [pair.equal for pair in pairs] == [True, False]


def test_some_of_many_are_compared(chatml: Tokenizer) -> None:
    samples = [example_of(chatml, number) for number in range(450)]
    found, compared = compare_some(samples, samples[:3], {}, chatml)
    assert (found, compared) == ([], 153)
    bad = Example(samples[0].tokens[1:], samples[0].learned[1:], 0, PLACE, samples[0].conversation)
    assert len(compare_some([bad], [], {}, chatml)[0]) == 2
    assert compare_some([bad], [], {0: samples[0]}, chatml)[0] == []
    assert compare_prompts(Example(bad.tokens, bad.learned, 0, PLACE), chatml) == []
