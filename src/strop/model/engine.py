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

Where the decoder norms or scales what is added to the stream, that is kept and added by itself (`strop.model.walk`).
Nothing is computed that no gradient needs: in the last layer only learned tokens go on after attention; the backward
pass ends at the lowest adapter; a layer that is computed again stops where its own backward pass begins.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from strop.model import attention_block, mlp_block
from strop.model.batch import Batch
from strop.model.decoder import OUT, QKV, Decoder, Layer
from strop.model.lora import Adapter
from strop.model.narrow import NarrowCopies
from strop.model.spec import ATTENTION_OUTPUT_NORM
from strop.model.walk import Walk, learned_rows
from strop.model.workspace import Work, Workspace


class Engine:
    """Computes losses and gradients of packs with a decoder's weights, in its own memory.

    Args:
        decoder: the frozen base.
        work: the largest pack, and what is kept of it. A larger pack makes the memory grow.
    """

    def __init__(self, decoder: Decoder, work: Work) -> None:
        self.decoder = decoder
        self.workspace = Workspace(decoder.spec, work, decoder.device)
        self._narrow = NarrowCopies(work.dtype)

    def release(self) -> None:
        """Gives all memory back; the engine cannot be used any more."""
        self.workspace.settle()
        if self.decoder.stream is not None:
            self.decoder.stream.settle()
        del self.workspace, self._narrow

    @property
    def tokens(self) -> int:
        """Tokens of the largest pack that memory is laid out for."""
        return self.workspace.work.tokens

    @property
    def device(self) -> torch.device:
        """Where the base lies."""
        return self.decoder.device

    @torch.no_grad()
    def loss(self, batch: Batch, adapter: Adapter | None) -> Tensor:
        """Summed loss of a pack's learned tokens, each times its weight, dropout off; nothing is kept.

        Returns:
            A float64 scalar on the device: who reads it waits for the device.
        """
        if not len(batch.rows_N):
            return self._no_loss()
        self._fit(batch)
        hidden_ND = forward(self._walk(batch, adapter, None, keep=False))
        logits_CV, rows_BD = self._loss_memory()
        return self.decoder.head.loss(hidden_ND, batch.targets_N, logits_CV, rows_BD, batch.weights_N)

    @torch.no_grad()
    def gradients(self, batch: Batch, adapter: Adapter, weight: float, step_key: int | None = None) -> Tensor:
        """Adds a pack's share of the step's gradients to ``grad`` of the adapter's matrices, which must exist.

        Args:
            batch: the pack.
            adapter: the adapter.
            weight: of all learned tokens of the step together, their number where each weighs 1; the gradient is that
                of the summed loss divided by it.
            step_key: 32 bits that stand for (seed, step) and turn dropout on; None turns it off.

        Returns:
            The pack's summed loss, each token's times its weight: a float64 scalar on the device.
        """
        if not len(batch.rows_N):
            return self._no_loss()
        self._fit(batch)
        walk = self._walk(batch, adapter, step_key, keep=True)
        hidden_ND = forward(walk)
        logits_CV, rows_BD = self._loss_memory()
        grad_ND = self.workspace.take("final_gradient", len(hidden_ND))
        head, slots = self.decoder.head, self.workspace.layout
        slopes_CV = self.workspace.take("logit_slopes", len(logits_CV)) if "logit_slopes" in slots else None
        loss = head.loss_gradient(hidden_ND, batch.targets_N, logits_CV, grad_ND, rows_BD, batch.weights_N, slopes_CV)
        backward(walk, grad_ND.mul_(1.0 / weight))
        return loss

    def _walk(self, batch: Batch, adapter: Adapter | None, step_key: int | None, *, keep: bool) -> Walk:
        narrow = None if adapter is None else self._narrow.of(adapter)
        return Walk(self.decoder, self.workspace, batch, adapter, step_key, keep=keep, narrow=narrow)

    def _no_loss(self) -> Tensor:
        return torch.zeros((), dtype=torch.float64, device=self.device)

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
            self.workspace.settle()
            del self.workspace
            self.workspace = Workspace(self.decoder.spec, work, self.device)


