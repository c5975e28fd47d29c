"""Loading: what is read ahead, kept and hashed gives the same base as tensor after tensor."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from strop.errors import ModelError, UsageError
from strop.hub import hashes
from strop.kernels import nf4, select
from strop.kernels.nf4 import NF4Tensor
from strop.model import base, nf4_cache, nf4_space
from strop.model.decoder import Decoder
from strop.model.load import load_decoder
from strop.model.tensors import ModelTensors
from tiny_models import save_tiny_llama


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of its own that keeps tiny bases too, and hashes that are remembered at once."""
    monkeypatch.setenv("STROP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(nf4_cache, "SMALLEST_WEIGHTS", 0)
    monkeypatch.setattr(hashes, "_GRAIN_SECONDS", -1.0)
    yield


def parts(decoder: Decoder) -> list[bytes]:
    """The bytes of every projection."""
    tensors = [weight for layer in decoder.layers for group in layer.groups for weight in group.weights]
    return [getattr(one, part).numpy().tobytes() for one in tensors for part in nf4_cache._PARTS]


def kept() -> list[Path]:
    return sorted(path for path in nf4_space.nf4_folder().glob("*") if path.is_dir())


def count_quantised(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    quantize = nf4.quantize

    def counted(weight: torch.Tensor) -> NF4Tensor:
        shapes.append(tuple(weight.shape))
        return quantize(weight)

    monkeypatch.setattr(nf4, "quantize", counted)
    return shapes


def test_the_second_load_quantises_nothing_and_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny_llama(tmp_path / "model", dtype=torch.bfloat16, shards=3)
    shapes = count_quantised(monkeypatch)
    first = load_decoder(folder)
    assert len(shapes) == 14
    second = load_decoder(folder)
    assert len(shapes) == 14
    assert parts(first) == parts(second)
    (folder_kept,) = kept()
    tensors = load_file(folder_kept / "base.safetensors")  # the library reads what was written
    assert tensors["model.layers.0.self_attn.q_proj.weight.packed"].shape == (64 * 64 // 2,)
    monkeypatch.setenv("STROP_NF4_CACHE", "off")
    assert parts(load_decoder(folder)) == parts(first)
    assert len(shapes) == 28


def test_other_weights_are_another_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny_llama(tmp_path / "model")
    before = parts(load_decoder(folder))
    file = folder / "model.safetensors"
    times, tensors = file.stat(), load_file(file)
    tensors["model.layers.0.mlp.up_proj.weight"][5, 6] += 1.0
    file.write_bytes(save(tensors))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert parts(load_decoder(folder)) != before
    assert len(kept()) == 2


def test_a_damaged_base_is_made_again(tmp_path: Path) -> None:
    folder = save_tiny_llama(tmp_path / "model")
    before = parts(load_decoder(folder))
    (place,) = kept()
    content = bytearray((place / "base.safetensors").read_bytes())
    content[-40] ^= 255
    (place / "base.safetensors").write_bytes(content)
    assert parts(load_decoder(folder)) == before
    (place / "base.safetensors").write_bytes(content[:-9])
    assert parts(load_decoder(folder)) == before
    (place / "manifest.json").write_text("{", "utf-8")
    assert parts(load_decoder(folder)) == before


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [save_tiny_llama(tmp_path / f"model{number}", vocab_size=96 + number) for number in range(3)]
    load_decoder(folders[0])
    (oldest,) = kept()
    load_decoder(folders[1])
    os.utime(oldest / "manifest.json", (1, 1))
    one = (oldest / "base.safetensors").stat().st_size
    assert nf4_space.taken_bytes() == 2 * one
    monkeypatch.setenv("STROP_NF4_CACHE", str(2.5 * one / 1e9))
    load_decoder(folders[2])
    assert len(kept()) == 2
    assert oldest not in kept()


def test_a_disk_that_is_full_or_small_models_keep_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny_llama(tmp_path / "model")
    monkeypatch.setattr(nf4_cache, "_SPARE_BYTES", 1 << 60)
    load_decoder(folder)
    monkeypatch.setattr(nf4_cache, "_SPARE_BYTES", 0)
    monkeypatch.setattr(nf4_cache, "SMALLEST_WEIGHTS", 1 << 27)
    load_decoder(folder)
    assert kept() == []


def test_an_interrupted_load_leaves_no_base(tmp_path: Path) -> None:
    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    folder = save_tiny_llama(tmp_path / "model")
    with pytest.raises(KeyboardInterrupt):
        load_decoder(folder, progress=stop)
    assert list(nf4_space.nf4_folder().iterdir()) == []


@pytest.mark.parametrize("wish", ["much", "-1", "nan"])
def test_a_limit_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wish: str) -> None:
    monkeypatch.setenv("STROP_NF4_CACHE", wish)
    with pytest.raises(UsageError, match="STROP_NF4_CACHE"):
        load_decoder(save_tiny_llama(tmp_path / "model"))


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize(("place", "wide"), [((3, 4), 320), ((-1, -1), 320), ((-1, -1), 321)])
@pytest.mark.parametrize("native", [True, False])
def test_numbers_that_are_not_finite_are_refused_ahead_too(
    tmp_path: Path, number: float, place: tuple[int, int], wide: int, native: bool
) -> None:
    folder = save_tiny_llama(tmp_path / "model", intermediate_size=wide, hidden_size=64 if wide == 320 else 8)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][place] = number
    save_file(tensors, folder / "model.safetensors")
    with (
        nullcontext() if native else select.forced("torch"),
        pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight holds numbers that are not finite"),
    ):
        load_decoder(folder)


def test_reading_ahead_is_bounded_and_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "AHEAD_BYTES", 30)
    names, read = [f"t{number}" for number in range(12)], []

    def load(name: str) -> torch.Tensor:
        read.append(name)
        return torch.tensor(int(name[1:]))

    ahead = base._Ahead(load, names, lambda _: 10)
    order = ["t1", "t0", "t2", "t9", "t4", "t3", "t5", "t6", "t7", "t8", "t11", "t10"]
    for place, name in enumerate(order):
        assert int(ahead.take(name)) == int(name[1:])  # type: ignore[arg-type]
        assert len(ahead._waiting) <= 3
        assert len(read) <= place + 1 + 3
    ahead.close()


def test_the_hash_of_one_file_is_its_own_that_of_shards_is_theirs(tmp_path: Path) -> None:
    one = save_tiny_llama(tmp_path / "one")
    reader = ModelTensors(one).reader
    seen: list[tuple[int, int]] = []
    expected = hashlib.sha256((one / "model.safetensors").read_bytes()).hexdigest()
    size = (one / "model.safetensors").stat().st_size
    assert reader.sha256(lambda done, total: seen.append((done, total))) == expected
    assert seen[-1] == (size, size)
    assert reader.sha256(lambda *_: pytest.fail("read again")) == expected
    many = save_tiny_llama(tmp_path / "many", shards=2)
    files = sorted(set(json.loads((many / "model.safetensors.index.json").read_text())["weight_map"].values()))
    lines = "\n".join(hashlib.sha256((many / name).read_bytes()).hexdigest() for name in files)
    assert ModelTensors(many).reader.sha256() == hashlib.sha256(lines.encode()).hexdigest()
