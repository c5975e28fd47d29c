"""A GGUF file becomes a model folder: whole or not at all, readable by the libraries that define the formats."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from tiny_gguf import CHAT_TEMPLATE, TOKENS, random_weights, write_tiny_gguf

from strop.errors import ModelError
from strop.model import gguf_convert
from strop.model.gguf_convert import STALE_SECONDS, file_sha256, gguf_to_folder, is_converted
from strop.model.gguf_reader import GGUFModel
from strop.model.tensor_file import TensorFile

FILES = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors",
    "strop_source.json",
}


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny_gguf(tmp_path / "tiny.gguf")


def test_what_the_folder_holds(source: Path, tmp_path: Path) -> None:
    folder = gguf_to_folder(source, tmp_path / "deep" / "model")
    assert content(folder).keys() == FILES
    model = GGUFModel(source)
    assert json.loads((folder / "config.json").read_text("utf-8")) == model.config
    assert json.loads((folder / "tokenizer.json").read_text("utf-8")) == model.tokenizer_json
    assert (folder / "chat_template.jinja").read_bytes() == CHAT_TEMPLATE.encode()
    generation = json.loads((folder / "generation_config.json").read_text("utf-8"))
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    marker = json.loads((folder / "strop_source.json").read_text("utf-8"))
    assert marker["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert marker["file"] == "tiny.gguf"
    assert marker["files"].keys() == FILES - {"strop_source.json"}
    for name, entry in marker["files"].items():
        assert entry == {
            "bytes": (folder / name).stat().st_size,
            "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
        }
    assert [path.name for path in tmp_path.joinpath("deep").iterdir()] == ["model"]


@pytest.mark.parametrize("tied", [True, False])
def test_the_weights_are_the_files_in_float16(tmp_path: Path, tied: bool) -> None:
    weights = random_weights(tied=tied)
    folder = gguf_to_folder(write_tiny_gguf(tmp_path / "tiny.gguf", weights), tmp_path / "model")
    stored = load_file(folder / "model.safetensors")
    assert stored.keys() == weights.keys()
    for name, weight in weights.items():
        assert stored[name].dtype == np.float16
        np.testing.assert_array_equal(stored[name], weight.astype(np.float16))
    with safe_open(folder / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}
    head = int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    assert head % 8 == 0


def test_several_end_tokens(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", tokenizer__ggml__eot_token_id=0, tokenizer__chat_template=None)
    folder = gguf_to_folder(path, tmp_path / "model")
    assert json.loads((folder / "generation_config.json").read_text("utf-8"))["eos_token_id"] == [2, 0]
    assert not (folder / "chat_template.jinja").exists()


def test_a_folder_that_is_there_already_is_left_alone(source: Path, tmp_path: Path) -> None:
    folder = gguf_to_folder(source, tmp_path / "model")
    written = (folder / "model.safetensors").stat().st_mtime_ns
    calls: list[float] = []
    assert gguf_to_folder(source, folder, lambda _message, share: calls.append(share)) == folder
    assert not calls
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_progress_goes_from_0_to_1(source: Path, tmp_path: Path) -> None:
    shares: list[float] = []
    gguf_to_folder(source, tmp_path / "model", lambda _message, share: shares.append(share))
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert shares[-1] == 1.0


def test_the_folder_gets_its_name_in_one_step(source: Path, tmp_path: Path) -> None:
    staging: list[int] = []

    def look(_message: str, share: float) -> None:
        if share == 1.0:
            assert not (tmp_path / "model").exists()
            staging.extend(path.stat().st_ino for path in tmp_path.glob(".model.staging-*"))

    folder = gguf_to_folder(source, tmp_path / "model", look)
    assert staging == [folder.stat().st_ino]  # renamed, not copied


def test_something_else_in_the_way_stays_unless_replaced(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ModelError, match="in the way"):
        gguf_to_folder(source, folder)
    assert (folder / "thesis.txt").read_text() == "years of work"
    gguf_to_folder(source, folder, replace=True)
    assert content(folder).keys() == FILES
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.gguf", "model"}
    (tmp_path / "empty").mkdir()
    assert content(gguf_to_folder(source, tmp_path / "empty")).keys() == FILES


@pytest.mark.parametrize("damage", ["marker gone", "marker broken", "marker a list", "cut", "file gone", "old format"])
def test_a_damaged_folder_is_not_taken_for_a_model(source: Path, tmp_path: Path, damage: str) -> None:
    folder = gguf_to_folder(source, tmp_path / "model")
    sha256, marker = file_sha256(source), folder / "strop_source.json"
    assert is_converted(folder, sha256)
    assert not is_converted(folder, "0" * 64)
    if damage == "marker gone":
        marker.unlink()
    elif damage == "marker broken":
        marker.write_text("{")
    elif damage == "marker a list":
        marker.write_text("[]")
    elif damage == "cut":
        os.truncate(folder / "model.safetensors", 1000)
    elif damage == "file gone":
        (folder / "tokenizer.json").unlink()
    else:
        marker.write_text(json.dumps(json.loads(marker.read_text()) | {"format": 0}))
    assert not is_converted(folder, sha256)
    gguf_to_folder(source, folder, replace=True)
    assert is_converted(folder, sha256)


class Interrupted(BaseException):
    """Like Ctrl-C."""


@pytest.mark.parametrize("kind", [Interrupted, KeyboardInterrupt])
def test_an_interrupted_conversion_leaves_nothing(source: Path, tmp_path: Path, kind: type[BaseException]) -> None:
    def stop_half_way(_message: str, share: float) -> None:
        if share > 0.5:
            raise kind

    with pytest.raises(kind):
        gguf_to_folder(source, tmp_path / "model", stop_half_way)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


KILLED_HALF_WAY = """
import os, sys
from strop.model import gguf_convert
from strop.model.gguf_convert import gguf_to_folder
gguf_to_folder(sys.argv[1], sys.argv[2], lambda _message, share: os._exit(9) if share > 0.5 else None)
"""


def test_a_killed_conversion_leaves_no_model_and_is_swept_later(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    killed = subprocess.run([sys.executable, "-c", KILLED_HALF_WAY, source, folder], check=False)
    assert killed.returncode == 9
    assert not folder.exists()
    (left,) = tmp_path.glob(".model.staging-*")
    living = tmp_path / ".model.staging-living"  # as another process's that is at work
    living.mkdir()
    other = tmp_path / ".other.staging-x"
    other.mkdir()
    for path in (*left.iterdir(), left, other):
        stamp = path.stat().st_mtime - STALE_SECONDS - 60
        os.utime(path, (stamp, stamp))
    gguf_to_folder(source, folder)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.gguf", "model", living.name, other.name}


@pytest.mark.parametrize("damaged_before", [False, True])
def test_many_at_once_end_with_one_whole_folder(source: Path, tmp_path: Path, damaged_before: bool) -> None:
    folder = tmp_path / "model"
    if damaged_before:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    barrier = threading.Barrier(4)

    def wait_for_the_others(_message: str, share: float) -> None:
        if share == 1.0:
            barrier.wait(timeout=30)

    def convert(_number: int) -> Path:
        return gguf_to_folder(source, folder, wait_for_the_others, replace=True)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(convert, range(4)))
    assert results == [folder] * 4
    assert content(folder).keys() == FILES
    assert is_converted(folder, file_sha256(source))
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.gguf", "model"}


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e6])
def test_weights_that_float16_cannot_hold_are_refused(tmp_path: Path, value: float) -> None:
    weights = random_weights()
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    path = write_tiny_gguf(tmp_path / "tiny.gguf", weights)
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight.*float16"):
        gguf_to_folder(path, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_a_place_that_cannot_be_written(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be written"):
        gguf_to_folder(source, source / "model")
    with pytest.raises(ModelError, match="cannot be read"):
        gguf_to_folder(tmp_path / "nothing.gguf", tmp_path / "model")


def test_the_tokens_survive_as_utf_8(tmp_path: Path) -> None:
    tokens = [*TOKENS[:-1], "<笔记🚀>"]
    folder = gguf_to_folder(write_tiny_gguf(tmp_path / "tiny.gguf", tokenizer__ggml__tokens=tokens), tmp_path / "model")
    assert "<笔记🚀>".encode() in (folder / "tokenizer.json").read_bytes()


def test_the_room_is_said_and_asked_for_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    gguf_to_folder(source, tmp_path / "first", lambda what, _: said.append(what))
    assert said[0] == f"converting {source.name} (0.0 GB in 16 bits)"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ModelError, match="there is no room for") as error:
        gguf_to_folder(source, tmp_path / "cache" / "second")
    assert error.value.expected == f"0.3 GB free in {tmp_path / 'cache'}"
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(TensorFile):
        def write(self, name, content):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf_convert, "TensorFile", Full)
    with pytest.raises(ModelError, match="cannot be written"):
        gguf_to_folder(source, tmp_path / "cache" / "model")
    assert list((tmp_path / "cache").iterdir()) == []
