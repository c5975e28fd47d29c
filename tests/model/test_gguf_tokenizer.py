"""The tokenizer.json made from a GGUF file, against transformers' tokenizers and against what the splits must do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import CHAT_TEMPLATE, CONTROLS, MERGES, TOKENS, VOCABULARY, write_tiny_gguf
from tokenizers import Tokenizer
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from strop.errors import ModelError
from strop.model.gguf_reader import GGUFModel

TEXTS = [
    "",
    " ",
    "The the THE  the\n\n the\t\r\n",
    "It's we'LL they'd don't 'Ve",
    "a1 22 333 4444 12121 ² ½ Ⅷ ٣٤ 1,234.5e-6",
    "naïve café e\u0301 ﬁ 你好，世界！ שלום नमस्ते",
    "👩‍👩‍👧 🇫🇷 \U0001f680\u200b",
    "def f(x):\n    return x**2  # ok!?\n\n\n",
    "$\\boxed{12}$ <b>x</b> --- ... \u00a0 \u3000 end  ",
]


def tokenizer_of(path: Path) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(GGUFModel(path).tokenizer_json))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["smollm"], "It| cost| |1|2|3|4| €,| it|'s| | ok"),
        (["gpt-2", "default"], "It| cost| 1234| €,| it|'s| | ok"),
        (["llama-bpe", "llama3"], "It| cost| |123|4| €,| it|'s| | ok"),
        (["qwen2"], "It| cost| |1|2|3|4| €,| it|'s| | ok"),
    ],
)
def test_how_text_is_split(tmp_path: Path, names: list[str], expected: str) -> None:
    text = expected.replace("|", "")
    for pre in names:
        tokenizer = tokenizer_of(write_tiny_gguf(tmp_path / "tiny.gguf", tokenizer__ggml__pre=pre))
        pieces = tokenizer.pre_tokenizer.pre_tokenize_str(text)
        assert "|".join(text[start:end] for _, (start, end) in pieces) == expected


class Llama3Converter(TikTokenConverter):
    """transformers' converter for Llama 3's own file, fed with the tiny vocabulary."""

    def extract_vocab_merges_from_model(self, tiktoken_url: str) -> tuple[dict[str, int], list[tuple[str, ...]]]:
        return dict(zip(TOKENS, range(VOCABULARY), strict=True)), [tuple(merge.split()) for merge in MERGES]


@pytest.mark.parametrize("pre", ["gpt-2", "qwen2", "llama-bpe"])
def test_ids_are_those_of_the_models_own_tokenizer_class(tmp_path: Path, pre: str) -> None:
    tokenizer = tokenizer_of(write_tiny_gguf(tmp_path / "tiny.gguf", tokenizer__ggml__pre=pre))
    vocabulary, merges = Llama3Converter().extract_vocab_merges_from_model("")
    if pre == "llama-bpe":
        reference = Llama3Converter().converted()
    else:
        kind = GPT2Tokenizer if pre == "gpt-2" else Qwen2Tokenizer
        reference = kind(vocab=vocabulary, merges=merges).backend_tokenizer
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == reference.encode(text, add_special_tokens=False).ids, text
        assert pre == "qwen2" or tokenizer.decode(ids) == text  # Qwen 2 composes e + accent (NFC)


def test_transformers_own_import_agrees(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    imported = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    tokenizer = tokenizer_of(path)
    for text in [*TEXTS, "<|im_start|>the <note>the<|im_end|>\n<|endoftext|>"]:
        if not any(character.isnumeric() for character in text):  # its import leaves out that digits stand alone
            assert tokenizer.encode(text).ids == imported(text).input_ids, text


def test_added_tokens_and_their_flags(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    tokenizer = tokenizer_of(path)
    assert [token["content"] for token in GGUFModel(path).tokenizer_json["added_tokens"]] == [*CONTROLS, "<note>"]
    ids = tokenizer.encode("<|im_start|>the<note><|im_end|>").ids
    assert ids == [1, TOKENS.index("t"), TOKENS.index("he"), TOKENS.index("<note>"), 2]
    assert tokenizer.decode(ids) == "the<note>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>the<note><|im_end|>"


def test_tokenizer_config(tmp_path: Path) -> None:
    model = GGUFModel(write_tiny_gguf(tmp_path / "tiny.gguf", tokenizer__ggml__eot_token_id=0))
    config = model.tokenizer_config
    assert [config[f"{name}_token"] for name in ("bos", "eos", "unk", "pad")] == [TOKENS[i] for i in (1, 2, 0, 2)]
    assert config["chat_template"] == model.chat_template == CHAT_TEMPLATE
    assert config["model_max_length"] == 128
    assert model.eos_token_ids == (2, 0)
    bare = {f"tokenizer__ggml__{name}_token_id": None for name in ("bos", "unknown", "padding")}
    model = GGUFModel(write_tiny_gguf(tmp_path / "bare.gguf", tokenizer__chat_template=None, **bare))
    assert not {"bos_token", "unk_token", "pad_token", "chat_template"} & model.tokenizer_config.keys()
    assert model.chat_template is model.config["bos_token_id"] is model.config["pad_token_id"] is None


@pytest.mark.parametrize(
    ("changes", "before", "behind"),
    [
        ({}, [], []),
        ({"tokenizer__ggml__add_bos_token": True, "tokenizer__ggml__add_eos_token": True}, [1], [2]),
        ({"tokenizer__ggml__pre": "llama-bpe"}, [1], []),
        ({"tokenizer__ggml__pre": "llama-bpe", "tokenizer__ggml__add_bos_token": False}, [], []),
        ({"tokenizer__ggml__pre": "llama-bpe", "tokenizer__ggml__bos_token_id": None}, [], []),
    ],
)
def test_begin_and_end_tokens(tmp_path: Path, changes: dict[str, Any], before: list[int], behind: list[int]) -> None:
    tokenizer = tokenizer_of(write_tiny_gguf(tmp_path / "tiny.gguf", **changes))
    a, b = TOKENS.index("a"), TOKENS.index("b")
    assert tokenizer.encode("a").ids == [*before, a, *behind]
    assert tokenizer.encode("a", "b").ids == [*before, a, *behind, *before, b, *behind]
    assert tokenizer.encode("a", add_special_tokens=False).ids == [a]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tokenizer__ggml__model": "t5"}, "sentencepiece"),
        ({"tokenizer__ggml__model": "bert"}, "tokenizer is not supported"),
        ({"tokenizer__ggml__pre": "tekken"}, "smollm, gpt-2, default, llama-bpe, llama3, qwen2"),
        ({"tokenizer__ggml__pre": None}, r"tokenizer\.ggml\.pre is missing"),
        ({"tokenizer__ggml__eos_token_id": None}, "eos_token_id is missing"),
        ({"tokenizer__ggml__eos_token_id": VOCABULARY}, "eos_token_id is impossible"),
        ({"tokenizer__ggml__tokens": [*TOKENS, "more"]}, "does not fit its embedding"),
        ({"tokenizer__ggml__tokens": [*TOKENS[:-1], "he"]}, "a token twice"),
        ({"tokenizer__ggml__token_type": [1, 1]}, "kinds do not fit"),
        ({"tokenizer__ggml__merges": ["h e", "q q"]}, "merge 1 .* impossible"),
        ({"tokenizer__ggml__merges": ["h e x"]}, "merge 0 .* impossible"),
        ({"tokenizer__ggml__merges": ["he"]}, "merge 0 .* impossible"),
        ({"tokenizer__ggml__bos_token_id": None, "tokenizer__ggml__add_bos_token": True}, "add_bos_token asks"),
    ],
)
def test_what_cannot_be_a_tokenizer_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    path = write_tiny_gguf(tmp_path / "other.gguf", **changes)
    with pytest.raises(ModelError, match=reason):
        GGUFModel(path)


def test_the_starters_tokenizer(smollm2_folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(smollm2_folder / "tokenizer.json"))
    fast = PreTrainedTokenizerFast(tokenizer_file=str(smollm2_folder / "tokenizer.json"))
    auto = AutoTokenizer.from_pretrained(smollm2_folder)
    for text in [*TEXTS, "<|im_start|>user\nhi<|im_end|>\n"]:
        encoding = tokenizer.encode(text)
        assert encoding.ids == fast(text).input_ids == auto(text).input_ids
        assert tokenizer.decode(encoding.ids, skip_special_tokens=False) == text
        # However long a number is, each of its digits is a token of its own.
        for character, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True):
            if any(digit in "0123456789" for digit in text[start:end]) and "<|" not in character:
                assert end - start == 1, (text, text[start:end])
    tokens = tokenizer.encode("<|im_start|>user\n12 + 345").tokens
    assert tokens == ["<|im_start|>", "user", "Ċ", "1", "2", "Ġ+", "Ġ", "3", "4", "5"]
    assert auto.special_tokens_map == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
    }
    prompt = auto.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
