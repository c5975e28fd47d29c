"""The decoder: one forward pass over packs of whole documents, for every family, described by a `DecoderSpec`.

    tokens_T ─▶ embedding ─▶ ┌ norm ─▶ q·k·v (one group) ─▶ rope ─▶ attention inside documents ─▶ o ─▶ + ┐ × layers
                             └ norm ─▶ gate·up (one group) ─▶ activation ─▶ down ─▶ + ────────────────────┘
             ─▶ norm of the learned rows ─▶ head and loss in chunks

A norm that a layer has not is left out; those on what attention and the MLP give come before the sums.

This is the reference, differentiated by autograd: plain, and what answers questions. Training runs through
`strop.model.engine`, which computes the same in memory laid out beforehand and is held to this file by tests.

Shapes: T tokens of the pack, N learned tokens, D hidden, H query heads, K key-value heads, E head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from strop.kernels.activation import unit
from strop.kernels.attention import Scoring, attention
from strop.kernels.attention_scores import alibi_slopes
from strop.kernels.cross_entropy import linear_cross_entropy
from strop.kernels.dropout import token_keys
from strop.kernels.qlora_linear import AdapterMemory, Dropout, FrozenGroup, WeightBuffer, project, qlora_linear
from strop.kernels.random import key
from strop.kernels.rope import rope
from strop.model.batch import Batch
from strop.model.experts_block import Experts
from strop.model.head import Embedding, Head
from strop.model.lora import Adapter
from strop.model.norms import Norm
from strop.model.rotary import Angles, Rotary
from strop.model.spec import (
    ATTENTION_NORM,
    ATTENTION_OUTPUT_NORM,
    KEY_NORM,
    MLP_NORM,
    MLP_OUTPUT_NORM,
    QUERY_NORM,
    DecoderSpec,
    module_path,
)
from strop.model.streamed_base import BaseStream

QKV, OUT, GATE_UP, DOWN = range(4)
"""The groups of a layer's projections, as `DecoderSpec.groups` has them."""


@dataclass(slots=True)
class Layer:
    """The frozen parts of a layer.

    Attributes:
        index: its number.
        norms: by canonical name.
        groups: the groups of projections that share an input.
        experts: in the place of the MLP's two groups; None where there is an MLP.
    """

    index: int
    norms: dict[str, Norm]
    groups: tuple[FrozenGroup, ...]
    experts: Experts | None = None


