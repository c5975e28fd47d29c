"""Tiny random models of every family: a folder in the family's own format, and a transformers model that is its equal.

Where transformers has the family, the folder is what `save_pretrained` writes. Where it has not, the equal model is one
that transformers has under Llama's names, and the folder is made of it by the family's published formulas, written
here: how its repository cuts its fused matrices, and what its modeling file computes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

State = dict[str, Tensor]
Config = dict[str, Any]

SIZES: Config = {
    "vocab_size": 320,
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
        kind: transformers' model_type of the equal model.
        changes: its settings beside `SIZES`; those that are None are taken out.
        convert: (state, config) of the equal model → those of the family's own format; None if that is the same.
        tweak: what is done to the equal model before it is asked.
        text: where the sizes are in transformers' config.
    """

    kind: str
    changes: Config = field(default_factory=dict)
    convert: Callable[[State, Config], tuple[State, Config]] | None = None
    tweak: Callable[[PreTrainedModel], None] | None = None
    text: str = ""


def write_model(case: Case, folder: Path) -> None:
    """Writes the equal model to ``folder/equal`` and the family's own format to ``folder/own``."""
    torch.manual_seed(11)
    sizes = {key: value for key, value in {**SIZES, **case.changes}.items() if value is not None}
    config = AutoConfig.for_model(case.kind, **({case.text: sizes} if case.text else sizes))
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder / "equal")
    if case.convert is None:
        (folder / "own").symlink_to(folder / "equal")
        return
    state, own = case.convert(load_file(folder / "equal/model.safetensors"), read(folder / "equal"))
    (folder / "own").mkdir()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "own/model.safetensors")
    (folder / "own/config.json").write_text(json.dumps(own))


def read(folder: Path) -> Config:
    """The config.json of a folder."""
    return json.loads((folder / "config.json").read_text())


def equal_model(case: Case, folder: Path) -> PreTrainedModel:
    """The equal model, from ``folder/equal``."""
    model = AutoModelForCausalLM.from_pretrained(folder / "equal", dtype=torch.float32, attn_implementation="eager")
    if case.tweak:
        case.tweak(model)
    return model.eval()


def own_config(model_type: str, config: Config, **keys: Any) -> Config:
    """A config in a family's own words: the sizes that are shared, and its own keys."""
    shared = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "hidden_act", "tie_word_embeddings"),
    )
    own = {"model_type": model_type, **{key: config[key] for key in shared if key in config}, **keys}
    return {key: value for key, value in own.items() if value is not None}


def renamed(state: State, **names: str) -> State:
    """A state with parts of its names replaced, in the order given."""
    out = {}
    for name, tensor in state.items():
        for old, new in names.items():
            name = name.replace(old.replace("__", "."), new)  # noqa: PLW2901
        out[name] = tensor
    return out


def joined(state: State, layers: int, block: str, parts: tuple[str, ...], into: str) -> State:
    """A state whose projections of a block are one matrix, one below the other, biases alike."""
    for layer in range(layers):
        at = f"model.layers.{layer}.{block}."
        for suffix in ("weight", "bias"):
            if f"{at}{parts[0]}.{suffix}" in state:
                state[f"{at}{into}.{suffix}"] = torch.cat([state.pop(f"{at}{part}.{suffix}") for part in parts])
    return state


QKV = ("q_proj", "k_proj", "v_proj")


