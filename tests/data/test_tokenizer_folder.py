"""A model folder's tokenizer: control tokens, stop tokens, and what is said when something is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from strop.data.tokenizer import Tokenizer
from strop.errors import ModelError, TemplateError
from tiny_tokenizers import CHATML, LLAMA3, write_folder


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(file.read_text("utf-8"))
    change(value)
    file.write_text(json.dumps(value), "utf-8")


def test_special_tokens_and_their_ids(chatml: Tokenizer) -> None:
    assert chatml.special_tokens == {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    assert chatml.eos == 2
    assert chatml.bos is None
    assert chatml.stop_tokens == {"<|im_end|>": 2}
    assert chatml.stop_ids == {2}
    assert chatml.vocabulary_size == len(chatml.backend.get_vocab())


def test_the_token_behind_an_answer_stops_beside_the_eos_token(tokenizer_of: Callable[[str], Tokenizer]) -> None:
    assert set(tokenizer_of("llama3").stop_tokens) == {"<|end_of_text|>", "<|eot_id|>"}
    assert tokenizer_of("llama3").eos == tokenizer_of("llama3").special_tokens["<|end_of_text|>"]


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize(("value", "stops"), [(0, {0, 2}), ([0, 1], {0, 1, 2}), (None, {2}), ([True, -1, 10**6], {2})])
def test_eos_token_id_is_a_number_or_a_list(tmp_path: Path, file: str, value: object, stops: set[int]) -> None:
    folder = write_folder(tmp_path, "chatml")
    (folder / file).write_text(json.dumps({"eos_token_id": value}), "utf-8")
    assert Tokenizer.from_folder(folder).stop_ids == stops


def test_without_an_eos_token_the_first_eos_id_serves(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "chatml", eos_token=None)
    (folder / "config.json").write_text('{"eos_token_id": [0, 2]}', "utf-8")
    assert Tokenizer.from_folder(folder).eos == 0


def test_an_ordinary_piece_of_text_is_no_stop_token(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "chatml", pad_token="!")
    hash_sign = Tokenizer.from_folder(folder).backend.token_to_id("#")
    (folder / "config.json").write_text(json.dumps({"eos_token_id": hash_sign}), "utf-8")
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.stop_tokens == {"<|im_end|>": 2}
    assert set(tokenizer.special_tokens) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    assert {token.content for token in tokenizer.backend.get_added_tokens_decoder().values()} == set(
        tokenizer.special_tokens
    )


def test_a_named_token_that_tokenizer_json_does_not_call_special_is_registered(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "chatml")
    edit(folder / "tokenizer.json", lambda value: value["added_tokens"].pop())
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.special_tokens["<|im_end|>"] == 2
    assert tokenizer.encode("a<|im_end|>", special=True)[-1] == 2
    assert 2 not in tokenizer.encode("a<|im_end|>", special=False)


def test_other_added_tokens_are_vocabulary_unless_they_end_an_answer(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "chatml")
    think = {"id": 420, "content": "<think>", "special": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    edit(folder / "tokenizer.json", lambda value: value["added_tokens"].append({**think, **flags}))
    tokenizer = Tokenizer.from_folder(folder)
    assert "<think>" not in tokenizer.special_tokens
    (index,) = tokenizer.encode("<think>", special=False)
    assert tokenizer.decode([index]) == "<think>"
    (folder / "config.json").write_text(json.dumps({"eos_token_id": index}), "utf-8")
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.stop_tokens == {"<|im_end|>": 2, "<think>": index}
    assert index not in tokenizer.encode("<think>", special=False)


def test_a_tokenizer_that_pads_and_truncates_does_so_no_more(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "chatml")
    plain = Tokenizer.from_folder(folder).encode("one two three", special=True)
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    edit(folder / "tokenizer.json", lambda value: value.update(truncation=truncation))
    assert Tokenizer.from_folder(folder).encode("one two three", special=True) == plain


def test_where_the_template_may_stand(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "chatml", chat_template="from the config {{ messages[1].content }}<|im_end|>")
    assert Tokenizer.from_folder(folder).template.source == CHATML
    (folder / "chat_template.jinja").unlink()
    assert Tokenizer.from_folder(folder).template.source.startswith("from the config")
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": LLAMA3}]
    edit(folder / "tokenizer_config.json", lambda value: value.update(chat_template=named))
    assert Tokenizer.from_folder(folder).template.source == LLAMA3


def test_named_tokens_may_be_objects_or_stand_in_the_map(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "llama3", bos_token=None, eos_token={"content": "<|eot_id|>", "lstrip": False})
    (folder / "special_tokens_map.json").write_text('{"bos_token": "<|begin_of_text|>", "eos_token": "x"}', "utf-8")
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.bos == tokenizer.special_tokens["<|begin_of_text|>"]
    assert tokenizer.stop_tokens == {"<|eot_id|>": tokenizer.special_tokens["<|eot_id|>"]}


def test_a_missing_tokenizer_says_so(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "chatml")
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    with pytest.raises(ModelError, match=r"has no tokenizer.json") as caught:
        Tokenizer.from_folder(folder)
    assert "vocab.json" in caught.value.found
    assert str(folder) in caught.value.what
    assert "save_pretrained" in caught.value.do


def test_a_missing_template_says_where_to_put_one(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "chatml")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="has no chat template") as caught:
        Tokenizer.from_folder(folder)
    assert str(folder / "chat_template.jinja") in caught.value.do


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json", "chat_template.jinja"])
def test_broken_files_are_named(tmp_path: Path, name: str) -> None:
    for number, content in enumerate([b"\xff", b"{", b"[1]"][: 1 if name.endswith(".jinja") else 3]):
        folder = write_folder(tmp_path / str(number), "chatml")
        (folder / name).write_bytes(content)
        with pytest.raises(ModelError) as caught:
            Tokenizer.from_folder(folder)
        assert str(folder / name) in caught.value.what


def test_a_template_that_cannot_render_an_answer_is_refused_at_once(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "chatml", template="{{ raise_exception('tools only') }}")
    with pytest.raises(TemplateError, match="tools only"):
        Tokenizer.from_folder(folder)


def test_decode_is_the_way_back(chatml: Tokenizer) -> None:
    text = "<|im_start|>user\nGröße 日本 🙂<|im_end|>"
    tokens = chatml.encode(text, special=True)
    assert chatml.decode(tokens) == text
    assert chatml.decode(tokens, skip_special=True) == "user\nGröße 日本 🙂"
