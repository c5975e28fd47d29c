"""Models with the sizes of real ones and random weights: what speed and memory are measured on where no weights are.

    Sizes ──random codes and scales, made on the device──▶ a folder in bitsandbytes' NF4 ──▶ any of the sides loads it

The weights are made in NF4 directly and never exist in full precision. They are written as a checkpoint that is
quantised already, a file a layer, so that every side loads the same bytes by its own loader: Strop, transformers, TRL
and Unsloth all read that format. InternLM-7B is written as the Llama that it is, with biases on q, k, v and o.

Random codes are no worse than real ones for time and memory. Their scales are such that activations keep a size that
float16 can hold: standard deviation of a weight about 0.02, as in a trained model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SCALE, SPREAD = 0.035, 0.005
"""Mean absmax of a block, and how far blocks lie apart."""

_DONE = "made.json"


@dataclass(frozen=True)
class Sizes:
    """The numbers that decide a decoder's time and memory."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    rope_theta: float = 10000.0
    bias: bool = False
    context: int = 8192

    @property
    def queries(self) -> int:
        """Outputs of q."""
        return self.hidden

    @property
    def keys(self) -> int:
        """Outputs of k, and of v."""
        return self.hidden // self.heads * self.kv_heads

    def shapes(self) -> dict[str, tuple[int, int]]:
        """The projections of a layer, [outputs, inputs]."""
        return {
            "self_attn.q_proj": (self.queries, self.hidden),
            "self_attn.k_proj": (self.keys, self.hidden),
            "self_attn.v_proj": (self.keys, self.hidden),
            "self_attn.o_proj": (self.hidden, self.queries),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    @property
    def linear_weights(self) -> int:
        """Weights of all projections."""
        return self.layers * sum(rows * columns for rows, columns in self.shapes().values())

    def config(self) -> dict[str, Any]:
        """config.json of the Llama with these sizes."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-5,
            "rope_theta": self.rope_theta,
            "hidden_act": "silu",
            "attention_bias": self.bias,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "bfloat16",
            "quantization_config": {
                "quant_method": "bitsandbytes",
                "load_in_4bit": True,
                "load_in_8bit": False,
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_use_double_quant": True,
                "bnb_4bit_compute_dtype": "bfloat16",
                "bnb_4bit_quant_storage": "uint8",
            },
        }

    def step_flops(self, lengths: Sequence[int], learned: int, adapter_weights: int) -> float:
        """Floating-point operations that a step asks for, with nothing computed twice.

        4 a weight of a projection and token (the base has no gradient), 7 · length · queries a layer and token for
        causal attention and its gradient, 6 a weight of the adapter, 4 a weight of the head and learned token.

        Args:
            lengths: tokens of each sample.
            learned: tokens with a loss.
            adapter_weights: numbers of the adapter.
        """
        tokens, pairs = float(sum(lengths)), float(sum(length * length for length in lengths))
        attention = 7.0 * pairs * self.queries * self.layers
        head = 4.0 * self.vocabulary * self.hidden * learned
        return tokens * (4.0 * self.linear_weights + 6.0 * adapter_weights) + attention + head


SIZES = {
    "internlm-7b": Sizes(103168, 4096, 11008, 32, 32, 32, bias=True),
    "llama3-8b": Sizes(128256, 4096, 14336, 32, 32, 8, rope_theta=500000.0),
    "small": Sizes(4096, 1024, 2816, 8, 16, 4),
    "tiny": Sizes(512, 128, 320, 2, 4, 2, bias=True, context=4096),
}


def made_model(place: Path, name: str, device: str = "cpu") -> Path:
    """The folder of a model of these sizes; made where it is not there yet.

    Args:
        place: where such folders lie.
        name: one of `SIZES`.
        device: where the numbers are drawn.
    """
    sizes, folder = SIZES[name], place / name
    done = folder / _DONE
    wanted = json.dumps(asdict(sizes))
    if done.is_file() and done.read_text(encoding="utf-8") == wanted:
        return folder
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    placed: dict[str, str] = {}
    for number, tensors in enumerate(_files(sizes, torch.Generator(device).manual_seed(3))):
        file = f"model-{number + 1:05}-of-{sizes.layers + 1:05}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(sizes.config()), encoding="utf-8")
    _write_tokenizer(folder, sizes.vocabulary)
    done.write_text(wanted, encoding="utf-8")
    return folder


def _files(sizes: Sizes, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
    """The tensors of each file: the layers', and then the ends'."""
    for layer in range(sizes.layers):
        tensors: dict[str, Tensor] = {}
        for name, shape in sizes.shapes().items():
            path = f"model.layers.{layer}.{name}"
            tensors |= quantized(f"{path}.weight", shape, generator)
            if sizes.bias and name.startswith("self_attn."):
                tensors[f"{path}.bias"] = normal((shape[0],), generator)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = torch.ones(sizes.hidden, dtype=torch.bfloat16)
        yield tensors
    shape = (sizes.vocabulary, sizes.hidden)
    yield {
        "model.embed_tokens.weight": normal(shape, generator),
        "model.norm.weight": torch.ones(sizes.hidden, dtype=torch.bfloat16),
        "lm_head.weight": normal(shape, generator),
    }


def quantized(name: str, shape: tuple[int, int], generator: torch.Generator) -> dict[str, Tensor]:
    """The parts of a random weight in bitsandbytes' NF4 with double quantisation."""
    from strop.kernels.nf4 import BLOCK, NESTED_BLOCK, dynamic8_code, nf4_code
    from strop.model.prequantized import STATE

    device, count = generator.device, shape[0] * shape[1]
    if count % BLOCK:
        raise ValueError(f"{name}: {count} weights are no whole blocks of {BLOCK}")
    blocks = count // BLOCK
    state = {
        "quant_type": "nf4",
        "blocksize": BLOCK,
        "dtype": "bfloat16",
        "shape": list(shape),
        "nested_blocksize": NESTED_BLOCK,
        "nested_dtype": "float32",
        "nested_offset": SCALE,
    }
    drawn = {"dtype": torch.uint8, "device": device, "generator": generator}
    return {
        name: torch.randint(0, 256, (count // 2, 1), **drawn).cpu(),
        f"{name}.absmax": torch.randint(0, 256, (blocks,), **drawn).cpu(),
        f"{name}.nested_absmax": torch.full((-(-blocks // NESTED_BLOCK),), SPREAD),
        f"{name}.quant_map": nf4_code().clone(),
        f"{name}.nested_quant_map": dynamic8_code().clone(),
        f"{name}{STATE}nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random numbers of standard deviation 0.02 in bfloat16."""
    return torch.randn(shape, dtype=torch.bfloat16, device=generator.device, generator=generator).mul_(0.02).cpu()


def _write_tokenizer(folder: Path, vocabulary: int) -> None:
    """A tokenizer that trainers can open: they want one, and are given tokens."""
    names = {0: "<unk>", 1: "<s>", 2: "</s>"}
    words = {names.get(number, f"w{number}"): number for number in range(min(vocabulary, 1024))}
    special = [
        {"id": number, "content": name, "special": True, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False}
        for number, name in names.items()
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>"}
    config |= {"eos_token": "</s>", "pad_token": "</s>", "model_max_length": 8192}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


if __name__ == "__main__":
    print(made_model(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
