"""What a decoder is: one dataclass that a family's config.json is read into, and that the one decoder is built from.

A family (`strop.model.families`) is a table from its config.json and tensor names to this spec; the decoder never
asks which family it is.
"""

from __future__ import annotations

from dataclasses import dataclass

# The projections of a layer, in the groups that share an input. The names are Hugging Face's and PEFT's.
ATTENTION_INPUTS = ("q_proj", "k_proj", "v_proj")
ATTENTION_OUTPUT = ("o_proj",)
MLP_INPUTS = ("gate_proj", "up_proj")
MLP_OUTPUT = ("down_proj",)
GROUPS = (ATTENTION_INPUTS, ATTENTION_OUTPUT, MLP_INPUTS, MLP_OUTPUT)
PROJECTIONS = tuple(name for group in GROUPS for name in group)


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding: base, and how long contexts are reached.

    Attributes:
        theta: base of the frequencies.
        kind: "default", "linear" (positions divided by factor) or "llama3" (low frequencies divided by factor).
        factor: stretch of the context.
        low_freq_factor: llama3 only: wavelengths above original_context / low_freq_factor are stretched fully.
        high_freq_factor: llama3 only: wavelengths below original_context / high_freq_factor are left alone.
        original_context: llama3 only: the context before the stretch, in tokens.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """Sizes and choices of a decoder.

    Attributes:
        family: name of the family, for people.
        vocabulary: rows of the embedding and the head.
        hidden: width of the residual stream.
        intermediate: width of the MLP.
        layers: number of layers.
        heads: query heads.
        kv_heads: key and value heads; divides heads.
        head_size: size of a head.
        norm_eps: epsilon of the RMS norms.
        rope: rotary position embedding.
        attention_bias: biases on q, k, v and o.
        mlp_bias: biases on gate, up and down.
        tied_head: the head is the embedding.
        context: longest sequence the model was made for, in tokens.
    """

    family: str
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    norm_eps: float
    rope: RopeSpec
    attention_bias: bool
    mlp_bias: bool
    tied_head: bool
    context: int

    def projection_shape(self, name: str) -> tuple[int, int]:
        """(outputs, inputs) of a projection."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        return {
            "q_proj": (queries, self.hidden),
            "k_proj": (keys, self.hidden),
            "v_proj": (keys, self.hidden),
            "o_proj": (self.hidden, queries),
            "gate_proj": (self.intermediate, self.hidden),
            "up_proj": (self.intermediate, self.hidden),
            "down_proj": (self.hidden, self.intermediate),
        }[name]

    def has_bias(self, name: str) -> bool:
        """Whether a projection has a bias."""
        return self.attention_bias if name in ATTENTION_INPUTS + ATTENTION_OUTPUT else self.mlp_bias

    @property
    def linear_weights(self) -> int:
        """Weights of all projections of all layers: what NF4 holds."""
        return self.layers * sum(rows * columns for rows, columns in map(self.projection_shape, PROJECTIONS))

    @property
    def parameters(self) -> int:
        """All weights, the embedding counted once where the head is tied; biases left out."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied_head else 2)
        return self.linear_weights + embeddings + (2 * self.layers + 1) * self.hidden


def module_path(layer: int, name: str) -> str:
    """The path of a projection in Hugging Face's tree: ``model.layers.3.self_attn.q_proj``."""
    block = "self_attn" if name in ATTENTION_INPUTS + ATTENTION_OUTPUT else "mlp"
    return f"model.layers.{layer}.{block}.{name}"
