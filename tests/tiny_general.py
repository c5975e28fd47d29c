"""Tiny random models that no table of ours describes, as transformers writes them: the general path's cases."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tiny_tokenizers import write_folder

VOCABULARY = 320
_PLAIN = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Case:
    """A tiny model.

    Args:
        kind: transformers' model_type.
        changes: settings beside the usual sizes; those that are None are taken out.
        packs: what tells documents of a pack apart.
        caches: whether answers go on from its cache.
        plain: whether its logits are hidden · Wᵀ.
        targets: names of its linears that can have adapters.
    """

    kind: str
    targets: tuple[str, ...]
    changes: dict[str, Any] = field(default_factory=dict)
    packs: str = "positions"
    caches: bool = True
    plain: bool = True


CASES = {
    "GPT-NeoX": Case("gpt_neox", ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")),
    "GPT-NeoX, one stream": Case(
        "gpt_neox",
        ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
        {"use_parallel_residual": False, "tie_word_embeddings": True},
    ),
    "GPT-2": Case(
        "gpt2",
        ("c_attn", "c_proj", "c_fc"),
        {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128, "n_inner": 96},
    ),
    "OPT": Case(
        "opt",
        ("k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2"),
        {"ffn_dim": 96, "word_embed_proj_dim": 64},
        packs="mask",
    ),
    "OPT, narrow ends": Case(
        "opt",
        ("project_out", "project_in", "k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2"),
        {"ffn_dim": 96, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
        packs="mask",
    ),
    "BLOOM": Case(
        "bloom",
        ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
        {"n_layer": 3, "n_head": 4, "num_key_value_heads": None},
        packs="",
    ),
    "Falcon": Case(
        "falcon",
        ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
        {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 96},
        packs="mask",
    ),
    "Falcon, ALiBi": Case(
        "falcon",
        ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
        {"alibi": True, "multi_query": True, "parallel_attn": False, "bias": True},
        packs="",
    ),
    "StableLM": Case(
        "stablelm",
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        {"use_qkv_bias": True, "qk_layernorm": True},
    ),
    "Cohere": Case(
        "cohere",
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        {"logit_scale": 0.25, "use_qk_norm": True},
        plain=False,
    ),
    "GPT-J": Case(
        "gptj",
        ("k_proj", "v_proj", "q_proj", "out_proj", "fc_in", "fc_out"),
        {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128, "n_inner": 96, "rotary_dim": 8},
        plain=False,
    ),
    "Mamba": Case("mamba", ("in_proj", "x_proj"), {"state_size": 4, "time_step_rank": 8}, packs=""),
    "RecurrentGemma": Case(
        "recurrent_gemma",
        (
            "linear_y",
            "linear_x",
            "linear_out",
            "gate_proj",
            "up_proj",
            "down_proj",
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
        ),
        {"lru_width": 64, "attention_window_size": 8, "head_dim": 16, "logits_soft_cap": 5.0},
        packs="",
        caches=False,
        plain=False,
    ),
}


def write_model(case: Case, folder: Path) -> Path:
    """Writes a random model as transformers does."""
    sizes = {key: value for key, value in {**_PLAIN, **case.changes}.items() if value is not None}
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(case.kind, **sizes)).float().eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias") or "norm" in name or "ln_" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return folder


def their_model(folder: Path) -> PreTrainedModel:
    """The model of a folder, in transformers, with the attention that it chooses."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def edit(folder: Path, **settings: Any) -> Path:
    """Changes settings of a folder's config.json; those that are None are taken out."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **settings}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


# Levers of the general path on top of `tiny_run.PLAN`.
PLAN = {"prefixes": "repeated", "recompute_elementwise": 0, "dense_layers": 0, "recompute_layers": 1}


def write_run_model(folder: Path, kind: str = "gpt_neox", **changes: Any) -> Path:
    """Writes a random model that trains in milliseconds, complete with tokenizer and template."""
    write_folder(folder, "chatml")
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    ends = {"vocab_size": len(vocabulary), "eos_token_id": vocabulary["<|im_end|>"]}
    sizes = {"num_hidden_layers": 2, "max_position_embeddings": 256}
    return write_model(Case(kind, (), {**ends, **sizes, **changes}), folder)
