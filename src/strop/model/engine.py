"""The training pass, forward and backward written out: gradients of the adapters, in memory laid out beforehand.

    forward, layer by layer                                backward, from the top

    normal  = norm(input)                                  gated'  = output' W_down
    qkv     = normal W_qkv, q and k rotated                gate_up' = swiglu'(gated', gate_up)        (in its place)
    attended = attention(qkv)                              output' += norm'(gate_up' W_gate_up; middle)
    middle  = input + attended W_o                         attended' = output' W_o
    normal  = norm(middle)                                 qkv'    = attention'(attended'), rotated back
    gate_up = normal W_gate_up                             output' += norm'(qkv' W_qkv; input)
    output  = middle + swiglu(gate_up) W_down              … and output' is the gradient of the layer below

x' is the gradient of x; W with its adapter is a group of `strop.kernels.qlora_linear`. The residual sums are made by
the products themselves, which add to what is there. `strop.model.decoder` computes the same by autograd: it is the
reference that this file is held to, and what answers questions.

Nothing is computed that no gradient needs: in the last layer only learned tokens go on after attention; the backward
pass ends at the lowest adapter; a layer that is computed again stops where its own backward pass begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from strop.kernels.attention import Span, attend, attend_backward
from strop.kernels.dropout import token_keys
from strop.kernels.qlora_linear import AdapterMemory, Dropout, Pair, project, project_backward
from strop.kernels.random import key
from strop.kernels.rms_norm import normalize, normalize_backward
from strop.kernels.rope import rotate_
from strop.kernels.swiglu import gate, gate_backward_
from strop.model.batch import Batch
from strop.model.decoder import Decoder, Layer
from strop.model.lora import Adapter
from strop.model.spec import GROUPS, module_path
from strop.model.workspace import Work, Workspace

_QKV, _OUT, _GATE_UP, _DOWN = range(4)


class Engine:
    """Computes losses and gradients of packs with a decoder's weights, in its own memory.

    Args:
        decoder: the frozen base.
        work: the largest pack, and what is kept of it. A larger pack makes the memory grow.
    """

    def __init__(self, decoder: Decoder, work: Work) -> None:
        self.decoder = decoder
        self.workspace = Workspace(decoder.spec, work, decoder.device)

    def release(self) -> None:
        """Gives all memory back; the engine cannot be used any more."""
        del self.workspace

    @property
    def device(self) -> torch.device:
        """Where the base lies."""
        return self.decoder.device

    @torch.no_grad()
    def loss(self, batch: Batch, adapter: Adapter | None) -> float:
        """Summed loss of a pack's learned tokens, each times its weight, dropout off; nothing is kept."""
        if not len(batch.rows_N):
            return 0.0
        self._fit(batch)
        hidden_ND = _Walk(self, batch, adapter, None, keep=False).forward()
        logits_CV, rows_BD = self._loss_memory()
        return self.decoder.head.loss(hidden_ND, batch.targets_N, logits_CV, rows_BD, batch.weights_N)

    @torch.no_grad()
    def gradients(self, batch: Batch, adapter: Adapter, weight: float, step_key: int | None = None) -> float:
        """Adds a pack's share of the step's gradients to ``grad`` of the adapter's matrices, which must exist.

        Args:
            batch: the pack.
            adapter: the adapter.
            weight: of all learned tokens of the step together, their number where each weighs 1; the gradient is that
                of the summed loss divided by it.
            step_key: 32 bits that stand for (seed, step) and turn dropout on; None turns it off.

        Returns:
            The pack's summed loss, each token's times its weight.
        """
        if not len(batch.rows_N):
            return 0.0
        self._fit(batch)
        walk = _Walk(self, batch, adapter, step_key, keep=True)
        hidden_ND = walk.forward()
        logits_CV, rows_BD = self._loss_memory()
        grad_ND = self.workspace.take("final_gradient", len(hidden_ND))
        head = self.decoder.head
        loss = head.loss_gradient(hidden_ND, batch.targets_N, logits_CV, grad_ND, rows_BD, batch.weights_N)
        walk.backward(grad_ND.mul_(1.0 / weight))
        return loss

    def _loss_memory(self) -> tuple[Tensor, Tensor | None]:
        slots = self.workspace.layout
        rows_BD = self.workspace.take("head_rows", slots["head_rows"].shape[0]) if "head_rows" in slots else None
        return self.workspace.take("logits", slots["logits"].shape[0]), rows_BD

    def _fit(self, batch: Batch) -> None:
        """Makes more room where a pack asks for more than was laid out: a document longer than any foreseen."""
        work = self.workspace.work
        tokens, learned = len(batch.tokens_T), len(batch.rows_N)
        if tokens > work.tokens or learned > work.learned:
            work = replace(work, tokens=max(tokens, work.tokens), learned=max(learned, work.learned))
            del self.workspace
            self.workspace = Workspace(self.decoder.spec, work, self.device)


