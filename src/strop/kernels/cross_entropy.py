"""The head and the cross-entropy of learned tokens in one pass, in chunks, with the gradient made on the way forward.

    logits_NV = h_ND W_VDᵀ          loss = Σ_n (logsumexp_v logits_nv − logits_n,target)
    dh = (softmax(logits) − onehot(target)) W

Where tokens have weights, each one's loss and its row of dh are multiplied by its own.

A chunk's logits are turned into their own gradient in place and then dropped, so that memory is chunk · V numbers, not
N · V, and the head's weight is multiplied twice, not three times. The head is frozen. The loss is a sum: the caller
divides once, by the weight of the whole step, which is its learned tokens where each weighs 1.

`linear_cross_entropy` is the differentiable reference; `softmax_gradient_` is what it does to a chunk's logits,
natively or by Triton where `strop.kernels.select` says so. Where the head scales its logits or caps them,

    z = cap · tanh(scale · logit / cap)        d logit = (softmax(z) − onehot(target)) · scale · (1 − (z / cap)²)

it can be asked to do that on the way, in the same pass over the logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from strop.kernels import library, select


def linear_cross_entropy(
    hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, chunk: int, weights_N: Tensor | None = None
) -> Tensor:
    """The summed loss of N learned tokens: float32 scalar.

    Args:
        hidden_ND: normalised hidden states of the tokens that are learned [N, D].
        head_VD: the frozen head [V, D], in the dtype of hidden.
        targets_N: int64 [N], the token that comes next.
        chunk: rows whose logits exist at one time.
        weights_N: float32 [N], how much each token counts; None where each counts 1.

    Returns:
        Σ −weight · log p(target), differentiable in hidden.
    """
    result: Tensor = _LinearCrossEntropy.apply(hidden_ND, head_VD, targets_N, chunk, weights_N)
    return result


class _LinearCrossEntropy(torch.autograd.Function):
    """See the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, chunk: int, weights_N: Tensor | None
    ) -> Tensor:
        with_gradient = ctx.needs_input_grad[0]
        grad_ND = torch.empty_like(hidden_ND) if with_gradient else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        for start in range(0, hidden_ND.shape[0], chunk):
            rows = slice(start, start + chunk)
            logits_CV = (hidden_ND[rows] @ head_VD.T).float()
            targets_C1 = targets_N[rows, None]
            total_C1 = torch.logsumexp(logits_CV, dim=1, keepdim=True)
            losses_C1 = total_C1 - logits_CV.gather(1, targets_C1)
            loss += (losses_C1 if weights_N is None else losses_C1 * weights_N[rows, None]).sum()
            if grad_ND is not None:
                slope_CV = logits_CV.sub_(total_C1).exp_()
                slope_CV.scatter_add_(1, targets_C1, torch.full_like(total_C1, -1.0))
                if weights_N is not None:
                    slope_CV *= weights_N[rows, None]
                torch.matmul(slope_CV.to(head_VD.dtype), head_VD, out=grad_ND[rows])
        if grad_ND is not None:
            ctx.save_for_backward(grad_ND)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (grad_ND,) = ctx.saved_tensors
        return grad_ND * grads[0].to(grad_ND.dtype), None, None, None, None


def softmax_gradient_(
    logits_NV: Tensor, targets_N: Tensor, *, scale: float = 1.0, softcap: float | None = None
) -> Tensor:
    """The losses of N learned tokens; overwrites the logits [N, V] with their gradient, softmax − onehot(target).

    Args:
        logits_NV: floating point [N, V]; rows may lie apart.
        targets_N: int64 [N].
        scale: factor of the logits.
        softcap: largest magnitude of scaled logits, reached by tanh; None for none.

    Returns:
        −log p(target) of each token: float64 [N].
    """
    plain = scale == 1.0 and softcap is None
    if plain and (name := _native_name("softmax_gradient", logits_NV, targets_N)):
        return _native_losses(name, logits_NV, targets_N)
    if _uses_triton(logits_NV, targets_N):
        return _triton_losses(logits_NV, targets_N, scale, softcap, gradient=True)
    finished_NV = logits_NV.float() if plain else finish(logits_NV.float(), scale, softcap)
    losses_N, total_N1 = _losses(finished_NV, targets_N)
    slope_NV = (finished_NV if softcap is None else finished_NV.clone()).sub_(total_N1).exp_()
    slope_NV.scatter_add_(1, targets_N[:, None], torch.full_like(total_N1, -1.0))
    if softcap is not None:
        slope_NV *= 1 - (finished_NV / softcap).square_()
    logits_NV.copy_(slope_NV if scale == 1.0 else slope_NV.mul_(scale))
    return losses_N.double()


def token_losses(logits_NV: Tensor, targets_N: Tensor, *, scale: float = 1.0, softcap: float | None = None) -> Tensor:
    """−log p(target) of each of N tokens: float64 [N]; the logits [N, V] stay as they are."""
    plain = scale == 1.0 and softcap is None
    if plain and (name := _native_name("softmax_loss", logits_NV, targets_N)):
        return _native_losses(name, logits_NV, targets_N)
    if _uses_triton(logits_NV, targets_N):
        return _triton_losses(logits_NV, targets_N, scale, softcap, gradient=False)
    return _losses(logits_NV if plain else finish(logits_NV.float(), scale, softcap), targets_N)[0].double()


def finish(logits_NV: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Logits scaled and capped."""
    scaled_NV = logits_NV * scale
    return scaled_NV if softcap is None else torch.tanh(scaled_NV / softcap) * softcap


def _losses(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Losses [N] and the logarithm of the exponentials' sum [N, 1], float32."""
    total_N1 = torch.logsumexp(logits_NV.float(), dim=1, keepdim=True)
    return (total_N1 - logits_NV.gather(1, targets_N[:, None]))[:, 0], total_N1


def _native_name(operation: str, logits_NV: Tensor, targets_N: Tensor) -> str:
    return select.native_name(operation, logits_NV) if select.uses_native(targets_N, dtype=torch.int64) else ""


def _uses_triton(logits_NV: Tensor, targets_N: Tensor) -> bool:
    fits = targets_N.dtype is torch.int64 and targets_N.is_contiguous() and targets_N.device == logits_NV.device
    return fits and select.uses_triton(logits_NV)


def _triton_losses(
    logits_NV: Tensor, targets_N: Tensor, scale: float, softcap: float | None, *, gradient: bool
) -> Tensor:
    from strop.kernels.triton import cross_entropy as kernels

    losses_N = torch.empty(len(targets_N), dtype=torch.float64, device=logits_NV.device)
    kernels.losses(logits_NV, targets_N, losses_N, gradient=gradient, scale=scale, softcap=softcap)
    return losses_N


def _native_losses(name: str, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    losses_N = torch.empty(len(targets_N), dtype=torch.float64)
    library.function(name, "plppll")(
        *(logits_NV.data_ptr(), logits_NV.stride(0), targets_N.data_ptr(), losses_N.data_ptr()), *logits_NV.shape
    )
    return losses_N
