"""The gated unit of the decoder's MLP (Shazeer 2020, arXiv:2002.05202): h = silu(gate) · up.

    σ = sigmoid(gate)
    d gate = dh · up · σ (1 + gate (1 − σ))          d up = dh · gate σ

Gate and up come side by side in one tensor, as the grouped projection writes them, and their gradients leave so.
Forward saves that tensor alone.

`swiglu` is the differentiable reference; `gate` and `gate_backward_` are the same pair, written into memory that the
caller gives, natively or by Triton where `strop.kernels.select` says so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from strop.kernels import library, select


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
        grad_gate_up_T2F = torch.empty_like(gate_up_T2F)
        _write_gradient(grads[0], gate_up_T2F, grad_gate_up_T2F)
        return (grad_gate_up_T2F,)


def gate(gate_up_T2F: Tensor, out_TF: Tensor) -> Tensor:
    """silu(gate) · up for gate_up [T, 2F] into ``out_TF`` [T, F], which is returned. Rows may lie apart."""
    rows, columns = out_TF.shape
    if name := select.native_name("gate", gate_up_T2F, out_TF):
        library.function(name, "plplll")(
            gate_up_T2F.data_ptr(), gate_up_T2F.stride(0), out_TF.data_ptr(), out_TF.stride(0), rows, columns
        )
        return out_TF
    if select.uses_triton(gate_up_T2F, out_TF):
        from strop.kernels.triton import activation as kernels

        kernels.apply(gate_up_T2F, "silu", out_TF, gated=True)
        return out_TF
    gate_TF, up_TF = gate_up_T2F.chunk(2, dim=1)
    return torch.mul(torch.nn.functional.silu(gate_TF), up_TF, out=out_TF)


def gate_backward_(grad_TF: Tensor, gate_up_T2F: Tensor) -> None:
    """Overwrites gate_up [T, 2F] with its gradient, given that of the unit's output [T, F]. Rows may lie apart."""
    rows, columns = grad_TF.shape
    if name := select.native_name("gate_backward", grad_TF, gate_up_T2F):
        library.function(name, "plplll")(
            grad_TF.data_ptr(), grad_TF.stride(0), gate_up_T2F.data_ptr(), gate_up_T2F.stride(0), rows, columns
        )
    elif select.uses_triton(grad_TF, gate_up_T2F):
        from strop.kernels.triton import activation as kernels

        kernels.apply_backward_(grad_TF, gate_up_T2F, "silu", gated=True)
    else:
        _write_gradient(grad_TF, gate_up_T2F, gate_up_T2F)


def _write_gradient(grad_TF: Tensor, gate_up_T2F: Tensor, out_T2F: Tensor) -> None:
    """d gate | d up into ``out_T2F``, which may be ``gate_up_T2F`` itself."""
    gate_TF, up_TF = gate_up_T2F.chunk(2, dim=1)
    grad_gate_TF, grad_up_TF = out_T2F.chunk(2, dim=1)
    sigma_TF = torch.sigmoid(gate_TF)
    silu_TF = gate_TF * sigma_TF
    # σ (1 + gate (1 − σ)) = σ + silu − silu σ
    slope_TF = silu_TF.addcmul(silu_TF, sigma_TF, value=-1).add_(sigma_TF).mul_(up_TF)
    torch.mul(grad_TF, silu_TF, out=grad_up_TF)
    torch.mul(slope_TF, grad_TF, out=grad_gate_TF)
