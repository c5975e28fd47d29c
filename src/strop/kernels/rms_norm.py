"""Root mean square norm (Zhang & Sennrich 2019, arXiv:1910.07467) with a frozen weight.

    r = (mean(x²) + eps)^-½          y = w · (x r)
    g = dy · w                       dx = r (g − x r² · mean(g · x))

The statistics are float32 whatever the dtype of x, as in Hugging Face's `LlamaRMSNorm`. Forward saves x; backward makes
r again. The weight is frozen: it gets no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
        x_float_TD = x_TD.float()
        scale_T1 = _reciprocal_rms(x_TD, ctx.eps)
        grad_TD = grads[0].float() * weight_D.float()
        mean_T1 = (grad_TD * x_float_TD).mean(dim=-1, keepdim=True)
        grad_x_TD = grad_TD.mul_(scale_T1).sub_(x_float_TD * (scale_T1.pow(3) * mean_T1))
        return grad_x_TD.to(x_TD.dtype), None, None


def _reciprocal_rms(x_TD: Tensor, eps: float) -> Tensor:
    x_float_TD = x_TD.float()
    return (x_float_TD.pow(2).mean(dim=-1, keepdim=True) + eps).rsqrt()
