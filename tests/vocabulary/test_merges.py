"""vocab.json with merges.txt as tokenizers: token for token what transformers makes of the same two files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers
from transformers import CodeGenTokenizer, GPT2Tokenizer, Qwen2Tokenizer

from strop.data.tokenizer import Tokenizer
from strop.data.tokenizer_files import read_backend
from strop.errors import ModelError

TEXTS = [
    "It cost 1234567 €, they're told; WE'LL see.\n\n  Indented\tcode() {\n    return 0;\n}",
    "距离地图上两个城市是十五英寸，12 英寸。 12 12  12",
    "👍🏽 \u00e9 e\u0301 \u3000 \r\n \x00 \x7f",
    "aaaa" * 9 + " " * 17 + "=" * 31,
]
CONTROL = "<|endoftext|>"


def write(folder: Path, kind: str, *, digits_apart: bool, **config: Any) -> Path:
    """A trained vocabulary in GPT-2's two files, with what tokenizer_config.json says."""
    trained = tokenizers.Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if digits_apart else []
    trained.pre_tokenizer = pre_tokenizers.Sequence([*digits, level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=350, initial_alphabet=alphabet, show_progress=False, special_tokens=[CONTROL]
    )
    trained.train_from_iterator(TEXTS * 3, trainer)
    folder.mkdir(exist_ok=True)
    model = json.loads(trained.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    merges = "\n".join(" ".join(merge) for merge in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **config}), "utf-8")
    return folder


def texts() -> list[str]:
    chance = random.Random(0)
    alphabet = "ab '=reS1290 \n\té距👍"
    made = ["".join(chance.choice(alphabet) for _ in range(chance.randint(1, 50))) for _ in range(500)]
    return [*TEXTS, *made, f"a{CONTROL}b", f" {CONTROL}\n<|im_start|>user\nx<|im_end|>"]


QWEN = {
    "added_tokens_decoder": {
        "350": {"content": "<|im_start|>", "special": True},
        "351": {"content": "<|im_end|>", "special": True},
    },
    "eos_token": "<|im_end|>",
    "pad_token": CONTROL,
}


@pytest.mark.parametrize(
    ("theirs", "digits_apart", "config"),
    [
        (GPT2Tokenizer, False, {}),
        (GPT2Tokenizer, False, {"bos_token": "<s>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}),
        (Qwen2Tokenizer, True, QWEN),
        (Qwen2Tokenizer, False, {}),
        (CodeGenTokenizer, False, {}),
    ],
    ids=("gpt2", "gpt2 with names", "qwen2", "qwen2 bare", "codegen"),
)
def test_tokens_are_transformers(tmp_path: Path, theirs: Any, digits_apart: bool, config: dict[str, Any]) -> None:
    folder = write(tmp_path, theirs.__name__, digits_apart=digits_apart, **config)
    ours, other = read_backend(folder), theirs.from_pretrained(folder)
    for text in texts():
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == other.encode(text, add_special_tokens=False), text
        assert ours.decode(ids, skip_special_tokens=False) == other.decode(ids)
    listed = {int(index) for index in config.get("added_tokens_decoder", {})}
    special = {index for index, token in ours.get_added_tokens_decoder().items() if token.special}
    assert special == listed | set(other.all_special_ids)


def test_digits_are_apart_where_no_merge_joins_one(tmp_path: Path) -> None:
    """The cut that the vocabulary was trained with, which GPT2Tokenizer cannot say: as StarCoder's and SmolLM's."""
    apart = read_backend(write(tmp_path / "apart", "GPT2Tokenizer", digits_apart=True))
    joined = read_backend(write(tmp_path / "joined", "GPT2Tokenizer", digits_apart=False))
    assert apart.encode("12  12").tokens == ["1", "2", "ĠĠ", "1", "2"]
    assert joined.encode("12  12").tokens == ["12", "Ġ", "Ġ12"]


def test_the_family_says_the_cut_where_the_class_does_not(tmp_path: Path) -> None:
    folder = write(tmp_path, "PreTrainedTokenizerFast", digits_apart=True)
    with pytest.raises(ModelError, match="how PreTrainedTokenizerFast cuts texts is not known"):
        read_backend(folder)
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    assert read_backend(folder).encode("a  1").ids == Qwen2Tokenizer.from_pretrained(folder).encode("a  1")


def test_a_folder_with_both_files_is_a_tokenizer(tmp_path: Path) -> None:
    folder = write(tmp_path, "Qwen2Tokenizer", digits_apart=True, **QWEN)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.stop_tokens == {"<|im_end|>": 351}
    assert tokenizer.special_tokens == {CONTROL: 0, "<|im_start|>": 350, "<|im_end|>": 351}


@pytest.mark.parametrize(
    ("file", "text", "found"),
    [
        ("merges.txt", "#version: 0.2\nĠ t\nĠ\n", "line 3: 'Ġ'"),
        ("merges.txt", "Ġ a b\n", "line 1: 'Ġ a b'"),
        ("merges.txt", "Ġ qqq\n", "merge 0: ('Ġ', 'qqq')"),
        ("vocab.json", "[]", "[]"),
        ("vocab.json", "{", "Expecting"),
        ("vocab.json", '{"a": 0, "b": 0}', "'b': 0"),
        ("vocab.json", '{"a": true}', "True"),
        ("vocab.json", '{"a": 99999999999}', "99999999999"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, file: str, text: str, found: str) -> None:
    folder = write(tmp_path, "GPT2Tokenizer", digits_apart=False)
    (folder / file).write_text(text, "utf-8")
    with pytest.raises(ModelError, match=f"{file} cannot be read") as error:
        read_backend(folder)
    assert found in error.value.found


@pytest.mark.slow
def test_smollm2s_own_vocabulary_in_the_older_files(tmp_path: Path) -> None:
    """Its tokenizer.json taken apart into the two files gives the same tokens as whole."""
    from strop.model.starter import starter_folder

    content = json.loads((starter_folder() / "tokenizer.json").read_text("utf-8"))
    named = [token["content"] for token in content["added_tokens"]]
    config = {"tokenizer_class": "GPT2Tokenizer", "additional_special_tokens": named}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    (tmp_path / "vocab.json").write_text(json.dumps(content["model"]["vocab"]), "utf-8")
    (tmp_path / "merges.txt").write_text("\n".join(map(" ".join, content["model"]["merges"])), "utf-8")
    ours, whole = read_backend(tmp_path), read_backend(starter_folder())
    for text in texts():
        assert ours.encode(text).ids == whole.encode(text).ids, text
