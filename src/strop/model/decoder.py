"""The decoder: one forward pass over packs of whole documents, for every family, described by a `DecoderSpec`.

    tokens_T ─▶ embedding ─▶ ┌ norm ─▶ q·k·v (one group) ─▶ rope ─▶ attention inside documents ─▶ o ─▶ + ┐ × layers
                             └ norm ─▶ gate·up (one group) ─▶ swiglu ─▶ down ─▶ + ───────────────────────┘
             ─▶ norm of the learned rows ─▶ head and loss in chunks

This is the reference, differentiated by autograd: plain, and what answers questions. Training runs through
`strop.model.engine`, which computes the same in memory laid out beforehand and is held to this file by tests.

Shapes: T tokens of the pack, N learned tokens, D hidden, H query heads, K key-value heads, E head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from strop.kernels.attention import attention
from strop.kernels.cross_entropy import linear_cross_entropy
from strop.kernels.dropout import token_keys
from strop.kernels.qlora_linear import AdapterMemory, Dropout, FrozenGroup, WeightBuffer, project, qlora_linear
from strop.kernels.random import key
from strop.kernels.rms_norm import rms_norm
from strop.kernels.rope import rope
from strop.kernels.swiglu import swiglu
from strop.model.batch import Batch
from strop.model.head import Embedding, Head
from strop.model.lora import Adapter
from strop.model.rotary import inverse_frequencies
from strop.model.spec import GROUPS, DecoderSpec, module_path


@dataclass(slots=True)
class Layer:
    """The frozen parts of a layer: norms [D] and the four groups of projections that share an input."""

    index: int
    input_norm_D: Tensor
    post_attention_norm_D: Tensor
    groups: tuple[FrozenGroup, ...]


@dataclass(slots=True)
class Decoder:
    """A frozen base model; the adapter is handed in.

    Attributes:
        spec: what it is.
        embedding: rows by token.
        head: logits and losses.
        final_norm_D: last norm [D].
        layers: the layers.
        dtype: dtype of activations.
        buffer: memory that weights are dequantised into.
        loss_chunk: learned tokens whose logits exist at one time.
    """

    spec: DecoderSpec
    embedding: Embedding
    head: Head
    final_norm_D: Tensor
    layers: list[Layer]
    dtype: torch.dtype
    buffer: WeightBuffer
    loss_chunk: int = 256
    _frequencies_E: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._frequencies_E = inverse_frequencies(self.spec).to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the base lies."""
        return self.final_norm_D.device

    def keep_dense(self, layers: int) -> None:
        """Keeps dequantised copies of the first ``layers`` layers, and of no other: memory for time."""
        for layer in self.layers:
            for group in layer.groups:
                if layer.index < layers:
                    group.keep_dense(self.dtype)
                else:
                    group.dense_OI = None

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
        return linear_cross_entropy(hidden_ND, head_VD, batch.targets_N, self.loss_chunk, batch.weights_N)

    def logits(self, batch: Batch, adapter: Adapter | None) -> Tensor:
        """Logits of every token: float32 [T, V]. For tests and small inputs: training never builds this."""
        rows_T = torch.arange(len(batch.tokens_T), device=self.device)
        return (self.hidden(batch, adapter, rows_T) @ self.head.weight_VD.to(self.dtype).T).float()

    def hidden(self, batch: Batch, adapter: Adapter | None, rows_N: Tensor, step_key: int | None = None) -> Tensor:
        """Normalised hidden states of chosen rows after the last layer: [N, D]."""
        x_TD = self.embed(batch.tokens_T)
        cos_TE, sin_TE = self.angles(batch.positions_T)
        drop_keys_T = None
        if step_key is not None and adapter is not None and adapter.dropout > 0:
            drop_keys_T = token_keys(step_key, batch.sample_ids_T, batch.positions_T)
        for layer in self.layers:
            rows = rows_N if layer is self.layers[-1] else None
            x_TD = self._layer(layer, x_TD, adapter, cos_TE, sin_TE, batch.starts, drop_keys_T, rows)
        return rms_norm(x_TD, self.final_norm_D, self.spec.norm_eps)

    def stages(
        self, batch: Batch, adapter: Adapter | None, step_key: int | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """The hidden states [T, D] on their way up, each with a name: to find where numbers stop being finite."""
        x_TD = self.embed(batch.tokens_T)
        yield "the embedding", x_TD
        cos_TE, sin_TE = self.angles(batch.positions_T)
        drop_keys_T = None
        if step_key is not None and adapter is not None and adapter.dropout > 0:
            drop_keys_T = token_keys(step_key, batch.sample_ids_T, batch.positions_T)
        for layer in self.layers:
            x_TD = self._layer(layer, x_TD, adapter, cos_TE, sin_TE, batch.starts, drop_keys_T, None)
            yield f"the output of layer {layer.index}", x_TD

    def embed(self, tokens_T: Tensor) -> Tensor:
        """Embeddings of tokens [T, D]; no gradient goes further down."""
        return self.embedding.rows(tokens_T).to(self.dtype)

    def angles(self, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the rotary embedding [T, E/2], float32."""
        angles_TE = positions_T[:, None].float() * self._frequencies_E
        return angles_TE.cos(), angles_TE.sin()

    def project(
        self, layer: Layer, group: int, x_TI: Tensor, adapter: Adapter | None, drop_keys_T: Tensor | None = None
    ) -> Tensor:
        """One group of a layer's projections: [T, outputs of the group side by side]."""
        paths = [module_path(layer.index, name) for name in GROUPS[group]]
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
        cos_TE: Tensor,
        sin_TE: Tensor,
        drop_keys_T: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q [T, H, E] and k [T, K, E], rotated, and v [T, K, E]."""
        spec = self.spec
        normal_TD = rms_norm(x_TD, layer.input_norm_D, spec.norm_eps)
        qkv_TO = self.project(layer, 0, normal_TD, adapter, drop_keys_T)
        heads = (spec.heads, spec.kv_heads, spec.kv_heads)
        q, k, v = (
            part.reshape(len(x_TD), count, spec.head_size)
            for part, count in zip(qkv_TO.split([count * spec.head_size for count in heads], dim=1), heads, strict=True)
        )
        return rope(q, cos_TE, sin_TE), rope(k, cos_TE, sin_TE), v

    def after_attention(
        self, layer: Layer, x_TD: Tensor, y_THE: Tensor, adapter: Adapter | None, drop_keys_T: Tensor | None = None
    ) -> Tensor:
        """Output projection, MLP and both residual sums: [T, D]."""
        x_TD = x_TD + self.project(layer, 1, y_THE.flatten(1), adapter, drop_keys_T)
        normal_TD = rms_norm(x_TD, layer.post_attention_norm_D, self.spec.norm_eps)
        hidden_TF = swiglu(self.project(layer, 2, normal_TD, adapter, drop_keys_T))
        return x_TD + self.project(layer, 3, hidden_TF, adapter, drop_keys_T)

    def _layer(
        self,
        layer: Layer,
        x_TD: Tensor,
        adapter: Adapter | None,
        cos_TE: Tensor,
        sin_TE: Tensor,
        starts: Sequence[int],
        drop_keys_T: Tensor | None,
        rows_N: Tensor | None,
    ) -> Tensor:
        """A layer over a pack; with ``rows_N`` only those rows go on after attention."""
        q_THE, k_TKE, v_TKE = self.queries_keys_values(layer, x_TD, adapter, cos_TE, sin_TE, drop_keys_T)
        y_THE = attention(q_THE, k_TKE, v_TKE, starts)
        if rows_N is not None:
            x_TD, y_THE = x_TD[rows_N], y_THE[rows_N]
            drop_keys_T = None if drop_keys_T is None else drop_keys_T[rows_N]
        return self.after_attention(layer, x_TD, y_THE, adapter, drop_keys_T)
