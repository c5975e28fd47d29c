"""Write tiny GGUF files for tests, with the `gguf` library's writer.

The default is a random llama with 2 layers, hidden size 32, 4 query and 2 key heads of size 8, and a byte-level
tokenizer of 3 control tokens, 256 bytes, 4 merges and 1 user-defined token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from tokenizers.pre_tokenizers import ByteLevel

HIDDEN, FEED_FORWARD, LAYERS, HEADS, KEY_HEADS, HEAD_SIZE = 32, 64, 2, 4, 2, 8

CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
BYTES = sorted(ByteLevel.alphabet())
MERGES = ["h e", "Ġ t", "Ġt he", "1 2"]
MERGED = ["he", "Ġt", "Ġthe", "12"]
TOKENS = [*CONTROLS, *BYTES, *MERGED, "<note>"]
VOCABULARY = len(TOKENS)
CHAT_TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"

METADATA: dict[str, Any] = {
    "llama.block_count": LAYERS,
    "llama.context_length": 128,
    "llama.embedding_length": HIDDEN,
    "llama.feed_forward_length": FEED_FORWARD,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KEY_HEADS,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 10000.0,
    "llama.rope.dimension_count": HEAD_SIZE,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3] * 3 + [1] * (256 + len(MERGED)) + [4],
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.padding_token_id": 2,
    "tokenizer.chat_template": CHAT_TEMPLATE,
}

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def gguf_name(name: str) -> str:
    """A model-folder tensor name in GGUF's words."""
    top = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in top or name == "lm_head.weight":
        return top.get(name, "output.weight")
    _, _, layer, rest = name.split(".", 3)
    stem, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{next(short for short, long in LAYER_NAMES.items() if long == stem)}.{kind}"


def llama_cpp_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's row order of a query or key projection, row by row: 0, d/2, 1, d/2 + 1, … within each head."""
    size = len(weight) // heads
    order = [
        head * size + half * size // 2 + pair for head in range(heads) for pair in range(size // 2) for half in (0, 1)
    ]
    return weight[order]


def random_weights(seed: int = 0, *, tied: bool = True, bias: bool = False) -> dict[str, np.ndarray]:
    """Weights by model-folder name, float32."""
    random = np.random.default_rng(seed)
    H, F, Q, K = HIDDEN, FEED_FORWARD, HEADS * HEAD_SIZE, KEY_HEADS * HEAD_SIZE
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, H), "model.norm.weight": (H,)}
    for layer in range(LAYERS):
        place = f"model.layers.{layer}."
        shapes |= {f"{place}input_layernorm.weight": (H,), f"{place}post_attention_layernorm.weight": (H,)}
        for name, shape in {
            "self_attn.q_proj": (Q, H),
            "self_attn.k_proj": (K, H),
            "self_attn.v_proj": (K, H),
            "self_attn.o_proj": (H, Q),
            "mlp.gate_proj": (F, H),
            "mlp.up_proj": (F, H),
            "mlp.down_proj": (H, F),
        }.items():
            shapes[f"{place}{name}.weight"] = shape
            if bias:
                shapes[f"{place}{name}.bias"] = shape[:1]
    if not tied:
        shapes["lm_head.weight"] = (VOCABULARY, H)
    return {name: (random.standard_normal(shape) * 0.3).astype(np.float32) for name, shape in shapes.items()}


def write_tiny_gguf(
    path: Path,
    weights: dict[str, np.ndarray] | None = None,
    *,
    architecture: str = "llama",
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    extra_tensors: dict[str, np.ndarray] | None = None,
    extra_kind: GGMLQuantizationType | None = None,
    **metadata: Any,
) -> Path:
    """Write a file; `metadata` changes values (dots as ``__``), None leaves a key out.

    Args:
        path: where.
        weights: by model-folder name, default `random_weights`; None values leave a tensor out.
        architecture: general.architecture.
        kind: quantisation of the matrices; vectors stay float32.
        extra_tensors: further tensors, by GGUF name, as they are.
        extra_kind: what their bytes are, where they are quantised.
        metadata: see above.
    """
    writer = GGUFWriter(path, architecture)
    for key, value in (METADATA | {name.replace("__", "."): value for name, value in metadata.items()}).items():
        _add(writer, key, value)
    for name, weight in (random_weights() if weights is None else weights).items():
        heads = {"q_proj": HEADS, "k_proj": KEY_HEADS}.get(name.split(".")[-2])
        stored = llama_cpp_rows(weight, heads) if heads else weight
        if weight.ndim == 2:
            writer.add_tensor(gguf_name(name), quantize(stored, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), stored)
    for name, weight in (extra_tensors or {}).items():
        writer.add_tensor(name, weight, raw_dtype=extra_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)
