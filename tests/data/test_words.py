"""Words remembered give the tokens that the library gives for the whole text, for any text and every kind of split."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, pre_tokenizers, trainers

from strop.data.tokenizer import Tokenizer
from strop.data.words import words_of

CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(digits: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CL100K % digits), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


CUTS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm2": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "qwen2": lambda: split(""),
    "llama3": lambda: split("{1,3}"),
}
ADDED = [
    AddedToken("<|end|>", special=True, normalized=False),
    AddedToken("<|end|>>", special=True, normalized=False),
    AddedToken("<think>", special=False, normalized=False),
]
WORDS = [
    "It's 1,234.5",
    "DON'T we'LL",
    "  two\n\n three\t",
    "a\r\nb",
    " ...!!\n\n",
    "x_1 'tis",
    "<|end|>",
    "<think>",
    "<|",
    ">",
]


@cache
def backend(cut: str) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = CUTS[cut]()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator([*WORDS, "the answer is 12 and the rest is 345\n\n"] * 3, trainer)
    made.add_tokens(ADDED)
    return made


ascii_text = st.text(st.characters(codec="ascii"), max_size=30) | st.lists(
    st.sampled_from([*WORDS, " ", "\n", "\t", "'", "S", "12", "é"]), max_size=10
).map("".join)


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("cut", sorted(CUTS))
@settings(max_examples=300)
@given(text=ascii_text)
def test_words_are_the_whole_text(cut: str, literal: bool, text: str) -> None:
    plain = tokenizers.Tokenizer.from_str(backend(cut).to_str())
    plain.encode_special_tokens = literal
    words = words_of(plain)
    assert words is not None
    ids = words.encode(text)
    if all(character in "\t\n\r" or " " <= character <= "~" for character in text):
        assert ids == plain.encode(text, add_special_tokens=False).ids
    else:
        assert ids is None


def changed(change: Callable[[dict[str, Any]], None]) -> tokenizers.Tokenizer:
    written = json.loads(backend("qwen2").to_str())
    change(written)
    return tokenizers.Tokenizer.from_str(json.dumps(written))


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made.update(normalizer={"type": "Lowercase"}),
        lambda made: made.update(normalizer={"type": "Prepend", "prepend": "_"}),
        lambda made: made.update(pre_tokenizer=None),
        lambda made: made["pre_tokenizer"]["pretokenizers"].pop(0),
        lambda made: made["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"),
        lambda made: made["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": r"\p{L}+"}),
        lambda made: made["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
        lambda made: made["model"].update(dropout=0.1),
        lambda made: made["added_tokens"][0].update(rstrip=True),
        lambda made: made["added_tokens"][0].update(normalized=True),
    ],
)
def test_whatever_is_not_known_to_be_the_same_is_left_to_the_library(change: Callable[[dict[str, Any]], None]) -> None:
    assert words_of(backend("qwen2")) is not None
    assert words_of(changed(change)) is None


def test_a_word_that_is_several_to_the_tokenizer_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    words = words_of(backend("gpt2"))
    assert words is not None
    monkeypatch.setattr(words, "_words", re.compile(r"[^!]+|!"))
    assert words.encode("two words!") is None
    assert words.encode("one!") == backend("gpt2").encode("one!").ids


def test_a_tokenizer_mixes_both(chatml: Tokenizer, tokenizer_of: Callable[[str], Tokenizer]) -> None:
    texts = ["Two and two?", "日本 <|im_end|>", "", "<|im_start|>user\nx<|im_end|>", "naïve"]
    for tokenizer in (chatml, tokenizer_of("llama2"), tokenizer_of("phi3")):
        for special, backend in ((True, tokenizer.backend), (False, tokenizer._literal_backend)):
            expected = [encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=False)]
            assert tokenizer.encode_batch(texts, special=special) == expected


def test_rows_of_gsm8k() -> None:
    from strop.model.starter import starter_folder

    file = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "test.jsonl"
    if not file.is_file():
        pytest.skip(f"GSM8K is not at {file}")
    tokenizer = Tokenizer.from_folder(starter_folder())
    words = words_of(tokenizer.backend)
    assert words is not None
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    texts = [f"<|im_start|>user\n{row['question']}<|im_end|>\n{row['answer']}" for row in rows]
    found = [words.encode(text) for text in texts]
    expected = [one.ids for one in tokenizer.backend.encode_batch(texts, add_special_tokens=False)]
    assert sum(ids is None for ids in found) < len(found) // 4
    assert all(ids is None or ids == wanted for ids, wanted in zip(found, expected, strict=True))
