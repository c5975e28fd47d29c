"""The head and the cross-entropy of learned tokens in one pass, in chunks, with the gradient made on the way forward.

    logits_NV = h_ND W_VDᵀ          loss = Σ_n (logsumexp_v logits_nv − logits_n,target)
    dh = (softmax(logits) − onehot(target)) W

A chunk's logits are turned into their own gradient in place and then dropped, so that memory is chunk · V numbers, not
N · V, and the head's weight is multiplied twice, not three times. The head is frozen. The loss is a sum: the caller
divides once, by the learned tokens of the whole step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def linear_cross_entropy(hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, chunk: int) -> Tensor:
    """The summed loss of N learned tokens: float32 scalar.

    Args:
        hidden_ND: normalised hidden states of the tokens that are learned [N, D].
        head_VD: the frozen head [V, D], in the dtype of hidden.
        targets_N: int64 [N], the token that comes next.
        chunk: rows whose logits exist at one time.

    Returns:
        Σ −log p(target), differentiable in hidden.
    """
    result: Tensor = _LinearCrossEntropy.apply(hidden_ND, head_VD, targets_N, chunk)
    return result


class _LinearCrossEntropy(torch.autograd.Function):
    """See the module's docstring."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, chunk: int) -> Tensor:
        with_gradient = ctx.needs_input_grad[0]
        grad_ND = torch.empty_like(hidden_ND) if with_gradient else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        for start in range(0, hidden_ND.shape[0], chunk):
            rows = slice(start, start + chunk)
            logits_CV = (hidden_ND[rows] @ head_VD.T).float()
            targets_C1 = targets_N[rows, None]
            total_C1 = torch.logsumexp(logits_CV, dim=1, keepdim=True)
            loss += (total_C1 - logits_CV.gather(1, targets_C1)).sum()
            if grad_ND is not None:
                slope_CV = logits_CV.sub_(total_C1).exp_()
                slope_CV.scatter_add_(1, targets_C1, torch.full_like(total_C1, -1.0))
                torch.matmul(slope_CV.to(head_VD.dtype), head_VD, out=grad_ND[rows])
        if grad_ND is not None:
            ctx.save_for_backward(grad_ND)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad_ND,) = ctx.saved_tensors
        return grad_ND * grads[0].to(grad_ND.dtype), None, None, None
