"""The gated unit of the decoder's MLP (Shazeer 2020, arXiv:2002.05202): h = silu(gate) · up.

    σ = sigmoid(gate)
    d gate = dh · up · σ (1 + gate (1 − σ))          d up = dh · gate σ

Gate and up come side by side in one tensor, as the grouped projection writes them, and their gradients leave so.
Forward saves that tensor alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def swiglu(gate_up_T2F: Tensor) -> Tensor:
    """silu(gate) · up for gate_up [T, 2F]; the result is [T, F]."""
    result: Tensor = _SwiGLU.apply(gate_up_T2F)
    return result


class _SwiGLU(torch.autograd.Function):
    """See the module's docstring."""

    @staticmethod
    def forward(ctx: Any, gate_up_T2F: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_T2F)
        gate_TF, up_TF = gate_up_T2F.chunk(2, dim=1)
        return torch.nn.functional.silu(gate_TF).mul_(up_TF)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor]:
        (gate_up_T2F,) = ctx.saved_tensors
        gate_TF, up_TF = gate_up_T2F.chunk(2, dim=1)
        grad_TF = grads[0]
        grad_gate_up_T2F = torch.empty_like(gate_up_T2F)
        grad_gate_TF, grad_up_TF = grad_gate_up_T2F.chunk(2, dim=1)
        sigma_TF = torch.sigmoid(gate_TF)
        silu_TF = gate_TF * sigma_TF
        torch.mul(grad_TF, silu_TF, out=grad_up_TF)
        # σ (1 + gate (1 − σ)) = σ + silu − silu σ
        slope_TF = silu_TF.addcmul_(silu_TF, sigma_TF, value=-1).add_(sigma_TF)
        torch.mul(slope_TF.mul_(up_TF), grad_TF, out=grad_gate_TF)
        return (grad_gate_up_T2F,)
