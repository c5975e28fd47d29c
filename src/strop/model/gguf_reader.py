"""Read a GGUF file as if it were a standard model folder.

    metadata  llama.block_count, llama.rope.freq_base …  ─▶ config            (config.json's fields)
    metadata  tokenizer.ggml.tokens, merges, pre …       ─▶ tokenizer_json, tokenizer_config
    tensors   blk.0.attn_q.weight, Q4_1 blocks           ─▶ tensor("model.layers.0.self_attn.q_proj.weight"), float32

Weights are quantised: the `gguf` library's `dequantize` defines their values. What else differs from a model folder is
the architecture's (`strop.model.gguf_architectures`). In llama's files the rows of the query and key projections are
reordered: llama.cpp rotates neighbouring numbers (0, 1), (2, 3) …, the published models rotate (0, d/2), (1, d/2 + 1)
…, so its converter interleaves the two halves of every head; `undo_rope_permutation` puts them back.

Shapes: H hidden size, F feed-forward size, V vocabulary, N query heads, K key and value heads, d head size.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from gguf.gguf_reader import ReaderTensor
from gguf.quants import dequantize

from strop.model.gguf_architectures import ARCHITECTURES, Sizes
from strop.model.gguf_file import GGUFFile
from strop.model.gguf_tokenizer import TokenizerSource, read_tokenizer

Array = npt.NDArray[np.float32]
Shapes = dict[str, tuple[int, ...]]

# The names of a layer's tensors: GGUF's behind "blk.<n>.", the model folder's behind "model.layers.<n>.".
_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_FEED_FORWARD = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_FUSED = {"attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj"}
_FUSED_FEED_FORWARD = {"ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj"}

# Metadata with which llama.cpp computes something else than the plain decoder; 0 and 1 mean "not used".
_OTHER_MATHS = ("expert_count", "attention.scale", "logit_scale", "residual_scale", "embedding_scale")

# Llama 3.1 and its successors: rotary wavelengths above 8192 / 1 are stretched, those below 8192 / 4 are not.
_LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


class GGUFModel:
    """A model in a GGUF file, under the names of a standard model folder.

    Everything but the weights is read and checked at once; weights are read one tensor at a time.

    Args:
        path: the ``.gguf`` file.

    Attributes:
        path: the file.
        config: the fields of ``config.json``.
        eos_token_ids: the tokens that end an answer, the main one first.
        tokenizer_json: the content of ``tokenizer.json``.
        tokenizer_config: the content of ``tokenizer_config.json``, chat template included.
        chat_template: the chat template (Jinja), or None.

    Raises:
        ModelError: the file is missing, damaged, or of a kind that is not supported (another architecture, another
            tokenizer, a quantisation without a dequantiser, tensors that do not fit the metadata).
    """

    def __init__(self, path: str | Path) -> None:
        self._file = GGUFFile(path)
        self.path = self._file.path
        self._tensors = self._file.tensors
        architecture = self._file.value("general.architecture", str)
        if architecture not in ARCHITECTURES:
            self._file.refuse(
                "its architecture is not supported",
                expected=" or ".join(ARCHITECTURES),
                found=architecture,
                do="use a model folder",
            )
        self._name, self._architecture = architecture, ARCHITECTURES[architecture]
        self._read_dimensions()
        self._sources, self._shapes = self._match_tensors()
        self._check_quantisation()
        tokenizer: TokenizerSource = read_tokenizer(self._file, vocabulary=self._vocabulary, context=self._context)
        self.tokenizer_json = tokenizer.tokenizer_json
        self.tokenizer_config = tokenizer.tokenizer_config
        self.chat_template = tokenizer.chat_template
        self.eos_token_ids = tokenizer.eos_token_ids
        self.config = self._config(tokenizer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; `tensor` fails from now on."""
        self._tensors = {}
        self._sources = {}
        self._file.close()

    def tensor_shapes(self) -> Shapes:
        """The shape of every tensor by its model-folder name, in the order of the layers."""
        return dict(self._shapes)

    def tensor(self, name: str) -> Array:
        """One tensor, dequantised, as the published model has it.

        Args:
            name: a name from `tensor_shapes`.

        Returns:
            A float32 array of the shape that `tensor_shapes` gives, with memory of its own.

        Raises:
            KeyError: no tensor has that name, or the file was closed.
        """
        source = self._sources[name]
        # dequantize hands a float32 tensor out as a view of the file, and everything else as new memory.
        weight: Array = np.asarray(dequantize(source.data, source.tensor_type), dtype=np.float32)
        if np.may_share_memory(weight, source.data):
            weight = weight.copy()
        if self._architecture.interleaved and ".q_proj." in name:
            return undo_rope_permutation(weight, self._heads)
        if self._architecture.interleaved and ".k_proj." in name:
            return undo_rope_permutation(weight, self._key_heads)
        if self._architecture.norms_plus_one and name.endswith("norm.weight"):
            return weight - np.float32(1)
        return weight

    def _read_dimensions(self) -> None:
        self._layers = self._positive("block_count")
        self._hidden = self._positive("embedding_length")
        self._feed_forward = self._positive("feed_forward_length")
        self._heads = self._positive("attention.head_count")
        self._key_heads = self._positive("attention.head_count_kv", self._heads)
        self._context = self._positive("context_length")
        self._head_size = self._positive("attention.key_length", self._hidden // self._heads or None)
        for key in ("attention.value_length", "rope.dimension_count"):
            if self._positive(key, self._head_size) != self._head_size:
                self._file.refuse(
                    f"{self._name}.{key} differs from the head size, which is not supported",
                    expected=str(self._head_size),
                    found=str(self._positive(key)),
                )
        if self._head_size % 2 or self._heads % self._key_heads:
            self._file.refuse(
                "its attention heads are impossible",
                expected="an even head size, and query heads a multiple of key heads",
                found=f"head size {self._head_size}, {self._heads} query heads, {self._key_heads} key heads",
            )
        for key in _OTHER_MATHS:
            if self._number_or_none(key) not in (None, 0.0, 1.0):
                self._file.refuse(f"{self._name}.{key} is not supported", expected="a plain decoder")

    def _positive(self, key: str, default: int | None = None) -> int:
        key = f"{self._name}.{key}"
        value = self._file.value(key, int, default)
        if value < 1:
            self._file.refuse(f"metadata {key} is impossible", expected="at least 1", found=str(value))
        return value

    def _match_tensors(self) -> tuple[dict[str, ReaderTensor], Shapes]:
        """Pair every tensor of the architecture with the file's, by name and shape; nothing may be left over."""
        if self._layers > len(self._tensors):  # so that a huge block_count costs nothing
            self._file.refuse("it has fewer tensors than layers", found=f"{len(self._tensors)} for {self._layers}")
        expected = self._expected_tensors()
        sources: dict[str, ReaderTensor] = {}
        shapes: Shapes = {}
        for gguf_name, (name, shape) in expected.items():
            if gguf_name not in self._tensors:
                self._file.refuse("a tensor is missing", expected=f"{gguf_name} of shape {list(shape)}")
            source = self._tensors[gguf_name]
            found = tuple(int(size) for size in reversed(source.shape))
            if found != shape:
                self._file.refuse(
                    f"tensor {gguf_name} does not fit the metadata", expected=f"{list(shape)}", found=f"{list(found)}"
                )
            sources[name], shapes[name] = source, shape
        extra = sorted(self._tensors.keys() - expected.keys() - {"rope_freqs.weight"})
        if extra:
            self._file.refuse(
                f"it has tensors that a plain {self._name} decoder does not have", found=", ".join(extra[:5])
            )
        return sources, shapes

    def _expected_tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """GGUF name → (model-folder name, shape) of every tensor this model must have."""
        embedding = self._tensors.get("token_embd.weight")
        if embedding is None or len(embedding.shape) != 2:
            self._file.refuse("a tensor is missing", expected="token_embd.weight, a matrix")
        H, F, V = self._hidden, self._feed_forward, int(embedding.shape[1])
        queries, keys = self._heads * self._head_size, self._key_heads * self._head_size
        self._vocabulary = V
        kind = self._architecture
        self._attention_bias = bool(kind.biases) and f"blk.0.{kind.biases[0]}.bias" in self._tensors
        self._feed_forward_bias = kind.mlp_biases and "blk.0.ffn_gate.bias" in self._tensors
        attention, feed_forward = (_FUSED, _FUSED_FEED_FORWARD) if kind.fused else (_ATTENTION, _FEED_FORWARD)
        rows = {"attn_q": queries, "attn_k": keys, "attn_v": keys, "attn_qkv": queries + 2 * keys}
        matrices = {name: (rows[name], H) for name in rows} | {"attn_output": (H, queries), "ffn_gate": (F, H)}
        matrices |= {"ffn_up": (2 * F if kind.fused else F, H), "ffn_down": (H, F)}
        expected: dict[str, tuple[str, tuple[int, ...]]] = {"token_embd.weight": ("model.embed_tokens.weight", (V, H))}
        for layer in range(self._layers):
            source, target = f"blk.{layer}.", f"model.layers.{layer}."
            for gguf_name, name in kind.norms.items():
                expected[f"{source}{gguf_name}.weight"] = (f"{target}{name}.weight", (H,))
            for gguf_name, name in kind.head_norms.items():
                expected[f"{source}{gguf_name}.weight"] = (f"{target}{name}.weight", (self._head_size,))
            for gguf_name, name in (*attention.items(), *feed_forward.items()):
                shape = matrices[gguf_name]
                expected[f"{source}{gguf_name}.weight"] = (f"{target}{name}.weight", shape)
                if self._feed_forward_bias if name.startswith("mlp") else self._has_bias(gguf_name):
                    expected[f"{source}{gguf_name}.bias"] = (f"{target}{name}.bias", shape[:1])
        expected["output_norm.weight"] = ("model.norm.weight", (H,))
        if "output.weight" in self._tensors:
            expected["output.weight"] = ("lm_head.weight", (V, H))
        return expected

    def _has_bias(self, name: str) -> bool:
        return self._attention_bias and name in self._architecture.biases

    def _check_quantisation(self) -> None:
        """Dequantise one row of each kind of tensor, so that an unsupported kind fails before any work is done."""
        for kind, source in {source.tensor_type: source for source in self._sources.values()}.items():
            try:
                dequantize(source.data[:1], kind)
            except NotImplementedError:
                self._file.refuse("its quantisation is not supported", found=f"{kind.name} in {source.name}")

    def _config(self, tokenizer: TokenizerSource) -> dict[str, Any]:
        theta = self._number("rope.freq_base", 10000.0)
        scaling = self._rope_scaling(theta)
        kind = self._architecture
        function, activation = kind.activation
        sizes = Sizes(
            *(self._hidden, self._layers, self._heads, self._head_size),
            self._number_or_none,
            lambda key: self._positive(key) if self._file.has(f"{self._name}.{key}") else None,
        )
        config = {
            "architectures": [kind.class_name],
            "model_type": kind.model_type,
            "hidden_size": self._hidden,
            "intermediate_size": self._feed_forward,
            "num_hidden_layers": self._layers,
            "num_attention_heads": self._heads,
            "num_key_value_heads": self._key_heads,
            "head_dim": self._head_size,
            function: activation,
            "rms_norm_eps": self._number("attention.layer_norm_rms_epsilon"),
            "max_position_embeddings": self._context,
            "vocab_size": self._vocabulary,
            "tie_word_embeddings": "lm_head.weight" not in self._sources,
            # transformers 4 reads rope_theta and rope_scaling, transformers 5 rope_parameters.
            "rope_theta": theta,
            "rope_scaling": scaling,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_ids[0],
            "pad_token_id": tokenizer.pad_token_id,
            # What gguf_convert stores; transformers 4 reads the first name, transformers 5 the second.
            "torch_dtype": "float16",
            "dtype": "float16",
            **kind.more(sizes),
        }
        if kind.mlp_biases:
            config |= {"attention_bias": self._attention_bias, "mlp_bias": self._feed_forward_bias}
        if "rope_local_base_freq" not in config:  # with two ropes, the older keys say it all
            config["rope_parameters"] = {"rope_type": "default", **(scaling or {}), "rope_theta": theta}
        return config

    def _number(self, key: str, default: float | None = None) -> float:
        """A positive number, as its author wrote it: GGUF stores 1e-05 as the float32 9.99999974737875e-06."""
        key = f"{self._name}.{key}"
        value = float(str(np.float32(self._file.value(key, float, default))))
        if not (math.isfinite(value) and value > 0):
            self._file.refuse(f"metadata {key} is impossible", expected="a positive number", found=str(value))
        return value

    def _number_or_none(self, key: str) -> float | None:
        key = f"{self._name}.{key}"
        return float(str(np.float32(self._file.value(key, float)))) if self._file.has(key) else None

    def _rope_scaling(self, theta: float) -> dict[str, Any] | None:
        kind = self._file.value(f"{self._name}.rope.scaling.type", str, "none")
        factors = self._tensors.get("rope_freqs.weight")
        if kind == "linear" and factors is None:
            return {"rope_type": "linear", "factor": self._number("rope.scaling.factor")}
        if kind != "none":
            self._file.refuse("its rope scaling is not supported", expected="none, linear or Llama 3's", found=kind)
        if factors is None:
            return None
        stretch = np.asarray(dequantize(factors.data, factors.tensor_type), dtype=np.float64)
        factor = float(stretch.max(initial=0.0))
        if stretch.shape != (self._head_size // 2,) or not np.allclose(
            stretch, _llama3_stretch(factor, theta, self._head_size), rtol=1e-4
        ):
            self._file.refuse("its rope_freqs.weight is not supported", expected="Llama 3's rope scaling")
        return {"rope_type": "llama3", "factor": factor, **_LLAMA3_ROPE}


def undo_rope_permutation(weight: Array, heads: int) -> Array:
    """Put the rows of a query or key projection back into the published order.

    Within a head of 4, llama.cpp stores the rows 0, 1, 2, 3 as 0, 2, 1, 3: row i of the first half beside row i of the
    second. Seen as (pair, half) the stored order is (half, pair) transposed, and transposing again undoes it.

    Args:
        weight: N·d rows (a weight, or a bias of that length).
        heads: N, the number of heads in it.

    Returns:
        A new array of the same shape.
    """
    pairs = weight.shape[0] // heads // 2
    rest = weight.shape[1:]
    return weight.reshape(heads, pairs, 2, *rest).swapaxes(1, 2).reshape(weight.shape)


def _llama3_stretch(factor: float, theta: float, head_size: int) -> npt.NDArray[np.float64]:
    """By how much Llama 3.1 divides each of the d/2 rotary frequencies (Hugging Face's rope type "llama3").

    1 for short wavelengths, `factor` for long ones, and between them a blend that is linear in the frequency.
    """
    low, high = _LLAMA3_ROPE["low_freq_factor"], _LLAMA3_ROPE["high_freq_factor"]
    frequency = theta ** (-np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    turns = _LLAMA3_ROPE["original_max_position_embeddings"] * frequency / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return np.asarray(1.0 / ((1.0 - blend) / max(factor, 1.0) + blend))
