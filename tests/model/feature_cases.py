"""Tiny random models of transformers, one for every feature of the decoder, and the same weights as our decoder.

Tensors of transformers' model are handed out under canonical names as views, so that what our decoder really uses, the
dequantised weights, can be written back into them: fused modules included.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor

from strop.kernels import nf4
from strop.kernels.qlora_linear import WeightBuffer
from strop.model.assemble import make_layer, make_norm
from strop.model.decoder import Decoder
from strop.model.head import Embedding, Head
from strop.model.spec import DecoderSpec, ExpertsSpec, RopeSpec

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,  # larger than usual, so that attention is far from uniform
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
POST_NORMS = {"attention_output_norm": "post_attention_layernorm", "mlp_output_norm": "post_feedforward_layernorm"}


@dataclass(frozen=True)
class Case:
    """A model of transformers and what it is in our words."""

    model: str
    config: dict[str, Any] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)
    # Canonical piece of a name → theirs; parts of fused modules: canonical → (theirs, first row, last row).
    names: dict[str, str] = field(default_factory=dict)
    fused: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    norm_offset: float = 0.0
    layers_path: str = "model.layers"

    def build(self) -> tuple[Any, Decoder]:
        """The model, and our decoder; both with the dequantised weights."""
        torch.manual_seed(11)
        kind = getattr(transformers, f"{self.model}TextConfig", None) or getattr(transformers, f"{self.model}Config")
        config = kind(**{**SIZES, **self.config})
        config._attn_implementation = "eager"
        model = getattr(transformers, f"{self.model}ForCausalLM")(config).float().eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias") or "norm" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        return model, self.decoder(model)

    def decoder(self, model: Any) -> Decoder:
        """Our decoder of a model, which gets the dequantised weights."""
        spec = self.make_spec(model.config)
        buffer = WeightBuffer()

        def read(name: str) -> Tensor:
            if self.model == "Mpt" and name.endswith("bias"):  # its layer norms have none
                return torch.zeros(spec.hidden)
            tensor = self.tensor(model, name).detach().clone()
            return tensor + self.norm_offset if "norm" in name else tensor

        def read_nf4(name: str) -> nf4.NF4Tensor:
            view = self.tensor(model, name)
            quantized = nf4.quantize(view.detach().contiguous())
            with torch.no_grad():
                view.copy_(nf4.dequantize(quantized))
            return quantized

        layers = [make_layer(index, spec, read, read_nf4, buffer) for index in range(spec.layers)]
        embedding = Embedding(read("model.embed_tokens.weight"))
        head_VD = embedding.weight_VD if spec.tied_head else read("lm_head.weight")
        bias_V = read("lm_head.bias") if spec.head_bias else None
        head = Head(head_VD, torch.float32, torch.float32, bias_V, spec.logit_scale, spec.head_softcap)
        return Decoder(spec, embedding, head, make_norm("model.norm", spec, read), layers, torch.float32, buffer)

    def make_spec(self, config: Any) -> DecoderSpec:
        values = {
            "family": self.model,
            "vocabulary": config.vocab_size,
            "hidden": config.hidden_size,
            "intermediate": config.intermediate_size,
            "layers": config.num_hidden_layers,
            "heads": config.num_attention_heads,
            "kv_heads": config.num_key_value_heads,
            "head_size": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            "norm_eps": getattr(config, "rms_norm_eps", None) or 1e-5,
            "rope": RopeSpec(),
            "tied_head": config.tie_word_embeddings,
            "context": config.max_position_embeddings,
        }
        return DecoderSpec(**{**values, **self.spec})

    def tensor(self, model: Any, name: str, gradient: bool = False) -> Tensor:
        """A view of a parameter, or of its gradient, by canonical name."""
        rows = slice(None)
        if ".experts." in name:
            return self._expert(model, name)
        for part, (theirs, first, last) in self.fused.items():
            if f".{part}." in name:
                name, rows = name.replace(f".{part}.", f".{theirs}."), slice(first, last)
                name = name.replace("model.layers", self.layers_path)
                break
        else:
            name = self.their_name(name)
        parameter = model.get_parameter(name)
        return (parameter.grad if gradient else parameter)[rows]

    def _expert(self, model: Any, name: str) -> Tensor:
        """transformers keeps the experts of a layer in two tensors."""
        block, expert, projection = name.removesuffix(".weight").rsplit(".", 2)
        if projection == "down_proj":
            return model.get_parameter(f"{block}.down_proj")[int(expert)]
        both = model.get_parameter(f"{block}.gate_up_proj")[int(expert)]
        return both[: len(both) // 2] if projection == "gate_proj" else both[len(both) // 2 :]

    def their_name(self, name: str) -> str:
        for ours, theirs in self.names.items():
            if ours.startswith("=") and name.startswith(ours[1:]):
                return theirs + name[len(ours) - 1 :]
            if f".{ours}." in name:
                return name.replace(f".{ours}.", f".{theirs}.").replace("model.layers", self.layers_path)
        return name


def rope(kind: str, **values: Any) -> dict[str, Any]:
    """A kind of rotary embedding in transformers' words."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


