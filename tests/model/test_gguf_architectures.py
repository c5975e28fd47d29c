"""GGUF files of other architectures than llama: the converted folder is the model that was put in, to transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter
from tiny_gguf import METADATA, VOCABULARY, _add, random_weights, write_tiny_gguf

from strop.errors import ModelError
from strop.model.families import read_spec
from strop.model.gguf_convert import gguf_to_folder
from strop.model.gguf_reader import GGUFModel

LAYERS, HIDDEN, WIDE, HEADS, KEYS, SIZE = 6, 32, 64, 4, 2, 8
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": WIDE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEYS,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW: dict[str, Any] = {"sliding_window": 8, "head_dim": SIZE, "query_pre_attn_scalar": SIZE}
# Architecture → its config in transformers, what it is made with, more metadata.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": False}, {}),
    "qwen3": ("Qwen3Config", {"head_dim": SIZE, "tie_word_embeddings": True}, {"attention.key_length": SIZE}),
    "gemma": ("GemmaConfig", {"head_dim": SIZE}, {"attention.key_length": SIZE}),
    "gemma2": (
        "Gemma2Config",
        {**WINDOW, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
        {"attention.sliding_window": 8, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": ("Gemma3TextConfig", WINDOW, {"attention.sliding_window": 8, "rope.freq_base": 1_000_000.0}),
    "phi3": ("Phi3Config", {"sliding_window": 8, "tie_word_embeddings": False}, {"attention.sliding_window": 8}),
}


def made(architecture: str) -> transformers.PreTrainedModel:
    """A tiny random model whose weights float16 holds exactly."""
    name, settings, _ = CASES[architecture]
    config = getattr(transformers, name)(**{**COMMON, **settings})
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter + torch.randn_like(parameter) * 0.1).half().float())
    return model


def write(path: Path, architecture: str, model: transformers.PreTrainedModel) -> Path:
    """The model as llama.cpp's converter writes it: its names by the library gguf, Gemma's norms plus one."""
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], LAYERS)
    writer = GGUFWriter(path, architecture)
    more = CASES[architecture][2]
    for key, value in METADATA.items():
        if key == "llama.rope.dimension_count" or key.removeprefix("llama.") in more:
            continue
        _add(writer, key.replace("llama.", f"{architecture}."), LAYERS if key == "llama.block_count" else value)
    for key, value in more.items():
        _add(writer, f"{architecture}.{key}", value)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        stem, suffix = name.rsplit(".", 1)
        stored = weight.numpy() + np.float32(architecture.startswith("gemma") and stem.endswith("norm"))
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("architecture", CASES)
def test_the_folder_is_the_model_that_was_put_in(tmp_path: Path, architecture: str) -> None:
    model = made(architecture)
    folder = gguf_to_folder(write(tmp_path / "m.gguf", architecture, model), tmp_path / "folder")
    ours = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    tokens = torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, found = model(tokens).logits, ours(tokens).logits
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    spec = read_spec(folder)
    assert (spec.layers, spec.hidden, spec.kv_heads) == (LAYERS, HIDDEN, KEYS)


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0])
def test_kinds_that_the_library_writes(tmp_path: Path, kind: Kind) -> None:
    weights = random_weights()
    model = GGUFModel(write_tiny_gguf(tmp_path / "m.gguf", weights, kind=kind))
    for name, weight in weights.items():
        expected = weight
        if weight.ndim == 2:
            expected = gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind)
        assert np.abs(model.tensor(name) - expected).max() <= 1e-6, name
    model.close()


BLOCKS = [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_XS, Kind.IQ3_S, Kind.IQ2_XS, Kind.IQ1_M]


@pytest.mark.parametrize("kind", BLOCKS)
def test_kinds_of_256_weights(tmp_path: Path, kind: Kind) -> None:
    """The library reads these and does not write them: random bytes, with scales that are numbers."""
    _, size = gguf.GGML_QUANT_SIZES[kind]
    chance = np.random.default_rng(0)
    rows: list[np.ndarray] = []
    while len(rows) < 64:
        row = chance.integers(0, 256, (1, size), dtype=np.uint8)
        with np.errstate(all="ignore"):
            values = gguf.quants.dequantize(row, kind)
        if np.isfinite(values).all() and np.abs(values).max() < 60_000:
            rows.append(row)
    blocks = np.concatenate(rows)
    path = tmp_path / "m.gguf"
    weights = random_weights()
    wide = {"model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.down_proj.weight"}
    small = {name: weight for name, weight in weights.items() if name not in wide}
    for name in list(small):
        if "gate_proj" in name or "up_proj" in name:
            small[name] = np.resize(small[name], (256, 32))
    writer_extra = {f"blk.{layer}.ffn_down.weight": blocks[:32] for layer in range(2)}
    write_tiny_gguf(path, small, extra_tensors=writer_extra, extra_kind=kind, llama__feed_forward_length=256)
    model = GGUFModel(path)
    expected = gguf.quants.dequantize(blocks[:32], kind)
    for name in wide:
        assert np.array_equal(model.tensor(name), expected)
    model.close()


def spm(tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    return {
        "tokenizer__ggml__model": "llama",
        "tokenizer__ggml__pre": None,
        "tokenizer__ggml__merges": None,
        "tokenizer__ggml__tokens": tokens,
        "tokenizer__ggml__scores": [0.0 if kind != 1 else -float(place) for place, kind in enumerate(kinds)],
        "tokenizer__ggml__token_type": kinds,
    }


def test_a_sentencepiece_tokenizer_is_the_librarys(tmp_path: Path) -> None:
    """Scores, kinds and tokens of a trained model, written as llama.cpp writes them."""
    sentencepiece = pytest.importorskip("sentencepiece")
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over 12 lazy dogs, again and again\n" * 50, "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(tmp_path / "m"),
        model_type="bpe",
        vocab_size=VOCABULARY + 30,
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    count = library.get_piece_size()
    tokens = [library.id_to_piece(place) for place in range(count)]
    kinds = [
        2 if library.is_unknown(i) else 3 if library.is_control(i) else 6 if library.is_byte(i) else 1
        for i in range(count)
    ]
    metadata = spm(tokens, kinds) | {"tokenizer__ggml__scores": [library.get_score(place) for place in range(count)]}
    weights = random_weights()
    weights["model.embed_tokens.weight"] = np.zeros((count, HIDDEN), dtype=np.float32)
    path = write_tiny_gguf(tmp_path / "m.gguf", weights, **metadata)
    folder = gguf_to_folder(path, tmp_path / "folder")
    ours = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for sample in ["the quick fox", "  again 12  and é👍", "dogs\nover\tlazy", ""]:
        assert ours.encode(sample, add_special_tokens=False).ids == library.encode(sample)
        assert ours.encode(sample).ids == [1, *library.encode(sample)]


def test_scores_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    metadata = spm([f"t{place}" for place in range(VOCABULARY)], [1] * VOCABULARY)
    metadata["tokenizer__ggml__scores"] = [0.0] * 3
    path = write_tiny_gguf(tmp_path / "m.gguf", **metadata)
    with pytest.raises(ModelError, match="scores"):
        GGUFModel(path)
