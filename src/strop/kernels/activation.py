"""The nonlinear unit of the decoder's MLP: gated, h = f(gate) · up, or plain, h = f(up).

f is silu, gelu (Hendrycks & Gimpel 2016, arXiv:1606.08415), or gelu_tanh, its approximation of section 2. The gated
unit with silu is `strop.kernels.swiglu`. Gate and up come side by side in one tensor, and their gradients leave so.

`unit` is the differentiable reference; `apply` and `apply_backward_` are the same pair, written into memory that the
caller gives, by Triton where `select.uses_triton` says so, natively in bfloat16, and some rows at a time where torch
computes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from strop.kernels import library, select, swiglu

_BLOCK_NUMBERS = 1 << 18

# As in native/operations.h.
_ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}


def unit(inputs_TG: Tensor, activation: str, *, gated: bool) -> Tensor:
    """h [T, F] for gate and up side by side [T, 2F], or for up alone [T, F].

    Args:
        inputs_TG: what the projections gave.
        activation: "silu", "gelu" or "gelu_tanh".
        gated: whether the first half is a gate.
    """
    if gated and activation == "silu":
        return swiglu.swiglu(inputs_TG)
    if not gated:
        return _activate(inputs_TG, activation)
    gate_TF, up_TF = inputs_TG.chunk(2, dim=1)
    return _activate(gate_TF, activation) * up_TF


def apply(inputs_TG: Tensor, activation: str, out_TF: Tensor, *, gated: bool) -> Tensor:
    """`unit` into ``out_TF`` [T, F], which is returned."""
    if gated and activation == "silu":
        return swiglu.gate(inputs_TG, out_TF)
    if select.uses_triton(inputs_TG, out_TF):
        from strop.kernels.triton import activation as kernels

        kernels.apply(inputs_TG, activation, out_TF, gated=gated)
        return out_TF
    if name := select.native_name("unit", inputs_TG, out_TF, only=torch.bfloat16):
        library.function(name, "plplllii")(
            *(inputs_TG.data_ptr(), inputs_TG.stride(0), out_TF.data_ptr(), out_TF.stride(0), *out_TF.shape),
            *(_ACTIVATIONS[activation], gated),
        )
        return out_TF
    for rows in _blocks(inputs_TG):
        out_TF[rows] = unit(inputs_TG[rows], activation, gated=gated)
    return out_TF


def apply_backward_(grad_TF: Tensor, inputs_TG: Tensor, activation: str, *, gated: bool) -> None:
    """Overwrites the inputs with their gradient, given that of the unit's output [T, F]."""
    if gated and activation == "silu":
        swiglu.gate_backward_(grad_TF, inputs_TG)
        return
    if select.uses_triton(grad_TF, inputs_TG):
        from strop.kernels.triton import activation as kernels

        kernels.apply_backward_(grad_TF, inputs_TG, activation, gated=gated)
        return
    if name := select.native_name("unit_backward", grad_TF, inputs_TG, only=torch.bfloat16):
        library.function(name, "plplllii")(
            *(grad_TF.data_ptr(), grad_TF.stride(0), inputs_TG.data_ptr(), inputs_TG.stride(0), *grad_TF.shape),
            *(_ACTIVATIONS[activation], gated),
        )
        return
    for rows in _blocks(inputs_TG):
        with torch.enable_grad():
            leaf_RG = inputs_TG[rows].detach().clone().requires_grad_()
            h_RF = unit(leaf_RG, activation, gated=gated)
        (inputs_TG[rows],) = torch.autograd.grad(h_RF, leaf_RG, grad_TF[rows])


def _activate(x_TF: Tensor, activation: str) -> Tensor:
    if activation == "silu":
        return silu(x_TF)
    return gelu(x_TF, approximate="tanh" if activation == "gelu_tanh" else "none")


def _blocks(inputs_TG: Tensor) -> list[slice]:
    step = max(1, _BLOCK_NUMBERS // inputs_TG.shape[1])
    return [slice(start, min(start + step, len(inputs_TG))) for start in range(0, len(inputs_TG), step)]