GEMMA = {"head_dim": 16, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True}
GEMMA_SPEC = {"activation": "gelu_tanh", "embedding_scale": 8.0}
PRE_FEEDFORWARD = {**POST_NORMS, "post_attention_layernorm": "pre_feedforward_layernorm"}
GLM_FUSED = {"gate_proj": ("gate_up_proj", 0, 96), "up_proj": ("gate_up_proj", 96, 192)}
NEIGHBOURS = RopeSpec(rotary_size=8, interleaved=True)
LAYER_NORMS = {"norm": "layer", "gated_mlp": False, "activation": "gelu_tanh"}
LONG = [1.0 + 0.5 * index for index in range(8)]

CASES: dict[str, Case] = {
    "qwen2": Case("Qwen2", {"rms_norm_eps": 1e-6}, {"attention_input_bias": True}),
    "qwen3": Case("Qwen3", {"head_dim": 32, "rms_norm_eps": 1e-6}, {"qk_norm": "head"}),
    "mistral window": Case("Mistral", {"sliding_window": 7}, {"windows": (7, 7, 7)}),
    "gemma": Case("Gemma", {**GEMMA, "hidden_act": "gelu_pytorch_tanh"}, GEMMA_SPEC, norm_offset=1.0),
    "gemma2": Case(
        "Gemma2",
        {**GEMMA, "sliding_window": 6, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 3.0}
        | {"final_logit_softcapping": 2.0},
        {**GEMMA_SPEC, "norm_placement": "both", "windows": (6, 0, 6), "attention_scale": 24**-0.5}
        | {"attention_softcap": 3.0, "head_softcap": 2.0},
        PRE_FEEDFORWARD,
        norm_offset=1.0,
    ),
    "gemma3": Case(
        "Gemma3",
        {
            **GEMMA,
            "sliding_window": 6,
            "query_pre_attn_scalar": 24,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        }
        | {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
            }
        },
        {**GEMMA_SPEC, "norm_placement": "both", "windows": (6, 0, 6), "attention_scale": 24**-0.5}
        | {"qk_norm": "head", "rope": RopeSpec(kind="linear", factor=4.0), "rope_local": RopeSpec(theta=100.0)},
        PRE_FEEDFORWARD,
        norm_offset=1.0,
    ),
    "glm": Case(
        "Glm",
        {"head_dim": 16, "attention_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
        | {"partial_rotary_factor": 0.5},
        {"rope": NEIGHBOURS, "attention_input_bias": True},
        fused=GLM_FUSED,
    ),
    "glm4": Case(
        "Glm4",
        {"head_dim": 16, "attention_bias": True, "partial_rotary_factor": 0.5},
        {"rope": NEIGHBOURS, "attention_input_bias": True, "norm_placement": "both"},
        {"attention_output_norm": "post_self_attn_layernorm", "mlp_output_norm": "post_mlp_layernorm"},
        fused=GLM_FUSED,
    ),
    "phi": Case(
        "Phi",
        {"partial_rotary_factor": 0.5, "hidden_act": "gelu_new"},
        {**LAYER_NORMS, "norm_placement": "parallel", "attention_input_bias": True, "attention_output_bias": True}
        | {"mlp_bias": True, "head_bias": True, "rope": RopeSpec(rotary_size=8)},
        {"o_proj": "dense", "up_proj": "fc1", "down_proj": "fc2", "=model.norm": "model.final_layernorm"},
    ),
    "phi3": Case(
        "Phi3",
        {"sliding_window": None},
        fused={
            "q_proj": ("qkv_proj", 0, 64),
            "k_proj": ("qkv_proj", 64, 96),
            "v_proj": ("qkv_proj", 96, 128),
            **GLM_FUSED,
        },
    ),
    "starcoder2": Case(
        "Starcoder2",
        {"use_bias": True, "sliding_window": None, "hidden_act": "gelu_pytorch_tanh"},
        {**LAYER_NORMS, "attention_input_bias": True, "attention_output_bias": True, "mlp_bias": True},
        {"up_proj": "c_fc", "down_proj": "c_proj"},
    ),
    "olmo2": Case("Olmo2", {}, {"norm_placement": "post", "qk_norm": "full"}, POST_NORMS),
    "granite": Case(
        "Granite",
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 2.0, "attention_multiplier": 0.1},
        {"embedding_scale": 3.0, "residual_scale": 0.4, "logit_scale": 0.5, "attention_scale": 0.1},
    ),
    "smollm3": Case(
        "SmolLM3",
        {"no_rope_layers": [1, 0, 1], "use_sliding_window": False},
        {"rope_layers": (True, False, True), "rope": RopeSpec(theta=2000000.0)},
    ),
    "mixtral": Case(
        "Mixtral",
        {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None},
        {"experts": ExpertsSpec(5, 2, 96), "rope": RopeSpec(theta=1e6)},
    ),
    "qwen3 moe": Case(
        "Qwen3Moe",
        {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "norm_topk_prob": False}
        | {"head_dim": 16, "decoder_sparse_step": 1, "mlp_only_layers": []},
        {"qk_norm": "head", "experts": ExpertsSpec(6, 3, 32, normalise_weights=False)},
    ),
    "qwen3 moe some layers": Case(
        "Qwen3Moe",
        {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "norm_topk_prob": True}
        | {"head_dim": 16, "decoder_sparse_step": 1, "mlp_only_layers": [1]},
        {"qk_norm": "head", "experts": ExpertsSpec(6, 3, 32, layers=(True, False, True))},
    ),
    "mpt": Case(
        "Mpt",
        {"d_model": 64, "n_heads": 4, "n_layers": 3, "expansion_ratio": 2, "max_seq_len": 128}
        | {"tie_word_embeddings": True},
        {"norm": "layer", "gated_mlp": False, "activation": "gelu", "alibi": True, "intermediate": 256}
        | {"kv_heads": 4},
        {"self_attn.o_proj": "attn.out_proj", "mlp.up_proj": "ffn.up_proj", "mlp.down_proj": "ffn.down_proj"}
        | {"input_layernorm": "norm_1", "post_attention_layernorm": "norm_2"}
        | {"=model.norm": "transformer.norm_f", "=model.embed_tokens": "transformer.wte"},
        {f"self_attn.{name}_proj": ("attn.Wqkv", 64 * place, 64 * (place + 1)) for place, name in enumerate("qkv")},
        layers_path="transformer.blocks",
    ),
    "rope yarn": Case(
        "Llama",
        rope("yarn", factor=4.0, original_max_position_embeddings=32, attention_factor=1.2),
        {"rope": RopeSpec(kind="yarn", factor=4.0, original_context=32, attention_factor=1.2)},
    ),
    "rope dynamic": Case(
        "Llama",
        {**rope("dynamic", factor=4.0), "max_position_embeddings": 20},
        {"rope": RopeSpec(kind="dynamic", factor=4.0, original_context=20)},
    ),
    "rope longrope": Case(
        "Llama",
        rope(
            "longrope",
            factor=4.0,
            original_max_position_embeddings=20,
            attention_factor=1.1,
            short_factor=LONG,
            long_factor=[3 * value for value in LONG],
        ),
        {
            "rope": RopeSpec(
                kind="longrope",
                original_context=20,
                attention_factor=1.1,
                short_factors=tuple(LONG),
                long_factors=tuple(3 * value for value in LONG),
            )
        },
    ),
}