class _Walk:
    """One pass up and, where gradients are wanted, down again, over one pack."""

    def __init__(
        self, engine: Engine, batch: Batch, adapter: Adapter | None, step_key: int | None, *, keep: bool
    ) -> None:
        self.decoder, self.spec = engine.decoder, engine.decoder.spec
        self.space, self.work = engine.workspace, engine.workspace.work
        self.batch, self.adapter, self.keep = batch, adapter, keep
        self.tokens, self.learned = len(batch.tokens_T), len(batch.rows_N)
        self.spans = [Span(*span) for span in batch.spans]
        self.cos_TE, self.sin_TE = self.decoder.angles(batch.positions_T)
        self.drop_keys_T: Tensor | None = None
        if step_key is not None and adapter is not None and adapter.dropout > 0:
            self.drop_keys_T = token_keys(step_key, batch.sample_ids_T, batch.positions_T)
        self.drop_keys_N = None if self.drop_keys_T is None else self.drop_keys_T[batch.rows_N]
        self.lowest = self._lowest_adapter()

    def forward(self) -> Tensor:
        """All layers; the normalised hidden states of the learned rows [N, D]."""
        self.decoder.embedding.write(self.batch.tokens_T, self._input(0))
        for layer in self.decoder.layers:
            last = layer is self.decoder.layers[-1]
            output_TD = self.space.take("output", self.learned) if last else self._input(layer.index + 1)
            self._layer(layer, output_TD)
        final_ND = self.space.take("final", self.learned)
        return normalize(
            self.space.take("output", self.learned), self.decoder.final_norm_D, self.spec.norm_eps, final_ND
        )

    def backward(self, grad_ND: Tensor) -> None:
        """From the gradient of the hidden states down to the lowest adapter."""
        output_ND = self.space.take("output", self.learned)
        grad_TD = self.space.take("gradient", self.learned).zero_()
        normalize_backward(grad_ND, output_ND, self.decoder.final_norm_D, self.spec.norm_eps, grad_TD)
        for layer in reversed(self.decoder.layers[self.lowest :]):
            if self.work.grade(layer.index) == "layer":
                self._layer(layer, None)
            grad_TD = self._layer_backward(layer, grad_TD)

    def _layer(self, layer: Layer, output_TD: Tensor | None) -> None:
        """A layer's forward pass; without an output only as far as its backward pass asks."""
        spec, space = self.spec, self.space
        input_TD, last = self._input(layer.index), self._last(layer)
        normal_TD = self._attention_normal(layer)
        normalize(input_TD, layer.input_norm_D, spec.norm_eps, normal_TD)
        qkv_TP = self._piece(layer, "qkv", self.tokens)
        self._project(layer, _QKV, normal_TD, qkv_TP)
        self._rotate(qkv_TP)
        attended_TQ, row_sums_HT = self._attended(layer)
        attend(qkv_TP, self.spans, spec.heads, spec.kv_heads, attended_TQ, row_sums_HT)
        rows = self.learned if last else self.tokens
        middle_TD = self._piece(layer, "middle", rows)
        if last:
            torch.index_select(input_TD, 0, self.batch.rows_N, out=middle_TD)
            selected_NQ = space.take("learned_attended", rows)
            attended_TQ = torch.index_select(attended_TQ, 0, self.batch.rows_N, out=selected_NQ)
        else:
            middle_TD.copy_(input_TD)
        self._project(layer, _OUT, attended_TQ, middle_TD, add=True)
        normal_TD = normalize(middle_TD, layer.post_attention_norm_D, spec.norm_eps, self._mlp_normal(layer, rows))
        gate_up_T2F = self._piece(layer, "gate_up", rows)
        self._project(layer, _GATE_UP, normal_TD, gate_up_T2F)
        if output_TD is not None:
            gated_TF = gate(gate_up_T2F, self._gated(layer, rows))
            self._project(layer, _DOWN, gated_TF, output_TD.copy_(middle_TD), add=True)

    def _layer_backward(self, layer: Layer, grad_TD: Tensor) -> Tensor:
        """The adapters' gradients of a layer, and the gradient of its input in place of that of its output."""
        spec, space, last = self.spec, self.space, self._last(layer)
        rows, eps = len(grad_TD), self.spec.norm_eps
        lowest, grade = layer.index == self.lowest, self.work.grade(layer.index)
        gate_up_T2F, middle_TD = self._piece(layer, "gate_up", rows), self._piece(layer, "middle", rows)
        gated_TF = self._gated(layer, rows)
        if grade != "none" and self._targeted(layer, _DOWN):
            gate(gate_up_T2F, gated_TF)
        if lowest and not any(self._targeted(layer, group) for group in (_QKV, _OUT, _GATE_UP)):
            self._project_backward(layer, _DOWN, grad_TD, gated_TF, None)
            return grad_TD
        self._project_backward(layer, _DOWN, grad_TD, gated_TF, gated_TF)
        gate_backward_(gated_TF, gate_up_T2F)
        normal_TD = self._mlp_normal(layer, rows)
        if grade != "none" and self._targeted(layer, _GATE_UP):
            normalize(middle_TD, layer.post_attention_norm_D, eps, normal_TD)
        if lowest and not any(self._targeted(layer, group) for group in (_QKV, _OUT)):
            self._project_backward(layer, _GATE_UP, gate_up_T2F, normal_TD, None)
            return grad_TD
        self._project_backward(layer, _GATE_UP, gate_up_T2F, normal_TD, normal_TD)
        normalize_backward(normal_TD, middle_TD, layer.post_attention_norm_D, eps, grad_TD)
        attended_TQ, row_sums_HT = self._attended(layer)
        grad_attended_TQ = space.take("gated", rows, attended_TQ.shape[1])
        seen_TQ = attended_TQ
        if last:
            seen_TQ = space.take("learned_attended", rows)
            torch.index_select(attended_TQ, 0, self.batch.rows_N, out=seen_TQ)
        below = not lowest or self._targeted(layer, _QKV)
        self._project_backward(layer, _OUT, grad_TD, seen_TQ, grad_attended_TQ if below else None)
        if not below:
            return grad_TD
        if last:
            grad_TD, grad_attended_TQ = self._spread(grad_TD, grad_attended_TQ)
        qkv_TP, grad_qkv_TP = self._piece(layer, "qkv", self.tokens), space.take("qkv_gradient", self.tokens)
        attend_backward(
            qkv_TP, attended_TQ, grad_attended_TQ, row_sums_HT, self.spans, spec.heads, spec.kv_heads, grad_qkv_TP
        )
        self._rotate(grad_qkv_TP, inverse=True)
        normal_TD, input_TD = self._attention_normal(layer), self._input(layer.index)
        if grade != "none" and self._targeted(layer, _QKV):
            normalize(input_TD, layer.input_norm_D, eps, normal_TD)
        self._project_backward(layer, _QKV, grad_qkv_TP, normal_TD, None if lowest else normal_TD)
        if not lowest:
            normalize_backward(normal_TD, input_TD, layer.input_norm_D, eps, grad_TD)
        return grad_TD

    def _spread(self, grad_ND: Tensor, grad_attended_NQ: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the learned rows as gradients of all rows; the rest is zero."""
        space, rows_N = self.space, self.batch.rows_N
        # Both lie at the beginning of the memory that they are spread over.
        learned_ND = space.take("final", self.learned).copy_(grad_ND)
        learned_NQ = space.take("learned_attended", self.learned).copy_(grad_attended_NQ)
        grad_TD = space.take("gradient", self.tokens).zero_().index_copy_(0, rows_N, learned_ND)
        grad_attended_TQ = space.take("gated", self.tokens, learned_NQ.shape[1]).zero_()
        return grad_TD, grad_attended_TQ.index_copy_(0, rows_N, learned_NQ)

    def _project(self, layer: Layer, group: int, x_TI: Tensor, out_TO: Tensor, *, add: bool = False) -> None:
        frozen, scale = layer.groups[group], self.adapter.scale if self.adapter else 0.0
        drop = self._drop(layer, group)
        project(x_TI, frozen, self._pairs(layer, group), scale, drop, self._adapter_memory(), out_TO, add=add)

    def _project_backward(
        self, layer: Layer, group: int, grad_TO: Tensor, x_TI: Tensor, into_TI: Tensor | None
    ) -> None:
        assert self.adapter is not None
        pairs = self._pairs(layer, group)
        grads = [None if pair is None else _gradients(pair) for pair in pairs]
        drop = self._drop(layer, group)
        memory, scale = self._adapter_memory(), self.adapter.scale
        project_backward(grad_TO, x_TI, layer.groups[group], pairs, grads, scale, drop, memory, into_TI)

    def _drop(self, layer: Layer, group: int) -> Dropout | None:
        """The dropout of a group's adapters, for the rows that the group has."""
        keys_T = self.drop_keys_N if self._last(layer) and group != _QKV else self.drop_keys_T
        if keys_T is None or self.adapter is None:
            return None
        salts = tuple(key(module_path(layer.index, name)) for name in GROUPS[group])
        return Dropout(self.adapter.dropout, keys_T, salts)

    def _pairs(self, layer: Layer, group: int) -> Sequence[Pair | None]:
        matrices = self.adapter.matrices if self.adapter else {}
        return [matrices.get(module_path(layer.index, name)) for name in GROUPS[group]]

    def _targeted(self, layer: Layer, group: int) -> bool:
        return any(pair is not None for pair in self._pairs(layer, group))

    def _lowest_adapter(self) -> int:
        """The lowest layer that has an adapter."""
        for layer in self.decoder.layers:
            if any(self._targeted(layer, group) for group in range(len(GROUPS))):
                return layer.index
        return len(self.decoder.layers)

    def _last(self, layer: Layer) -> bool:
        return layer is self.decoder.layers[-1]

    def _adapter_memory(self) -> AdapterMemory:
        dropped = self.space.all("dropped") if "dropped" in self.space else None
        return AdapterMemory(self.space.all("down"), self.space.all("down_gradient"), dropped)

    def _rotate(self, qkv_TP: Tensor, *, inverse: bool = False) -> None:
        """Queries and keys lie side by side: they are rotated as heads of one tensor."""
        heads = self.spec.heads + self.spec.kv_heads
        rotated_THE = qkv_TP[:, : heads * self.spec.head_size].unflatten(1, (heads, self.spec.head_size))
        rotate_(rotated_THE, self.cos_TE, self.sin_TE, inverse=inverse)

    def _input(self, layer: int) -> Tensor:
        """A layer's input; two take turns where nothing is kept, and memory that nobody touches costs nothing."""
        kept = layer if self.keep else layer % 2
        return self.space.take(f"layer.{kept}.input", self.tokens)

    def _piece(self, layer: Layer, name: str, rows: int) -> Tensor:
        """A layer's own memory, or that of the layers that are computed again."""
        return self.space.take(self._own(layer, name, f"again.{name}"), rows)

    def _attended(self, layer: Layer) -> tuple[Tensor, Tensor]:
        name = self._own(layer, "row_sums", "again.row_sums")
        row_sums_HT = self.space.take(name, self.spec.heads, self.tokens)
        return self._piece(layer, "attended", self.tokens), row_sums_HT

    def _attention_normal(self, layer: Layer) -> Tensor:
        return self.space.take(self._own(layer, "attention_normal", "normal"), self.tokens)

    def _mlp_normal(self, layer: Layer, rows: int) -> Tensor:
        return self.space.take(self._own(layer, "mlp_normal", "normal"), rows)

    def _gated(self, layer: Layer, rows: int) -> Tensor:
        return self.space.take(self._own(layer, "gated", "gated"), rows, self.spec.intermediate)

    def _own(self, layer: Layer, name: str, shared: str) -> str:
        """The name of a layer's own piece, or of the shared one where it has none; layer 0's where nothing is kept."""
        own = f"layer.{layer.index if self.keep else 0}.{name}"
        return own if own in self.space else shared


def _gradients(pair: Pair) -> Pair:
    a_RI, b_OR = pair
    assert a_RI.grad is not None and b_OR.grad is not None, "gradients have memory before a pass begins"
    return a_RI.grad, b_OR.grad
