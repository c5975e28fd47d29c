"""Root mean square norm (Zhang & Sennrich 2019, arXiv:1910.07467) with a frozen weight.

    r = (mean(x²) + eps)^-½          y = w · (x r)
    g = dy · w                       dx = r (g − x r² · mean(g · x))

The statistics are float32 whatever the dtype of x, as in Hugging Face's `LlamaRMSNorm`. Forward saves x; backward makes
r again. The weight is frozen: it gets no gradient.

`rms_norm` is the differentiable reference; `normalize` and `normalize_backward` are the same pair, written into memory
that the caller gives, natively or by Triton where `strop.kernels.select` says so; there a row may also be several
pieces of D numbers, each normalised by itself: the heads of queries and keys.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from strop.kernels import library, select


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Normalises each row of x [T, D]; the result has x's dtype."""
    result: Tensor = _RMSNorm.apply(x_TD, weight_D, eps)
    return result


class _RMSNorm(torch.autograd.Function):
    """See the module's docstring."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x_TD, weight_D)
        ctx.eps = eps
        normal_TD = (x_TD.float() * _reciprocal_rms(x_TD, eps)).to(x_TD.dtype)
        return normal_TD.mul_(weight_D.to(x_TD.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x_TD, weight_D = ctx.saved_tensors
        return _gradient(grads[0], x_TD, weight_D, ctx.eps).to(x_TD.dtype), None, None


def normalize(x_TD: Tensor, weight_D: Tensor, eps: float, out_TD: Tensor) -> Tensor:
    """Normalises each piece of each row of x [T, pieces · D] into ``out_TD`` and returns it. Rows may lie apart."""
    if select.uses_triton(x_TD, weight_D, out_TD):
        from strop.kernels.triton import rms_norm as kernels

        kernels.normalize(x_TD, weight_D, eps, out_TD)
        return out_TD
    for columns in pieces(x_TD, weight_D):
        _normalize(x_TD[:, columns], weight_D, eps, out_TD[:, columns])
    return out_TD


def pieces(x_TI: Tensor, weight_D: Tensor) -> list[slice]:
    """The columns of each piece of a row."""
    size = len(weight_D)
    return [slice(start, start + size) for start in range(0, x_TI.shape[1], size)]


def _normalize(x_TD: Tensor, weight_D: Tensor, eps: float, out_TD: Tensor) -> None:
    rows, columns = x_TD.shape
    name = select.native_name("normalize", x_TD, out_TD)
    if name and select.uses_native(weight_D):
        library.function(name, "plpfplll")(
            *(x_TD.data_ptr(), x_TD.stride(0), weight_D.data_ptr(), eps),
            *(out_TD.data_ptr(), out_TD.stride(0), rows, columns),
        )
    else:
        out_TD.copy_(rms_norm(x_TD, weight_D, eps))


def normalize_backward(grad_TD: Tensor, x_TD: Tensor, weight_D: Tensor, eps: float, into_TD: Tensor) -> None:
    """Adds dx to ``into_TD``, which may be any gradient that accumulates; ``grad_TD`` stays as it is."""
    if select.uses_triton(grad_TD, x_TD, weight_D, into_TD):
        from strop.kernels.triton import rms_norm as kernels

        kernels.normalize_backward(grad_TD, x_TD, weight_D, eps, into_TD)
        return
    for columns in pieces(x_TD, weight_D):
        _normalize_backward(grad_TD[:, columns], x_TD[:, columns], weight_D, eps, into_TD[:, columns])


def _normalize_backward(grad_TD: Tensor, x_TD: Tensor, weight_D: Tensor, eps: float, into_TD: Tensor) -> None:
    rows, columns = x_TD.shape
    name = select.native_name("normalize_backward", grad_TD, x_TD, into_TD)
    if name and select.uses_native(weight_D):
        library.function(name, "plplpfplll")(
            *(grad_TD.data_ptr(), grad_TD.stride(0), x_TD.data_ptr(), x_TD.stride(0), weight_D.data_ptr(), eps),
            *(into_TD.data_ptr(), into_TD.stride(0), rows, columns),
        )
    else:
        into_TD.add_(_gradient(grad_TD, x_TD, weight_D, eps))


def _gradient(grad_TD: Tensor, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """dx, in float32."""
    x_float_TD = x_TD.float()
    scale_T1 = _reciprocal_rms(x_TD, eps)
    grad_TD = grad_TD.float() * weight_D.float()
    mean_T1 = (grad_TD * x_float_TD).mean(dim=-1, keepdim=True)
    return grad_TD.mul_(scale_T1).sub_(x_float_TD * (scale_T1.pow(3) * mean_T1))


def _reciprocal_rms(x_TD: Tensor, eps: float) -> Tensor:
    x_float_TD = x_TD.float()
    return (x_float_TD.pow(2).mean(dim=-1, keepdim=True) + eps).rsqrt()
