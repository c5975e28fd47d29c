"""Checkpoints that are in bitsandbytes' 4 bits already: loaded byte for byte, everything else refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from safetensors.torch import load_file, save_file

from strop.errors import ModelError
from strop.kernels import nf4
from strop.model.load import load_decoder
from strop.model.tensors import ModelTensors
from strop.model.weights import WeightReader
from tiny_models import save_tiny_llama

PROJECTION = "model.layers.1.mlp.down_proj.weight"


def quantised(folder: Path, *, double: bool = True, kind: str = "nf4", block: int = 64) -> Path:
    """The tiny llama as transformers saves it from bitsandbytes: its linear layers in 4 bits, the rest as it was."""
    save_tiny_llama(folder)
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if "_proj.weight" not in name:
            tensors[name] = weight
            continue
        parts, state = bitsandbytes.functional.quantize_4bit(
            weight, blocksize=block, compress_statistics=double, quant_type=kind
        )
        tensors[name] = parts
        tensors |= {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["quantization_config"] = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": double,
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def change(folder: Path, **parts: Any) -> None:
    """Replace parts of a projection, or leave them out where they are None."""
    tensors = load_file(folder / "model.safetensors")
    for part, value in parts.items():
        name = f"{PROJECTION}.{part}" if part else PROJECTION
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    save_file(tensors, folder / "model.safetensors")


def test_bytes_are_the_files(tmp_path: Path) -> None:
    folder = quantised(tmp_path)
    stored = load_file(folder / "model.safetensors")
    reader = WeightReader(folder)
    for name in (name for name in stored if name.endswith("_proj.weight")):
        tensor = reader.quantized(name)
        assert torch.equal(tensor.packed, stored[name].view(-1))
        assert torch.equal(tensor.absmax8, stored[f"{name}.absmax"])
        assert torch.equal(tensor.nested_absmax, stored[f"{name}.nested_absmax"])
        state = json.loads(bytes(stored[f"{name}.quant_state.bitsandbytes__nf4"].tolist()))
        assert tensor.offset.item() == pytest.approx(state["nested_offset"], rel=1e-7)
        assert tensor.shape == tuple(state["shape"])


@pytest.mark.parametrize("double", [True, False])
def test_the_decoder_holds_what_bitsandbytes_dequantises(tmp_path: Path, double: bool) -> None:
    decoder = load_decoder(quantised(tmp_path, double=double))
    library: dict[str, Any] = load_file(tmp_path / "model.safetensors")
    parts = {key: value for key, value in library.items() if key.startswith(PROJECTION + ".")}
    parts = {key.removeprefix(PROJECTION + "."): value for key, value in parts.items()}
    state = bitsandbytes.functional.QuantState.from_dict(dict(parts), device=torch.device("cpu"))
    expected = bitsandbytes.functional.dequantize_4bit(library[PROJECTION], state).float()
    ours = decoder.layers[1].groups[3].weights[0]
    found = nf4.dequantize(ours)
    if double:
        assert torch.equal(found, expected)
    else:  # the codes are the same; a scale moves within its 8 bits
        assert torch.equal(ours.packed, library[PROJECTION].view(-1))
        assert (found - expected).abs().max() <= 0.02 * expected.abs().max()


def test_without_double_quantisation_it_is_what_the_original_gives(tmp_path: Path) -> None:
    single, original = quantised(tmp_path / "single", double=False), save_tiny_llama(tmp_path / "original")
    ours = ModelTensors(single).reader.quantized(PROJECTION)
    made = nf4.quantize(ModelTensors(original).read(PROJECTION))
    for part in ("packed", "absmax8", "nested_absmax", "offset"):
        assert torch.equal(getattr(ours, part), getattr(made, part)), part


def test_what_was_left_in_full_is_quantised(tmp_path: Path) -> None:
    folder = quantised(tmp_path / "mixed")
    original = load_file(save_tiny_llama(tmp_path / "original") / "model.safetensors")[PROJECTION]
    tensors = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in tensors.items() if not key.startswith(PROJECTION)}
    save_file({**kept, PROJECTION: original}, folder / "model.safetensors")
    ours = load_decoder(folder).layers[1].groups[3].weights[0]
    assert torch.equal(nf4.dequantize(ours), nf4.dequantize(nf4.quantize(original)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "fp4"}, ["fp4", "original model in 16 bits"]),
        ({"block": 128}, ["blocksize 128", "original model in 16 bits"]),
    ],
)
def test_other_kinds_of_four_bits_are_refused(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        load_decoder(quantised(tmp_path, **changes))
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq"}, "awq"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
        ({"load_in_4bit": True}, "None of bitsandbytes"),
        ([], "None"),
    ],
)
def test_other_quantisations_are_refused(tmp_path: Path, config: object, word: str) -> None:
    folder = save_tiny_llama(tmp_path)
    settings = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**settings, "quantization_config": config}), "utf-8")
    with pytest.raises(ModelError, match="quantisation that is not read") as caught:
        load_decoder(folder)
    assert word in caught.value.found
    assert "16 bits" in caught.value.do


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ({"nested_absmax": None}, "no such tensor"),
        ({"quant_map": None}, "no such tensor"),
        ({"nested_quant_map": torch.zeros(256)}, "another code book"),
        ({"quant_map": torch.zeros(15)}, "another code book"),
        ({"absmax": torch.zeros(3, dtype=torch.uint8)}, "3 numbers"),
        ({"nested_absmax": torch.full((2,), float("nan"))}, "not finite"),
        ({"quant_state.bitsandbytes__nf4": torch.tensor(list(b"{}"), dtype=torch.uint8)}, "shape"),
        ({"quant_state.bitsandbytes__nf4": torch.tensor(list(b"[1"), dtype=torch.uint8)}, "delimiter"),
    ],
)
def test_damaged_checkpoints_are_refused(tmp_path: Path, parts: dict[str, Any], word: str) -> None:
    folder = quantised(tmp_path)
    change(folder, **parts)
    with pytest.raises(ModelError) as caught:
        load_decoder(folder)
    assert word in str(caught.value), caught.value


def test_pickled_weights_are_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = save_tiny_llama(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"has no model\.safetensors") as caught:
        load_decoder(folder)
    assert "pytorch_model.bin" in caught.value.found
    assert "save_pretrained" in caught.value.do
