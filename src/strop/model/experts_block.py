"""A mixture of experts in the place of the MLP, both ways (Mixtral, arXiv:2401.04088, section 2.1; Qwen3-MoE).

    p = softmax(x Routerᵀ)        w = the largest p of each token, made to sum to 1 or not, 0 for the other experts
    y = Σ_e w_e · activation(x W_gate_up,e) W_down,e

Experts and router are frozen and have no adapters; the gradient goes through them. With h_e the activation's result:

    w_e' = (y' W_down,e) · h_e        h_e' = w_e (y' W_down,e)        x' = Σ_e gate_up_e' W_gate_up,e + logits' Router

Nothing of it is kept: the backward pass runs the first product of each expert again. An expert computes the tokens that
chose it and no others.

Shapes: T tokens, X experts, R tokens of one expert, F its width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from strop.kernels import activation
from strop.kernels.qlora_linear import AdapterMemory, FrozenGroup, project, project_backward, qlora_linear
from strop.model.spec import ExpertsSpec

if TYPE_CHECKING:
    from strop.model.walk import Walk


@dataclass(frozen=True, slots=True, eq=False)
class Experts:
    """The experts of a layer.

    Attributes:
        spec: how many, and how they are chosen.
        router_XD: float32 [X, D].
        gate_up: gate and up of each expert.
        down: down of each expert.
    """

    spec: ExpertsSpec
    router_XD: Tensor
    gate_up: tuple[FrozenGroup, ...]
    down: tuple[FrozenGroup, ...]

    def weights(self, logits_TX: Tensor) -> Tensor:
        """How much of each expert a token takes: [T, X], zero but for the chosen ones. Differentiable."""
        p_TX = logits_TX.softmax(dim=-1)
        largest_TA, chosen_TA = p_TX.topk(self.spec.active, dim=-1)
        if self.spec.normalise_weights:
            largest_TA = largest_TA / largest_TA.sum(dim=-1, keepdim=True)
        return torch.zeros_like(p_TX).scatter(1, chosen_TA, largest_TA)

    def chosen(self, weights_TX: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Each expert that any token chose, and these tokens [R]."""
        for expert in range(self.spec.count):
            rows_R = weights_TX[:, expert].nonzero()[:, 0]
            if len(rows_R):
                yield expert, rows_R

    def __call__(self, x_TD: Tensor, kind: str) -> Tensor:
        """The differentiable reference: y [T, D]; ``kind`` is the activation."""
        weights_TX = self.weights(x_TD.float() @ self.router_XD.T)
        y_TD = torch.zeros_like(x_TD)
        for expert, rows_R in self.chosen(weights_TX.detach()):
            inputs_RG = qlora_linear(x_TD[rows_R], self.gate_up[expert], [None, None], 0.0)
            hidden_RF = activation.unit(inputs_RG, kind, gated=True)
            y_RD = qlora_linear(hidden_RF, self.down[expert], [None], 0.0)
            y_TD = y_TD.index_add(0, rows_R, y_RD * weights_TX[rows_R, expert, None].to(y_RD.dtype))
        return y_TD


def forward(walk: Walk, experts: Experts, x_TD: Tensor, stream_TD: Tensor) -> None:
    """Adds y to the residual stream."""
    weights_TX = experts.weights(x_TD.float() @ experts.router_XD.T)
    for expert, rows_R in experts.chosen(weights_TX):
        hidden_RF, _ = _hidden(walk, experts, expert, x_TD, rows_R)
        y_RD = _multiply(hidden_RF, experts.down[expert], walk.space.take("expert_output", len(rows_R)))
        stream_TD.index_add_(0, rows_R, y_RD.mul_(weights_TX[rows_R, expert, None]))


def backward(walk: Walk, experts: Experts, x_TD: Tensor, grad_TD: Tensor) -> Tensor:
    """The gradient of x, given that of y; both stay as they are."""
    with torch.enable_grad():
        logits_TX = (x_TD.float() @ experts.router_XD.T).requires_grad_()
        weights_TX = experts.weights(logits_TX)
    taken_TX = weights_TX.detach()
    grad_weights_TX = torch.zeros_like(taken_TX)
    into_TD = walk.space.take("expert_gradient", len(x_TD)).zero_()
    for expert, rows_R in experts.chosen(taken_TX):
        hidden_RF, inputs_RG = _hidden(walk, experts, expert, x_TD, rows_R)
        grad_RD = torch.index_select(grad_TD, 0, rows_R, out=walk.space.take("expert_output", len(rows_R)))
        grad_hidden_RF = walk.space.take("expert_hidden_gradient", len(rows_R))
        _multiply_back(grad_RD, experts.down[expert], hidden_RF, grad_hidden_RF)
        grad_weights_TX[rows_R, expert] = (grad_hidden_RF * hidden_RF).sum(dim=1).to(taken_TX.dtype)
        grad_hidden_RF *= taken_TX[rows_R, expert, None]
        activation.apply_backward_(grad_hidden_RF, inputs_RG, walk.spec.activation, gated=True)
        grad_x_RD = walk.space.take("expert_output", len(rows_R))
        _multiply_back(inputs_RG, experts.gate_up[expert], walk.space.take("expert_input", len(rows_R)), grad_x_RD)
        into_TD.index_add_(0, rows_R, grad_x_RD)
    (grad_logits_TX,) = torch.autograd.grad(weights_TX, logits_TX, grad_weights_TX)
    return into_TD.add_(grad_logits_TX @ experts.router_XD)


def _hidden(walk: Walk, experts: Experts, expert: int, x_TD: Tensor, rows_R: Tensor) -> tuple[Tensor, Tensor]:
    """What an expert's activation gives [R, F], and gate and up side by side [R, 2F]."""
    space, rows = walk.space, len(rows_R)
    x_RD = torch.index_select(x_TD, 0, rows_R, out=space.take("expert_input", rows))
    inputs_RG = _multiply(x_RD, experts.gate_up[expert], space.take("expert_gate_up", rows))
    return activation.apply(inputs_RG, walk.spec.activation, space.take("expert_hidden", rows), gated=True), inputs_RG


def _multiply(x_RI: Tensor, frozen: FrozenGroup, out_RO: Tensor) -> Tensor:
    """A product with frozen weights alone."""
    nothing = AdapterMemory(x_RI.new_empty(0), x_RI.new_empty(0), None)
    return project(x_RI, frozen, [None] * len(frozen.outputs), 0.0, None, nothing, out_RO)


def _multiply_back(grad_RO: Tensor, frozen: FrozenGroup, x_RI: Tensor, into_RI: Tensor) -> None:
    nothing = AdapterMemory(x_RI.new_empty(0), x_RI.new_empty(0), None)
    none = [None] * len(frozen.outputs)
    project_backward(grad_RO, x_RI, frozen, none, none, 0.0, None, nothing, into_RI)
