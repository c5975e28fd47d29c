"""A tiny random llama as a model folder, without transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def save_tiny_llama(folder: Path, *, dtype: torch.dtype = torch.float32, shards: int = 1, **settings: Any) -> Path:
    """Write config.json and weights; `settings` change the config."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, **settings}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    tensors = {name: weight.to(dtype) for name, weight in tiny_weights(config).items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names, placed = list(tensors), {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[number::shards]}
        save_file(part, folder / file)
        placed |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}), "utf-8")
    return folder


def tiny_weights(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of a llama's shapes, float32."""
    chance = torch.Generator().manual_seed(seed)
    hidden, wide, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(config["num_hidden_layers"]):
        place = f"model.layers.{layer}"
        shapes |= {
            f"{place}.self_attn.q_proj.weight": (hidden, hidden),
            f"{place}.self_attn.k_proj.weight": (keys, hidden),
            f"{place}.self_attn.v_proj.weight": (keys, hidden),
            f"{place}.self_attn.o_proj.weight": (hidden, hidden),
            f"{place}.mlp.gate_proj.weight": (wide, hidden),
            f"{place}.mlp.up_proj.weight": (wide, hidden),
            f"{place}.mlp.down_proj.weight": (hidden, wide),
            f"{place}.input_layernorm.weight": (hidden,),
            f"{place}.post_attention_layernorm.weight": (hidden,),
        }
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocabulary, hidden)
    return {name: torch.randn(shape, generator=chance) * 0.05 for name, shape in shapes.items()}
