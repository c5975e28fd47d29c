"""The architectures of GGUF files that are read: how each one's tensors and metadata are a standard model folder's.

                 rows of q and k     norms stored    fused                biases        more norms
    llama        interleaved         as they are                          all or none
    qwen2        as published        as they are                          q, k, v
    qwen3        as published        as they are                          none          q and k, each head
    gemma, 2, 3  as published        plus one                             none          behind attention and MLP (2, 3)
    phi3         as published        as they are     qkv, gate with up    none

llama.cpp's converter (convert_hf_to_gguf.py) decides all of that; a Mistral's architecture is called llama there. What
is not stored (Gemma's attention scale, its local rope) is set as llama.cpp sets it when it loads the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_LLAMA_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_GEMMA_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}

# Layers of the models whose attention is scaled by hidden size / heads instead of the head size.
_GEMMA2_27B, _GEMMA3_27B = 46, 62
_GEMMA3_PATTERN = 6


@dataclass(frozen=True, slots=True)
class Sizes:
    """What metadata a config needs, under names that do not depend on the architecture.

    Attributes:
        number: a float by its key without the architecture; None where it is not stored.
        whole: the same of a whole number.
    """

    hidden: int
    layers: int
    heads: int
    head_size: int
    number: Callable[[str], float | None]
    whole: Callable[[str], int | None]


def _nothing(_sizes: Sizes) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True)
class Architecture:
    """How a GGUF architecture is read.

    Attributes:
        model_type: model_type of config.json.
        class_name: its class in transformers.
        norms: norms of a layer, GGUF's name → the folder's.
        head_norms: norms over the heads of q and k.
        interleaved: whether rows of q and k are reordered.
        norms_plus_one: whether 1 was added to the norms.
        fused: whether q, k, v and gate, up are one matrix each.
        biases: the projections that may have one, all of them or none.
        mlp_biases: whether the MLP's projections may.
        activation: key and value of the MLP's function.
        more: what else config.json says.
    """

    model_type: str
    class_name: str
    norms: Mapping[str, str] = field(default_factory=lambda: dict(_LLAMA_NORMS))
    head_norms: Mapping[str, str] = field(default_factory=dict)
    interleaved: bool = False
    norms_plus_one: bool = False
    fused: bool = False
    biases: tuple[str, ...] = ()
    mlp_biases: bool = False
    activation: tuple[str, str] = ("hidden_act", "silu")
    more: Callable[[Sizes], dict[str, Any]] = _nothing


def _gemma2(sizes: Sizes) -> dict[str, Any]:
    wide = sizes.layers == _GEMMA2_27B
    return {
        "query_pre_attn_scalar": sizes.hidden // sizes.heads if wide else sizes.head_size,
        "attn_logit_softcapping": sizes.number("attn_logit_softcapping"),
        "final_logit_softcapping": sizes.number("final_logit_softcapping"),
        "sliding_window": sizes.whole("attention.sliding_window"),
        "layer_types": ["full_attention" if layer % 2 else "sliding_attention" for layer in range(sizes.layers)],
    }


def _gemma3(sizes: Sizes) -> dict[str, Any]:
    wide = sizes.layers == _GEMMA3_27B
    return {
        "query_pre_attn_scalar": sizes.hidden // sizes.heads if wide else sizes.head_size,
        "sliding_window": sizes.whole("attention.sliding_window"),
        "layer_types": [
            "sliding_attention" if (layer + 1) % _GEMMA3_PATTERN else "full_attention" for layer in range(sizes.layers)
        ],
        "rope_local_base_freq": 10000.0,
    }


def _phi3(sizes: Sizes) -> dict[str, Any]:
    return {"sliding_window": sizes.whole("attention.sliding_window"), "resid_pdrop": 0.0, "embd_pdrop": 0.0}


_ALL = ("attn_q", "attn_k", "attn_v", "attn_output")
_GELU = ("hidden_activation", "gelu_pytorch_tanh")

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", "LlamaForCausalLM", interleaved=True, biases=_ALL, mlp_biases=True),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", biases=_ALL[:3]),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", head_norms=_HEAD_NORMS),
    "gemma": Architecture("gemma", "GemmaForCausalLM", norms_plus_one=True, activation=_GELU),
    "gemma2": Architecture(
        "gemma2", "Gemma2ForCausalLM", _GEMMA_NORMS, norms_plus_one=True, activation=_GELU, more=_gemma2
    ),
    "gemma3": Architecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        _GEMMA_NORMS,
        _HEAD_NORMS,
        norms_plus_one=True,
        activation=_GELU,
        more=_gemma3,
    ),
    "phi3": Architecture("phi3", "Phi3ForCausalLM", fused=True, more=_phi3),
}
"""By general.architecture."""
