"""The reader against transformers (config, logits, its own GGUF import) and against the gguf library (values)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from tiny_gguf import (
    HEAD_SIZE,
    HEADS,
    KEY_HEADS,
    VOCABULARY,
    gguf_name,
    llama_cpp_rows,
    random_weights,
    write_tiny_gguf,
)
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from strop.errors import ModelError
from strop.model.gguf_reader import GGUFModel, undo_rope_permutation

QUANTISATIONS = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


def logits_of(config: LlamaConfig, weights: dict[str, np.ndarray]) -> torch.Tensor:
    model = LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict({k: torch.tensor(v) for k, v in weights.items()}, strict=False)
    assert not unexpected
    assert missing == (["lm_head.weight"] if config.tie_word_embeddings else [])
    model.tie_weights()
    with torch.no_grad():
        return model(torch.arange(24).reshape(2, 12) * 7 % VOCABULARY).logits


@pytest.mark.parametrize(("tied", "bias"), [(True, False), (False, True)])
def test_a_llama_comes_back_whole(tmp_path: Path, tied: bool, bias: bool) -> None:
    weights = random_weights(tied=tied, bias=bias)
    published = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        rms_norm_eps=1e-5,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        attention_bias=bias,
        mlp_bias=bias,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with GGUFModel(write_tiny_gguf(tmp_path / "tiny.gguf", weights)) as model:
        read = {name: model.tensor(name) for name in model.tensor_shapes()}
        config = LlamaConfig(**model.config)
    assert read.keys() == weights.keys()
    for name, weight in weights.items():
        np.testing.assert_array_equal(read[name], weight, err_msg=name)
    ours, theirs = config.to_dict(), published.to_dict()
    assert {k: ours[k] for k in theirs if k not in ("architectures", "dtype")} == {
        k: v for k, v in theirs.items() if k not in ("architectures", "dtype")
    }
    torch.testing.assert_close(logits_of(config, read), logits_of(published, weights), rtol=0, atol=0)


@pytest.mark.parametrize("kind", QUANTISATIONS)
def test_values_are_the_gguf_librarys(tmp_path: Path, kind: str) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", kind=GGMLQuantizationType[kind])
    stored = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(path).tensors}
    model = GGUFModel(path)
    assert len(model.tensor_shapes()) == len(stored)
    for name, shape in model.tensor_shapes().items():
        weight = model.tensor(name)
        assert weight.shape == shape
        assert weight.dtype == np.float32
        heads = {"q_proj": HEADS, "k_proj": KEY_HEADS}.get(name.split(".")[-2])
        # Ours in llama.cpp's order must be what is stored.
        np.testing.assert_array_equal(llama_cpp_rows(weight, heads) if heads else weight, stored[gguf_name(name)])


def test_transformers_own_import_agrees(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", kind=GGMLQuantizationType.Q4_1)
    imported = LlamaForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).state_dict()
    model = GGUFModel(path)
    for name in model.tensor_shapes():
        np.testing.assert_array_equal(model.tensor(name), imported[name].numpy(), err_msg=name)


def test_the_rope_permutation_of_one_small_head() -> None:
    stored = np.array([[0], [2], [1], [3], [10], [12], [11], [13]], dtype=np.float32)  # two heads of 4 rows
    assert undo_rope_permutation(stored, 2).ravel().tolist() == [0, 1, 2, 3, 10, 11, 12, 13]


def test_a_tensor_has_memory_of_its_own(tmp_path: Path) -> None:
    model = GGUFModel(write_tiny_gguf(tmp_path / "tiny.gguf"))
    model.tensor("model.norm.weight")[:] = 0
    assert model.tensor("model.norm.weight").any()
    model.close()
    with pytest.raises(KeyError):
        model.tensor("model.norm.weight")


def test_rope_scaling(tmp_path: Path) -> None:
    config = LlamaConfig(
        head_dim=HEAD_SIZE,
        hidden_size=32,
        num_attention_heads=HEADS,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    plain = 500000.0 ** (-np.arange(0, HEAD_SIZE, 2) / HEAD_SIZE)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    factors = (plain / scaled.numpy()).astype(np.float32)
    assert factors.max() > 30
    path = tmp_path / "llama3.gguf"
    write_tiny_gguf(path, extra_tensors={"rope_freqs.weight": factors}, llama__rope__freq_base=500000.0)
    assert GGUFModel(path).config["rope_parameters"] == pytest.approx(config.rope_parameters)
    assert GGUFModel(path).config["rope_scaling"]["rope_type"] == "llama3"

    write_tiny_gguf(path, extra_tensors={"rope_freqs.weight": factors * 1.01}, llama__rope__freq_base=500000.0)
    with pytest.raises(ModelError, match=r"rope_freqs\.weight"):
        GGUFModel(path)

    write_tiny_gguf(path, llama__rope__scaling__type="linear", llama__rope__scaling__factor=4.0)
    assert GGUFModel(path).config["rope_parameters"] == {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    write_tiny_gguf(path, llama__rope__scaling__type="yarn")
    with pytest.raises(ModelError, match="rope scaling"):
        GGUFModel(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architecture": "mamba"}, "architecture is not supported"),
        ({"llama__expert_count": 8}, "expert_count"),
        ({"llama__attention__scale": 0.5}, "attention.scale"),
        ({"llama__block_count": 3}, "a tensor is missing"),
        ({"llama__block_count": 4_000_000_000}, "fewer tensors than layers"),
        ({"llama__block_count": 1}, "does not have"),
        ({"llama__block_count": None}, "block_count is missing"),
        ({"llama__embedding_length": 64, "llama__attention__key_length": 8}, "does not fit the metadata"),
        ({"llama__attention__head_count": 0}, "head_count is impossible"),
        ({"llama__attention__head_count_kv": 3}, "heads are impossible"),
        ({"llama__attention__head_count": [4, 2]}, "wrong kind"),
        ({"llama__rope__dimension_count": 4}, "differs from the head size"),
        ({"llama__attention__layer_norm_rms_epsilon": -1.0}, "impossible"),
        ({"llama__rope__freq_base": float("nan")}, "impossible"),
        ({"extra_tensors": {"blk.0.attn_sinks.weight": np.ones(4, np.float32)}}, "does not have"),
        ({"weights": {k: v for k, v in random_weights().items() if "1.mlp.up" not in k}}, "a tensor is missing"),
        ({"weights": {k: v for k, v in random_weights().items() if "embed" not in k}}, "a tensor is missing"),
        ({"weights": random_weights() | {"model.norm.weight": np.ones(32)}}, "quantisation is not supported"),
    ],
)
def test_what_is_not_a_plain_llama_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    path = write_tiny_gguf(tmp_path / "other.gguf", **changes)
    with pytest.raises(ModelError, match=reason):
        GGUFModel(path)