def internlm(state: State, config: Config) -> tuple[State, Config]:
    """InternLM 1: Llama's tensors, and buffers of the rope in the file."""
    for layer in range(config["num_hidden_layers"]):
        state[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.rand(8)
    rotary = {"base": 10000, "type": "dynamic"}
    own = own_config("internlm", config, bias=config["attention_bias"], rotary=rotary, num_key_value_heads=None)
    return state, own


def internlm2(state: State, config: Config) -> tuple[State, Config]:
    """InternLM 2's wqkv is read as '(h gs d) dim', gs = queries of a group, its key, its value."""
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    size, hidden = config["head_dim"], config["hidden_size"]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        q, k, v = (state.pop(f"{at}self_attn.{name}.weight") for name in QKV)
        shapes = (q.view(groups, heads // groups, size, hidden), k.view(groups, 1, size, hidden))
        whole = torch.cat([*shapes, v.view(groups, 1, size, hidden)], dim=1)
        state[f"{at}attention.wqkv.weight"] = whole.reshape(-1, hidden)
    names = {
        "self_attn__o_proj": "attention.wo",
        "mlp__gate_proj": "feed_forward.w1",
        "mlp__up_proj": "feed_forward.w3",
        "mlp__down_proj": "feed_forward.w2",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "embed_tokens": "tok_embeddings",
        "lm_head": "output",
    }
    scaling = {"type": "dynamic", "factor": 2.0}
    own = own_config("internlm2", config, bias=False, rope_theta=1e6, rope_scaling=scaling, attn_implementation="eager")
    return renamed(state, **names), own


def baichuan(state: State, config: Config) -> tuple[State, Config]:
    """Baichuan 7B: W_pack is q, k and v one below the other."""
    state = joined(state, config["num_hidden_layers"], "self_attn", QKV, "W_pack")
    return state, own_config("baichuan", config, num_key_value_heads=None, z_loss_weight=0)


def baichuan_13b(state: State, config: Config) -> tuple[State, Config]:
    """Baichuan 13B: without a rope, and without max_position_embeddings."""
    state, own = baichuan(state, config)
    return state, {
        **{key: value for key, value in own.items() if key != "max_position_embeddings"},
        "model_max_length": 128,
    }


def chatglm(state: State, config: Config) -> tuple[State, Config]:
    """ChatGLM 2 and 3: query_key_value, and the two halves of dense_h_to_4h: silu(first) * second."""
    layers = config["num_hidden_layers"]
    state = joined(state, layers, "self_attn", QKV, "query_key_value")
    names = {
        "self_attn__o_proj": "self_attention.dense",
        "self_attn__query_key_value": "self_attention.query_key_value",
        "mlp__gate_up_proj": "mlp.dense_h_to_4h",
        "mlp__down_proj": "mlp.dense_4h_to_h",
        "model__layers": "transformer.encoder.layers",
        "model__norm": "transformer.encoder.final_layernorm",
        "model__embed_tokens": "transformer.embedding.word_embeddings",
        "lm_head": "transformer.output_layer",
    }
    state = renamed(state, **names)
    state["transformer.rotary_pos_emb.inv_freq"] = torch.rand(4)
    return state, {
        "model_type": "chatglm",
        "num_layers": layers,
        "padded_vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "ffn_hidden_size": config["intermediate_size"],
        "kv_channels": config["head_dim"],
        "num_attention_heads": config["num_attention_heads"],
        "seq_length": 128,
        "layernorm_epsilon": config["rms_norm_eps"],
        "rmsnorm": True,
        "apply_residual_connection_post_layernorm": False,
        "post_layer_norm": True,
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "multi_query_attention": True,
        "multi_query_group_num": config["num_key_value_heads"],
        "apply_query_key_layer_scaling": True,
        "attention_softmax_in_fp32": True,
        "original_rope": True,
        "rope_ratio": 500,
        "vocab_size": config["vocab_size"],
    }


def qwen(state: State, config: Config) -> tuple[State, Config]:
    """Qwen 1: w1(x) * silu(w2(x)); intermediate_size counts both."""
    state = joined(state, config["num_hidden_layers"], "self_attn", QKV, "c_attn")
    names = {
        "self_attn__c_attn": "attn.c_attn",
        "self_attn__o_proj": "attn.c_proj",
        "mlp__gate_proj": "mlp.w2",
        "mlp__up_proj": "mlp.w1",
        "mlp__down_proj": "mlp.c_proj",
        "input_layernorm": "ln_1",
        "post_attention_layernorm": "ln_2",
        "model__layers": "transformer.h",
        "model__norm": "transformer.ln_f",
        "model__embed_tokens": "transformer.wte",
    }
    return renamed(state, **names), {
        "model_type": "qwen",
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": 2 * config["intermediate_size"],
        "num_hidden_layers": config["num_hidden_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "kv_channels": 16,
        "layer_norm_epsilon": config["rms_norm_eps"],
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "seq_length": 128,
        "max_position_embeddings": 128,
        "no_bias": True,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
        "use_flash_attn": "auto",
        "tie_word_embeddings": False,
        "bf16": True,
    }


def unit_rows(model: PreTrainedModel) -> None:
    """Baichuan 2's head: each row divided by its length."""
    with torch.no_grad():
        weight = model.lm_head.weight
        weight.div_(weight.pow(2).sum(1, keepdim=True).sqrt())


def alibi(model: PreTrainedModel) -> None:
    """ALiBi instead of the rope: angles of zero, and m_h · j added to the score of key j (Press et al. 2022).

    With n heads, m_h = 2^(-8 h / n) for n a power of two; else the powers for the next lower power of two come first
    and every second one of those for twice as many follows.
    """
    model.model.rotary_emb.inv_freq.zero_()
    heads = model.config.num_attention_heads
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (h + 1) / power) for h in range(power)]
    slopes += [2.0 ** (-4.0 * (2 * h + 1) / power) for h in range(heads - power)]
    slopes_H = torch.tensor(slopes)
    inner = model.model.forward

    def forward(input_ids: Tensor, **more: Any) -> Any:
        length, past = input_ids.shape[1], 0
        if more.get("past_key_values") is not None:
            past = more["past_key_values"].get_seq_length()
        keys_S = torch.arange(past + length)
        hidden_TS = keys_S[None] > keys_S[past:, None]
        mask = (slopes_H[:, None, None] * keys_S).expand(heads, length, -1).masked_fill(hidden_TS, -torch.inf)
        return inner(input_ids, **{**more, "attention_mask": mask[None]})

    model.model.forward = forward


def rope(kind: str, **parameters: Any) -> Config:
    """The settings of a rope, as transformers writes them today."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **parameters}}


_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
_SHORT = {"max_position_embeddings": 32}
_LONG = rope("longrope", short_factor=[1.0, 1.1, 1.3], long_factor=[1.0, 2.5, 4.0], partial_rotary_factor=0.375)
_SLIDING = {"sliding_window": 8}
_GLM = {"head_dim": 16, "pad_token_id": 0}
_ALL_HEADS = {"num_key_value_heads": 4}

CASES: dict[str, Case] = {
    "llama": Case("llama"),
    "llama biased": Case("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama linear": Case("llama", rope("linear", factor=4.0)),
    "llama dynamic": Case("llama", {**rope("dynamic", factor=4.0), **_SHORT}),
    "llama llama3": Case("llama", rope("llama3", **_LLAMA3)),
    "llama yarn": Case("llama", rope("yarn", factor=4.0, original_max_position_embeddings=32)),
    "llama yarn mscale": Case(
        "llama",
        rope("yarn", factor=4.0, original_max_position_embeddings=32, mscale=0.7, mscale_all_dim=1.3, beta_fast=16.0),
    ),
    "internlm": Case("llama", {"attention_bias": True, **_ALL_HEADS}, internlm),
    "internlm dynamic": Case(
        "llama",
        {**rope("dynamic", factor=1.0), **_SHORT, "attention_bias": True, **_ALL_HEADS},
        internlm,
    ),
    "internlm2": Case(
        "llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0}}, internlm2
    ),
    "internlm3": Case("internlm3", {"head_dim": 32, **rope("dynamic", factor=6.0)}),
    "mistral": Case("mistral", _SLIDING),
    "qwen": Case("qwen2", _ALL_HEADS, qwen),
    "qwen2": Case("qwen2", {"tie_word_embeddings": True}),
    "qwen2 sliding": Case("qwen2", {**_SLIDING, "use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": Case("qwen3", {"head_dim": 32}),
    "qwen3_moe": Case(
        "qwen3_moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "head_dim": 16,
            "norm_topk_prob": True,
        },
    ),
    "qwen3_moe some layers": Case(
        "qwen3_moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "head_dim": 16,
            "num_hidden_layers": 5,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
        },
    ),
    "qwen3_moe but the first": Case(
        "qwen3_moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "mlp_only_layers": [0]},
    ),
    "baichuan": Case("llama", _ALL_HEADS, baichuan),
    "baichuan2": Case("llama", {**_ALL_HEADS, "vocab_size": 125696, "hidden_size": 32}, baichuan, unit_rows),
    "baichuan 13b": Case(
        "llama", {"num_key_value_heads": 6, "num_attention_heads": 6, "hidden_size": 96}, baichuan_13b, alibi
    ),
    "chatglm": Case(
        "glm",
        {**_GLM, "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5}},
        chatglm,
    ),
    "glm": Case("glm", _GLM),
    "glm4": Case("glm4", _GLM),
    "gemma": Case("gemma", {"head_dim": 32}),
    "gemma2": Case("gemma2", {"head_dim": 32, "query_pre_attn_scalar": 24, **_SLIDING}),
    "gemma3": Case("gemma3_text", {"head_dim": 32, "query_pre_attn_scalar": 24, "num_hidden_layers": 7, **_SLIDING}),
    "gemma3 seeing": Case(
        "gemma3", {"head_dim": 32, "query_pre_attn_scalar": 24, "num_hidden_layers": 7, **_SLIDING}, text="text_config"
    ),
    "phi": Case("phi", {"partial_rotary_factor": 0.5, **_ALL_HEADS}),
    "phi3": Case("phi3", _SLIDING),
    "phi3 longrope": Case("phi3", {**_LONG, "original_max_position_embeddings": 32}),
    "starcoder2": Case("starcoder2", _SLIDING),
    "olmo2": Case("olmo2"),
    "granite": Case(
        "granite",
        {
            "attention_multiplier": 0.2,
            "embedding_multiplier": 6.0,
            "residual_multiplier": 0.3,
            "logits_scaling": 4.0,
        },
    ),
    "smollm3": Case("smollm3", {"num_hidden_layers": 4}),
    "mixtral": Case("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}
