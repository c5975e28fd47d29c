"""Layer norm (Ba et al. 2016, arXiv:1607.06450) with a frozen weight and bias.

    n = (x − mean(x)) · r        r = (mean((x − mean(x))²) + eps)^-½        y = w · n + b
    g = dy · w                   dx = r (g − mean(g) − n · mean(g · n))

The statistics are float32 whatever the dtype of x. `layer_norm` is the differentiable reference;
`normalize` and `normalize_backward` are the same pair, written into memory that the caller gives, by Triton where
`select.uses_triton` says so, natively in bfloat16, else some rows at a time; a row may be several pieces of D numbers,
each by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from strop.kernels import library, select
from strop.kernels.rms_norm import pieces

# Numbers that are worked on at a time: what is made on the way stays in the caches.
_BLOCK_NUMBERS = 1 << 18


def layer_norm(x_TD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
    """Normalises each row of x [T, D]; the result has x's dtype."""
    return torch.nn.functional.layer_norm(x_TD.float(), weight_D.shape, weight_D, bias_D, eps).to(x_TD.dtype)


def normalize(x_TD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, out_TD: Tensor) -> Tensor:
    """Normalises each piece of each row of x [T, pieces · D] into ``out_TD`` and returns it."""
    if select.uses_triton(x_TD, weight_D, bias_D, out_TD):
        from strop.kernels.triton import layer_norm as kernels

        kernels.normalize(x_TD, weight_D, bias_D, eps, out_TD)
        return out_TD
    for columns in pieces(x_TD, weight_D):
        _normalize(x_TD[:, columns], weight_D, bias_D, eps, out_TD[:, columns])
    return out_TD


def _normalize(x_TD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, out_TD: Tensor) -> None:
    name = select.native_name("layer_norm", x_TD, out_TD, only=torch.bfloat16)
    if name and select.uses_native(weight_D, bias_D):
        library.function(name, "plppfplll")(
            *(x_TD.data_ptr(), x_TD.stride(0), weight_D.data_ptr(), bias_D.data_ptr(), eps),
            *(out_TD.data_ptr(), out_TD.stride(0), *x_TD.shape),
        )
        return
    for rows in _blocks(x_TD):
        out_TD[rows] = layer_norm(x_TD[rows], weight_D, bias_D, eps)


def normalize_backward(grad_TD: Tensor, x_TD: Tensor, weight_D: Tensor, eps: float, into_TD: Tensor) -> None:
    """Adds dx to ``into_TD``; ``grad_TD`` stays as it is."""
    if select.uses_triton(grad_TD, x_TD, weight_D, into_TD):
        from strop.kernels.triton import layer_norm as kernels

        kernels.normalize_backward(grad_TD, x_TD, weight_D, eps, into_TD)
        return
    for columns in pieces(x_TD, weight_D):
        _normalize_backward(grad_TD[:, columns], x_TD[:, columns], weight_D, eps, into_TD[:, columns])


def _normalize_backward(grad_TD: Tensor, x_TD: Tensor, weight_D: Tensor, eps: float, into_TD: Tensor) -> None:
    name = select.native_name("layer_norm_backward", grad_TD, x_TD, into_TD, only=torch.bfloat16)
    if name and select.uses_native(weight_D):
        library.function(name, "plplpfplll")(
            *(grad_TD.data_ptr(), grad_TD.stride(0), x_TD.data_ptr(), x_TD.stride(0), weight_D.data_ptr(), eps),
            *(into_TD.data_ptr(), into_TD.stride(0), *x_TD.shape),
        )
        return
    for rows in _blocks(x_TD):
        normal_RD = x_TD[rows].float()
        normal_RD = normal_RD - normal_RD.mean(dim=1, keepdim=True)
        scale_R1 = (normal_RD.square().mean(dim=1, keepdim=True) + eps).rsqrt()
        normal_RD *= scale_R1
        grad_RD = grad_TD[rows].float() * weight_D
        along_R1 = (grad_RD * normal_RD).mean(dim=1, keepdim=True)
        grad_RD -= grad_RD.mean(dim=1, keepdim=True)
        into_TD[rows] += grad_RD.addcmul_(normal_RD, along_R1, value=-1).mul_(scale_R1).to(into_TD.dtype)


def _blocks(x_TD: Tensor) -> list[slice]:
    step = max(1, _BLOCK_NUMBERS // x_TD.shape[1])
    return [slice(start, min(start + step, len(x_TD))) for start in range(0, len(x_TD), step)]
