"""tiktoken-style files as tokenizers: token for token what the library tiktoken gives."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path

import pytest
import tokenizers

from strop.data.tokenizer_files import read_backend
from strop.errors import ModelError
from strop.vocabulary.byte_level import byte_letters, digits_pattern
from strop.vocabulary.tiktoken_file import KINDS, read_ranks

tiktoken = pytest.importorskip("tiktoken")

TEXTS = [
    "It cost 1234567 €, they're told; WE'LL see.\n\n  Indented\tcode() {\n    return 0;\n}",
    "距离地图上两个城市是十五英寸，12 英寸。",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "👍🏽 \u00e9 e\u0301 \u3000 \r\n \x00 \x7f",
    "aaaa" * 9 + " " * 17 + "=" * 31,
]


def ranks() -> list[bytes]:
    """A vocabulary of bytes and joins, made by training on the texts."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(TEXTS * 3, trainer)
    byte_of = {letter: byte for byte, letter in enumerate(byte_letters())}
    vocabulary = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    return [bytes(byte_of[letter] for letter in token) for token, _ in vocabulary]


def write(folder: Path, name: str, family: str) -> list[bytes]:
    tokens = ranks()
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    (folder / name).write_text("".join(lines), "utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": family}), "utf-8")
    return tokens


def texts() -> list[str]:
    chance = random.Random(0)
    alphabet = "ab '=reS1290 \n\té距👍"
    made = ["".join(chance.choice(alphabet) for _ in range(chance.randint(1, 50))) for _ in range(500)]
    return [*TEXTS, *made]


@pytest.mark.parametrize(
    ("family", "name"), [("qwen", "qwen.tiktoken"), ("chatglm", "tokenizer.model"), ("llama", "tokenizer.model")]
)
def test_tokens_are_the_librarys(tmp_path: Path, family: str, name: str) -> None:
    import unicodedata

    tokens = write(tmp_path, name, family)
    kind = KINDS[family]
    special = {text: len(tokens) + number for number, text in enumerate(kind.control)}
    library = tiktoken.Encoding(
        "test",
        pat_str=digits_pattern(kind.digits),
        mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
        special_tokens=special,
    )
    ours = read_backend(tmp_path)
    for text in texts():
        wanted = library.encode(unicodedata.normalize("NFC", text) if kind.nfc else text, allowed_special="all")
        assert ours.encode(text, add_special_tokens=False).ids == wanted, repr(text)
    assert {token.content: index for index, token in ours.get_added_tokens_decoder().items()} == special
    assert ours.get_vocab_size() == len(tokens) + len(special)


def test_the_known_ids_of_the_families() -> None:
    """Qwen 1, GLM-4 and Llama 3 have 151,643, 151,329 and 128,000 ranks."""

    def places(family: str, start: int) -> dict[str, int]:
        return {text: start + number for number, text in enumerate(KINDS[family].control)}

    assert places("qwen", 151643)["<|im_end|>"] == 151645
    assert places("qwen", 151643)["<|extra_204|>"] == 151850
    assert places("chatglm", 151329)["<|user|>"] == 151336
    assert places("llama", 128000)["<|eot_id|>"] == 128009
    assert places("llama", 128000)["<|reserved_special_token_247|>"] == 128255


def test_the_repository_names_control_tokens(tmp_path: Path) -> None:
    tokens = write(tmp_path, "tokenizer.model", "chatglm")
    decoder = {str(len(tokens) + 2): {"content": "[other]", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}), "utf-8")
    ours = read_backend(tmp_path)
    assert ours.encode("a[other]", add_special_tokens=False).ids[-1] == len(tokens) + 2
    assert ours.token_to_id("[gMASK]") is None


@pytest.mark.parametrize(
    "content", ["IQ== 1\n", "IQ==\n", "!!! 0\n", "IQ== 0\nIQ== 1\n", "IQ== 0\n", "", "IQ== zero\n"]
)
def test_damaged_files_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.tiktoken").write_text(content, "utf-8")
    with pytest.raises(ModelError, match="not a tiktoken vocabulary"):
        read_ranks(tmp_path / "a.tiktoken")


def test_an_unknown_family_is_refused_with_a_way_out(tmp_path: Path) -> None:
    write(tmp_path, "tokenizer.model", "other")
    with pytest.raises(ModelError, match=r"'other'") as caught:
        read_backend(tmp_path)
    assert "tokenizer.json" in str(caught.value)


def test_letters_of_bytes_are_the_tokenizers_librarys() -> None:
    assert sorted(byte_letters()) == sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in ("é", "\n", "a b", "\x7f\u00ad"):
        (piece,) = level.pre_tokenize_str(text)
        assert piece[0] == "".join(byte_letters()[byte] for byte in text.encode())
