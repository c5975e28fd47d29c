"""What a decoder is: one dataclass that a family's config.json is read into, and that the one decoder is built from.

A family (`strop.model.families`) is a table from its config.json and tensor names to this spec; the decoder never
asks which family it is. Every field's default is Llama's, and nothing is validated here: families refuse what they do
not know, and `strop.model.support` what is not computed.

Names of weights are canonical: Hugging Face's names for Llama, whatever the family's own files and modules are called.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

# The projections of a layer, in the groups that share an input. The names are Hugging Face's and PEFT's.
ATTENTION_INPUTS = ("q_proj", "k_proj", "v_proj")
ATTENTION_OUTPUT = ("o_proj",)
MLP_INPUTS = ("gate_proj", "up_proj")
MLP_OUTPUT = ("down_proj",)
GROUPS = (ATTENTION_INPUTS, ATTENTION_OUTPUT, MLP_INPUTS, MLP_OUTPUT)
PROJECTIONS = tuple(name for group in GROUPS for name in group)

# The norms of a layer. The first two have Llama's names and places: before attention, and before the MLP.
ATTENTION_NORM = "input_layernorm"
MLP_NORM = "post_attention_layernorm"
ATTENTION_OUTPUT_NORM = "attention_output_norm"
MLP_OUTPUT_NORM = "mlp_output_norm"
QUERY_NORM, KEY_NORM = "self_attn.q_norm", "self_attn.k_norm"

Rows = tuple[tuple[int, int], ...]
"""Rows of a matrix, as ranges [start, end) in the order in which they are taken."""


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding: base, what is rotated, and how long contexts are reached.

    Attributes:
        theta: base of the frequencies.
        kind: "default"; "linear" (positions divided by factor); "llama3" (low frequencies divided by factor);
            "dynamic" (theta grows with a sample that is longer than original_context); "yarn"; "longrope".
        factor: stretch of the context.
        low_freq_factor: llama3 only: wavelengths above original_context / low_freq_factor are stretched fully.
        high_freq_factor: llama3 only: wavelengths below original_context / high_freq_factor are left alone.
        original_context: the context before the stretch, in tokens; all kinds but default and linear.
        rotary_size: leading numbers of each head that are rotated, even; None for all.
        interleaved: pairs are neighbours (2i, 2i + 1), not (i, i + rotary_size / 2).
        attention_factor: multiplies cosines and sines: yarn and longrope.
        beta_fast: yarn only: rotations within original_context above which a frequency is left alone.
        beta_slow: yarn only: rotations below which it is stretched fully.
        short_factors: longrope only: divisors of the frequencies [rotary_size / 2], within original_context.
        long_factors: longrope only: the same for longer samples.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    rotary_size: int | None = None
    interleaved: bool = False
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ExpertsSpec:
    """A mixture of experts in the place of the MLP (Mixtral, Qwen3-MoE).

    The router is softmax over all experts, the ``active`` largest of which are used; its weight is never quantised.

    Attributes:
        count: experts of a layer.
        active: experts that a token goes through.
        intermediate: width of an expert.
        normalise_weights: whether the weights of the active experts are made to sum to 1.
        layers: whether each layer has experts; None where all have. The others have the plain MLP.
    """

    count: int
    active: int
    intermediate: int
    normalise_weights: bool = True
    layers: tuple[bool, ...] | None = None


@dataclass(frozen=True, slots=True)
class Module:
    """A linear module of the family's tree in transformers (or in its own code), where that is not Llama's.

    Adapters are named by it on disk. A module of several projections is fused: its rows are theirs.

    Attributes:
        path: within a layer: ``self_attn.qkv_proj``, ``attention.wqkv``.
        parts: the projections whose rows it has, in order.
        by_group: rows are interleaved by key-value head (InternLM 2, CodeGen-like): for each of them the rows of its
            query heads, its key and its value; else one projection lies below the other.
    """

    path: str
    parts: tuple[str, ...]
    by_group: bool = False


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
        norm_eps: epsilon of the norms.
        rope: rotary position embedding.
        tied_head: the head is the embedding.
        context: longest sequence the model was made for, in tokens.
        norm: "rms", or "layer" (with biases). Norms of q and k are always "rms".
        norm_placement: "pre": before attention and before the MLP; "post": on what each of them gives (OLMo 2); "both"
            (Gemma 2, GLM-4-0414); "parallel": one norm, whose result goes into attention and the MLP side by side
            (Phi-2).
        qk_norm: "" for none; "head": over each head of q and k, before rotation (Qwen 3, Gemma 3); "full": over all
            heads together (OLMo 2).
        attention_input_bias: biases on q, k and v.
        attention_output_bias: a bias on o.
        mlp_bias: biases on gate, up and down.
        head_bias: a bias on the head.
        gated_mlp: down(activation(gate) · up); else down(activation(up)), without gate_proj.
        activation: "silu", "gelu" or "gelu_tanh".
        rope_local: rotary embedding of the layers with a window, where it is another (Gemma 3).
        rope_layers: whether each layer rotates; None where all do (SmolLM 3 has some that do not).
        alibi: instead of rotation, scores fall with distance (Baichuan-13B).
        windows: for each layer how many tokens a token sees, itself included; 0 for all. None where all see all.
        attention_scale: factor of q · k; None for head_size ** -0.5.
        attention_softcap: scores become cap · tanh(score / cap); None for no cap.
        head_softcap: the same for the logits.
        embedding_scale: factor of the embedding's rows.
        residual_scale: factor of what attention and the MLP add to the residual stream (Granite, MiniCPM).
        logit_scale: factor of the logits.
        experts: experts instead of the MLP.
        layers_path: where the layers are in the family's tree of modules.
        modules: linear modules of a layer in that tree; empty where they are named and cut as Llama's are.
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
    tied_head: bool
    context: int
    norm: str = "rms"
    norm_placement: str = "pre"
    qk_norm: str = ""
    attention_input_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    gated_mlp: bool = True
    activation: str = "silu"
    rope_local: RopeSpec | None = None
    rope_layers: tuple[bool, ...] | None = None
    alibi: bool = False
    windows: tuple[int, ...] | None = None
    attention_scale: float | None = None
    attention_softcap: float | None = None
    head_softcap: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    experts: ExpertsSpec | None = None
    layers_path: str = "model.layers"
    modules: tuple[Module, ...] = ()

    def has_experts(self, layer: int) -> bool:
        """Whether a layer has experts in the place of the MLP."""
        return self.experts is not None and (self.experts.layers is None or self.experts.layers[layer])

    def has_scores(self, layer: int) -> bool:
        """Whether a layer's attention has scores of its own where a document is long: caps, a window, ALiBi."""
        window = self.windows[layer] if self.windows else 0
        return self.alibi or self.attention_softcap is not None or window > 0

    @property
    def expert_layers(self) -> int:
        """How many layers have experts."""
        return sum(map(self.has_experts, range(self.layers)))

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The projections of a layer, in groups that share an input; the MLP's where any layer has one."""
        if self.expert_layers == self.layers:
            return ATTENTION_INPUTS, ATTENTION_OUTPUT
        return GROUPS if self.gated_mlp else (ATTENTION_INPUTS, ATTENTION_OUTPUT, ("up_proj",), MLP_OUTPUT)

    def groups_of(self, layer: int) -> tuple[tuple[str, ...], ...]:
        """The groups that a layer has: attention's come first."""
        return self.groups[:2] if self.has_experts(layer) else self.groups

    @property
    def projections(self) -> tuple[str, ...]:
        """The projections, in order; those of experts left out."""
        return tuple(name for group in self.groups for name in group)

    @property
    def adaptable(self) -> tuple[str, ...]:
        """The projections that adapters can have.

        Attention's alone where any layer has experts: PEFT takes the names of an MLP's projections there for those of
        the experts, so that an adapter of the other layers' MLPs would be lost.
        """
        return self.projections if self.experts is None else ATTENTION_INPUTS + ATTENTION_OUTPUT

    def projections_of(self, layer: int) -> tuple[str, ...]:
        """The projections that a layer has."""
        return tuple(name for group in self.groups_of(layer) for name in group)

    @property
    def norms(self) -> dict[str, int]:
        """The norms of a layer and their widths; a tensor is ``model.layers.3.<name>.weight``, layer norms' biases
        alike."""
        names = {
            "pre": (ATTENTION_NORM, MLP_NORM),
            "post": (ATTENTION_OUTPUT_NORM, MLP_OUTPUT_NORM),
            "both": (ATTENTION_NORM, ATTENTION_OUTPUT_NORM, MLP_NORM, MLP_OUTPUT_NORM),
            "parallel": (ATTENTION_NORM,),
        }[self.norm_placement]
        widths = dict.fromkeys(names, self.hidden)
        if self.qk_norm:
            heads, kv_heads = (self.heads, self.kv_heads) if self.qk_norm == "full" else (1, 1)
            widths |= {QUERY_NORM: heads * self.head_size, KEY_NORM: kv_heads * self.head_size}
        return widths

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
        if name in ATTENTION_INPUTS:
            return self.attention_input_bias
        return self.attention_output_bias if name in ATTENTION_OUTPUT else self.mlp_bias

    def adapted(self, targets: Sequence[str]) -> Iterator[tuple[str, int, int]]:
        """(canonical path, outputs, inputs) of every projection that ``targets`` name, in the layers that have it."""
        for layer in range(self.layers):
            here = self.projections_of(layer)
            for name in targets:
                if name in here:
                    yield module_path(layer, name), *self.projection_shape(name)

    def weights_below(self, layer: int) -> int:
        """Weights of the projections of the layers below one; experts left out."""
        sizes = {name: prod(self.projection_shape(name)) for name in self.projections}
        return sum(sizes[name] for index in range(layer) for name in self.projections_of(index))

    @property
    def linear_weights(self) -> int:
        """Weights of all projections of all layers; experts left out."""
        return self.weights_below(self.layers)

    @property
    def expert_shapes(self) -> tuple[tuple[int, int], ...]:
        """(outputs, inputs) of an expert's gate, up and down; empty without experts."""
        if self.experts is None:
            return ()
        wide = (self.experts.intermediate, self.hidden)
        return wide, wide, (self.hidden, self.experts.intermediate)

    def quantised_shapes(self, layer: int) -> list[tuple[int, int]]:
        """(outputs, inputs) of every matrix of a layer that lies in NF4: its projections', then its experts'."""
        shapes = [self.projection_shape(name) for name in self.projections_of(layer)]
        if self.experts is not None and self.has_experts(layer):
            shapes += [shape for _ in range(self.experts.count) for shape in self.expert_shapes]
        return shapes

    @property
    def products(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of every product with frozen weights: of the groups, then an expert's two."""
        groups = [[self.projection_shape(name) for name in names] for names in self.groups]
        if self.experts is not None:
            gate, up, down = self.expert_shapes
            groups += [[gate, up], [down]]
        return tuple((shapes[0][1], sum(outputs for outputs, _ in shapes)) for shapes in groups)

    def activated(self, layer: int) -> int:
        """Numbers that a token's activations have in a layer."""
        experts = self.experts if self.has_experts(layer) else None
        return experts.active * experts.intermediate if experts else self.intermediate

    @property
    def expert_weights(self) -> int:
        """Weights of all experts of all layers, in NF4 as projections are; routers left out."""
        count = self.experts.count if self.experts else 0
        return self.expert_layers * count * sum(rows * columns for rows, columns in self.expert_shapes)

    @property
    def router_weights(self) -> int:
        """Weights of all routers, float32."""
        return self.expert_layers * self.experts.count * self.hidden if self.experts else 0

    @property
    def norm_weights(self) -> int:
        """Numbers of all norms, layer norms' biases included."""
        layer = sum(self.norms.values()) + (sum(self.hidden for name in self.norms if "." not in name)) * self._biased
        return self.layers * layer + self.hidden * (1 + self._biased)

    @property
    def parameters(self) -> int:
        """All weights, the embedding counted once where the head is tied; biases of projections left out."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied_head else 2)
        return self.linear_weights + self.expert_weights + self.router_weights + embeddings + self.norm_weights

    @property
    def _biased(self) -> int:
        return int(self.norm == "layer")


def module_path(layer: int, name: str) -> str:
    """The canonical path of a projection: ``model.layers.3.self_attn.q_proj``."""
    block = "self_attn" if name in ATTENTION_INPUTS + ATTENTION_OUTPUT else "mlp"
    return f"model.layers.{layer}.{block}.{name}"


def rows_of(spec: DecoderSpec, module: Module, part: str) -> Rows:
    """The rows of a projection in a fused module.

    One below the other, q k v of 4, 2 and 2 rows:   q 0-4 · k 4-6 · v 6-8
    By group, two key heads of size 1:               q 0-2, 4-6 · k 2-3, 6-7 · v 3-4, 7-8
    """
    sizes = {name: spec.projection_shape(name)[0] for name in module.parts}
    groups = spec.kv_heads if module.by_group else 1
    before = 0
    for name in module.parts:
        if name == part:
            break
        before += sizes[name] // groups
    step, own = sum(sizes.values()) // groups, sizes[part] // groups
    return tuple((group * step + before, group * step + before + own) for group in range(groups))