def forward(walk: Walk) -> Tensor:
    """All layers; the normalised hidden states of the learned rows [N, D]."""
    decoder, space = walk.decoder, walk.space
    decoder.embedding.write(walk.batch.tokens_T, walk.input_to_write(0), walk.batch.host_tokens_T)
    if walk.spec.embedding_scale != 1.0:
        walk.input(0).mul_(walk.spec.embedding_scale)
    for layer in decoder.layers:
        walk.input_written(layer.index)
        output_TD = space.take("output", walk.learned) if walk.last(layer) else walk.input_to_write(layer.index + 1)
        _layer(walk, layer, output_TD)
    return decoder.final_norm.write(space.take("output", walk.learned), space.take("final", walk.learned))


def backward(walk: Walk, grad_ND: Tensor) -> None:
    """From the gradient of the hidden states down to the lowest adapter."""
    grad_TD = walk.space.take("gradient", walk.learned).zero_()
    walk.decoder.final_norm.backward(grad_ND, walk.space.take("output", walk.learned), grad_TD)
    for layer in reversed(walk.decoder.layers[walk.lowest :]):
        if walk.grade(layer) == "layer":
            walk.bring_input(layer)
            _layer(walk, layer, None)
        grad_TD = _layer_backward(walk, layer, grad_TD)


def _layer(walk: Walk, layer: Layer, output_TD: Tensor | None) -> None:
    """A layer's forward pass; without an output only as far as its backward pass asks."""
    attended_TQ = attention_block.forward(walk, layer)
    rows, input_TD = walk.rows(layer), walk.input(layer.index)
    middle_TD = walk.piece(layer, "middle", rows)
    if walk.last(layer):
        learned_rows(input_TD, walk.batch.rows_N, middle_TD)
        attended_TQ = learned_rows(attended_TQ, walk.batch.rows_N, walk.space.take("learned_attended", rows))
    else:
        middle_TD.copy_(input_TD)
    walk.add_to_stream(layer, OUT, attended_TQ, middle_TD, ATTENTION_OUTPUT_NORM, "attention_given")
    mlp_block.forward(walk, layer, middle_TD, output_TD)


def _layer_backward(walk: Walk, layer: Layer, grad_TD: Tensor) -> Tensor:
    """The adapters' gradients of a layer, and the gradient of its input in place of that of its output."""
    if not mlp_block.backward(walk, layer, grad_TD):
        return grad_TD
    space, rows = walk.space, len(grad_TD)
    attended_TQ, _ = attention_block.attended(walk, layer)
    grad_attended_TQ = space.take("gated", rows, attended_TQ.shape[1])
    if walk.last(layer):
        attended_TQ = learned_rows(attended_TQ, walk.batch.rows_N, space.take("learned_attended", rows))
    given_TD = walk.given_gradient(layer, grad_TD, ATTENTION_OUTPUT_NORM, "attention_given")
    below = walk.wanted_below(layer, QKV)
    walk.project_backward(layer, OUT, given_TD, attended_TQ, grad_attended_TQ if below else None)
    if below:
        if walk.last(layer):
            grad_TD, grad_attended_TQ = _spread(walk, grad_attended_TQ)
        attention_block.backward(walk, layer, grad_attended_TQ, grad_TD)
    return grad_TD


def _spread(walk: Walk, grad_attended_NQ: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the learned rows as gradients of all rows; the rest is zero."""
    space, rows_N = walk.space, walk.batch.rows_N
    # Each lies at the beginning of the memory that it is spread over.
    learned_NQ = space.take("learned_attended", walk.learned).copy_(grad_attended_NQ)
    grad_attended_TQ = space.take("gated", walk.tokens, learned_NQ.shape[1]).zero_().index_copy_(0, rows_N, learned_NQ)
    for name in ("gradient", "normal_gradient"):
        if name in space:
            learned_ND = space.take("final", walk.learned).copy_(space.take(name, walk.learned))
            space.take(name, walk.tokens).zero_().index_copy_(0, rows_N, learned_ND)
    return space.take("gradient", walk.tokens), grad_attended_TQ