@dataclass(slots=True)
class Decoder:
    """A frozen base model; the adapter is handed in.

    Attributes:
        spec: what it is.
        embedding: rows by token.
        head: logits and losses.
        final_norm: last norm.
        layers: the layers.
        dtype: dtype of activations.
        buffer: memory that weights are dequantised into.
        loss_chunk: learned tokens whose logits exist at one time.
        stream: what brings the layers' weights from the machine's memory; None where they are on the device.
    """

    spec: DecoderSpec
    embedding: Embedding
    head: Head
    final_norm: Norm
    layers: list[Layer]
    dtype: torch.dtype
    buffer: WeightBuffer
    loss_chunk: int = 256
    stream: BaseStream | None = None
    rotary: Rotary = field(init=False)
    scoring: list[Scoring] = field(init=False)

    def __post_init__(self) -> None:
        spec = self.spec
        self.rotary = Rotary(spec, self.device)
        slopes_H = alibi_slopes(spec.heads).to(self.device) if spec.alibi else None
        windows = spec.windows or (0,) * spec.layers
        self.scoring = [Scoring(spec.attention_scale, spec.attention_softcap, window, slopes_H) for window in windows]

    @property
    def device(self) -> torch.device:
        """Where the base lies."""
        return self.final_norm.weight_D.device

    def keep_dense(self, layers: int) -> None:
        """Keeps dequantised copies of the first ``layers`` layers, and of no other: memory for time."""
        for layer in self.layers:
            for group in layer.groups:
                if layer.index < layers:
                    group.keep_dense(self.dtype)
                else:
                    group.dense_OI = None

    def keep_base(self, *, host: bool) -> None:
        """Keeps the layers' weights in the machine's memory, or on the device."""
        if host and self.stream is None:
            self.stream = BaseStream(self.device)
            for layer in self.layers:
                self.stream.add(layer)
            self.stream.finish(self.layers)
        elif not host and self.stream is not None:
            self.stream.give_back(self.layers)
            self.stream = None

    def keep_head(self, *, dense: bool) -> None:
        """Keeps the head in the compute dtype, or as the file has it: the same numbers, twice the memory or once."""
        self.head.weight_VD = self.head.weight_VD.to(self.dtype if dense else self.head.stored)
        if self.spec.tied_head:
            self.embedding.weight_VD = self.head.weight_VD

    def loss(self, batch: Batch, adapter: Adapter | None, step_key: int | None = None) -> Tensor:
        """Summed loss of a pack's learned tokens, each times its weight: float32 scalar.

        Args:
            batch: the pack.
            adapter: the adapter, or None for the base alone.
            step_key: 32 bits that stand for (seed, step) and turn dropout on; None turns it off.
        """
        hidden_ND = self.hidden(batch, adapter, batch.rows_N, step_key)
        head_VD = self.head.weight_VD.to(self.dtype)
        if self.head.plain:
            return linear_cross_entropy(hidden_ND, head_VD, batch.targets_N, self.loss_chunk, batch.weights_N)
        logits_NV = self.head.finish((hidden_ND @ head_VD.T).float())
        losses_N = torch.nn.functional.cross_entropy(logits_NV, batch.targets_N, reduction="none")
        return (losses_N if batch.weights_N is None else losses_N * batch.weights_N).sum()

    def logits(self, batch: Batch, adapter: Adapter | None) -> Tensor:
        """Logits of every token: float32 [T, V]. For tests and small inputs: training never builds this."""
        rows_T = torch.arange(len(batch.tokens_T), device=self.device)
        hidden_TD = self.hidden(batch, adapter, rows_T)
        return self.head.finish((hidden_TD @ self.head.weight_VD.to(self.dtype).T).float())

    def hidden(self, batch: Batch, adapter: Adapter | None, rows_N: Tensor, step_key: int | None = None) -> Tensor:
        """Normalised hidden states of chosen rows after the last layer: [N, D]."""
        x_TD = self.embed(batch.tokens_T)
        angles = self.rotary.angles(batch.positions_T, batch.lengths_T)
        drop_keys_T = None
        if step_key is not None and adapter is not None and adapter.dropout > 0:
            drop_keys_T = token_keys(step_key, batch.sample_ids_T, batch.positions_T)
        for layer in self.layers:
            rows = rows_N if layer is self.layers[-1] else None
            x_TD = self._layer(layer, x_TD, adapter, angles, batch.starts, drop_keys_T, rows)
        return self.final_norm(x_TD)

    def stages(
        self, batch: Batch, adapter: Adapter | None, step_key: int | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """The hidden states [T, D] on their way up, each with a name: to find where numbers stop being finite."""
        x_TD = self.embed(batch.tokens_T)
        yield "the embedding", x_TD
        angles = self.rotary.angles(batch.positions_T, batch.lengths_T)
        drop_keys_T = None
        if step_key is not None and adapter is not None and adapter.dropout > 0:
            drop_keys_T = token_keys(step_key, batch.sample_ids_T, batch.positions_T)
        for layer in self.layers:
            x_TD = self._layer(layer, x_TD, adapter, angles, batch.starts, drop_keys_T, None)
            yield f"the output of layer {layer.index}", x_TD

    def embed(self, tokens_T: Tensor) -> Tensor:
        """Embeddings of tokens [T, D]; no gradient goes further down."""
        x_TD = self.embedding.rows(tokens_T).to(self.dtype)
        return x_TD if self.spec.embedding_scale == 1.0 else x_TD * self.spec.embedding_scale

    def project(
        self, layer: Layer, group: int, x_TI: Tensor, adapter: Adapter | None, drop_keys_T: Tensor | None = None
    ) -> Tensor:
        """One group of a layer's projections: [T, outputs of the group side by side]."""
        paths = [module_path(layer.index, name) for name in self.spec.groups[group]]
        pairs = [adapter.matrices.get(path) if adapter else None for path in paths]
        drop = None
        if drop_keys_T is not None and adapter is not None:
            drop = Dropout(adapter.dropout, drop_keys_T, tuple(key(path) for path in paths))
        frozen, scale = layer.groups[group], adapter.scale if adapter else 0.0
        if torch.is_grad_enabled() or drop is not None:
            return qlora_linear(x_TI, frozen, pairs, scale, drop)
        # Answers: the engine's products, which know the faster library and make no copies.
        down = x_TI.new_empty(len(x_TI), sum(len(pair[0]) for pair in pairs if pair))
        out_TO = x_TI.new_empty(len(x_TI), sum(frozen.outputs))
        return project(x_TI, frozen, pairs, scale, None, AdapterMemory(down, down, None), out_TO)

    def queries_keys_values(
        self,
        layer: Layer,
        x_TD: Tensor,
        adapter: Adapter | None,
        angles: Sequence[Angles],
        drop_keys_T: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q [T, H, E] and k [T, K, E], rotated, and v [T, K, E], of the layer's input."""
        spec = self.spec
        qkv_TO = self.project(layer, QKV, normalized(layer, ATTENTION_NORM, x_TD), adapter, drop_keys_T)
        heads = (spec.heads, spec.kv_heads, spec.kv_heads)
        q_TO, k_TO, v_TO = qkv_TO.split([count * spec.head_size for count in heads], dim=1)
        q_TO, k_TO = normalized(layer, QUERY_NORM, q_TO), normalized(layer, KEY_NORM, k_TO)
        q, k, v = (part.reshape(len(x_TD), -1, spec.head_size) for part in (q_TO, k_TO, v_TO))
        which = self.rotary.of(layer.index)
        if which is None:
            return q, k, v
        interleaved = self.rotary.ropes[which].interleaved
        q, k = (rope(part, *angles[which], interleaved=interleaved) for part in (q, k))
        return q, k, v

    def after_attention(
        self, layer: Layer, x_TD: Tensor, y_THE: Tensor, adapter: Adapter | None, drop_keys_T: Tensor | None = None
    ) -> Tensor:
        """Output projection, MLP and both residual sums: [T, D]."""
        scale = self.spec.residual_scale
        # One norm for both, or each its own.
        normal_TD = normalized(layer, ATTENTION_NORM, x_TD) if self.spec.norm_placement == "parallel" else None
        attended_TD = self.project(layer, OUT, y_THE.flatten(1), adapter, drop_keys_T)
        x_TD = x_TD + normalized(layer, ATTENTION_OUTPUT_NORM, attended_TD) * scale
        if normal_TD is None:
            normal_TD = normalized(layer, MLP_NORM, x_TD)
        if layer.experts is not None:
            return x_TD + layer.experts(normal_TD, self.spec.activation) * scale
        inputs_TG = self.project(layer, GATE_UP, normal_TD, adapter, drop_keys_T)
        hidden_TF = unit(inputs_TG, self.spec.activation, gated=self.spec.gated_mlp)
        given_TD = self.project(layer, DOWN, hidden_TF, adapter, drop_keys_T)
        return x_TD + normalized(layer, MLP_OUTPUT_NORM, given_TD) * scale

    def _layer(
        self,
        layer: Layer,
        x_TD: Tensor,
        adapter: Adapter | None,
        angles: Sequence[Angles],
        starts: Sequence[int],
        drop_keys_T: Tensor | None,
        rows_N: Tensor | None,
    ) -> Tensor:
        """A layer over a pack; with ``rows_N`` only those rows go on after attention."""
        q_THE, k_TKE, v_TKE = self.queries_keys_values(layer, x_TD, adapter, angles, drop_keys_T)
        y_THE = attention(q_THE, k_TKE, v_TKE, starts, self.scoring[layer.index])
        if rows_N is not None:
            x_TD, y_THE = x_TD[rows_N], y_THE[rows_N]
            drop_keys_T = None if drop_keys_T is None else drop_keys_T[rows_N]
        return self.after_attention(layer, x_TD, y_THE, adapter, drop_keys_T)


def normalized(layer: Layer, name: str, x_TD: Tensor) -> Tensor:
    """x through a norm of the layer; x itself where the layer has none of that name."""
    norm = layer.norms.get(name)
    return x_TD if norm is None else norm(x_TD)
