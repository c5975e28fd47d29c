"""A GGUF file that is damaged or means harm ends in a ModelError: no traceback, no endless loop."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import METADATA, write_tiny_gguf

from strop.errors import ModelError
from strop.model.gguf_file import GGUFFile
from strop.model.gguf_reader import GGUFModel


def head(*, tensors: int = 0, keys: int = 1, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def key(name: bytes, kind: int) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind)


def test_values_come_out_as_they_were_written(tmp_path: Path) -> None:
    file = GGUFFile(write_tiny_gguf(tmp_path / "tiny.gguf"))
    for name, written in METADATA.items():
        if isinstance(written, list):
            assert file.values(name, type(written[0])) == written
        else:
            assert file.value(name, type(written)) == pytest.approx(written)
    assert file.value("no.such.key", int, 7) == 7
    assert file.value("llama.block_count", float) == 2.0


def test_a_value_of_another_kind_is_named(tmp_path: Path) -> None:
    file = GGUFFile(write_tiny_gguf(tmp_path / "tiny.gguf"))
    with pytest.raises(ModelError, match=r"tokenizer\.ggml\.model.*wrong kind"):
        file.value("tokenizer.ggml.model", int)
    with pytest.raises(ModelError, match=r"llama\.block_count.*wrong kind"):
        file.values("llama.block_count", int)
    with pytest.raises(ModelError, match=r"no\.such\.key is missing"):
        file.value("no.such.key", int)


def test_a_closed_file_says_so(tmp_path: Path) -> None:
    with GGUFFile(write_tiny_gguf(tmp_path / "tiny.gguf")) as file:
        assert file.has("llama.block_count")
    with pytest.raises(ValueError, match="closed"):
        file.has("llama.block_count")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a GGUF file"),
        (b"PK\x03\x04 something else", "not a GGUF file"),
        (head(version=1), "version is not supported"),
        (head(version=3 << 24), "version is not supported"),
        (head(keys=1 << 60), "counts are impossible"),
        (head(tensors=1 << 60), "counts are impossible"),
        (head() + struct.pack("<Q", 1 << 63) + b"name", "ends in the middle"),
        # The library itself would append to a list for each of these 2^60 numbers, or take as long as they are many.
        (head() + key(b"array", 9) + struct.pack("<IQ", 0, 1 << 60), "impossibly long"),
        (head() + key(b"array", 9) + struct.pack("<IQ", 0, 1 << 21), "ends in the middle"),
        (head() + key(b"array", 9) + struct.pack("<IQ", 8, 1 << 21), "ends in the middle"),
        (head() + key(b"array", 9) + struct.pack("<IQ", 9, 1) * 5000, "array of arrays"),
        (head() + key(b"value", 99) + b"12345678", "unknown kind"),
        (head() + key(b"array", 9) + struct.pack("<IQ", 99, 1), "unknown kind"),
        (head(keys=2) + (key(b"same", 0) + b"1") * 2, "breaks the GGUF format"),
        (head(tensors=1, keys=0), "breaks the GGUF format"),
        (head() + key(b"\xff\xfe", 0) + b"1", "breaks the GGUF format"),
        (head() + key(b"split.count", 2) + b"\x03\x00" + bytes(64), "one part"),
    ],
)
def test_hostile_files(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=reason) as caught:
        GGUFFile(path)
    assert "hostile.gguf" in caught.value.what


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        GGUFFile(tmp_path / "nothing.gguf")
    with pytest.raises(ModelError, match="cannot be opened"):
        GGUFFile(tmp_path)


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write_tiny_gguf(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    # The last tensor ends within the alignment of 32 bytes at the file's end.
    for length in [*range(0, 400, 7), *range(400, len(whole) - 32, 3001), len(whole) - 33]:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            GGUFModel(path)


def test_random_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    whole = np.frombuffer(write_tiny_gguf(tmp_path / "whole.gguf").read_bytes(), dtype=np.uint8)
    random = np.random.default_rng(0)
    path = tmp_path / "damaged.gguf"
    refused = 0
    for _ in range(150):
        damaged = whole.copy()
        places = random.integers(0, 8000, size=random.integers(1, 6))
        damaged[places] = random.choice([0, 1, 9, 127, 128, 255], size=len(places))
        path.write_bytes(damaged.tobytes())
        try:
            GGUFModel(path)
        except ModelError:
            refused += 1
    assert refused > 50
