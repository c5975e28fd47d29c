"""The QLoRA linear: frozen NF4 projections with LoRA adapters, for several projections that share one input.

For one projection, with W the dequantised base [O, I], A [R, I], B [O, R], s = alpha / rank, m the dropout:

    y  = x Wᵀ + b + s · (m(x) Aᵀ) Bᵀ
    dx = dy W + mᵀ(s · (dy B) A)
    dA = s · (dy B)ᵀ m(x)         dB = s · dyᵀ (m(x) Aᵀ)

(Hu et al. 2021, arXiv:2106.09685, equation 3; QLoRA, arXiv:2305.14314, equation 5.) W gets no gradient. Forward saves
x alone, once for all projections of the group; backward makes W again from NF4 and m(x) Aᵀ again from x. W is written
into one buffer that all layers share (`WeightBuffer`), the projections of a group below one another, so that a group
is one product in each direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from strop.kernels import nf4
from strop.kernels.dropout import dropout, keep_mask
from strop.kernels.nf4 import NF4Tensor


class WeightBuffer:
    """Memory that every layer dequantises into in turn; grows to the largest group and stays."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def take(self, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A [rows, columns] view of the buffer; what an earlier view held is lost."""
        count = rows * columns
        memory = self._memory
        if memory.dtype is not dtype or memory.device != device or memory.numel() < count:
            # An evaluation may ask first; memory made under inference mode could not be written to in training.
            with torch.inference_mode(False):
                self._memory = memory = torch.empty(count, dtype=dtype, device=device)
        return memory[:count].view(rows, columns)


@dataclass(slots=True)
class FrozenGroup:
    """The frozen weights of the projections that share an input.

    Attributes:
        weights: one NF4 tensor [O_p, I] a projection.
        bias_O: all biases one after another [sum of O_p], or None.
        buffer: where the weights are dequantised to.
        dense_OI: a dequantised copy [sum of O_p, I] kept in memory, or None; same values, no time to make them.
    """

    weights: Sequence[NF4Tensor]
    bias_O: Tensor | None
    buffer: WeightBuffer
    dense_OI: Tensor | None = None
    outputs: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.outputs = tuple(weight.shape[0] for weight in self.weights)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """All weights below one another: [sum of O_p, I] in ``dtype``; valid until the next call."""
        if self.dense_OI is not None and self.dense_OI.dtype is dtype:
            return self.dense_OI
        out_OI = self.buffer.take(sum(self.outputs), self.weights[0].shape[1], dtype, self.weights[0].packed.device)
        for weight, rows in zip(self.weights, out_OI.split(self.outputs), strict=True):
            nf4.dequantize(weight, out=rows)
        return out_OI

    def keep_dense(self, dtype: torch.dtype) -> None:
        """Keeps a dequantised copy from now on."""
        self.dense_OI = self.dequantized(dtype).clone()


@dataclass(frozen=True, slots=True)
class Dropout:
    """Dropout of the adapters' inputs: chance, the tokens' keys [T], and one salt a projection of the group."""

    probability: float
    key_T: Tensor
    salts: tuple[int, ...]


def qlora_linear(
    x_TI: Tensor,
    frozen: FrozenGroup,
    adapters: Sequence[tuple[Tensor, Tensor] | None],
    scale: float,
    drop: Dropout | None = None,
) -> Tensor:
    """Applies a group of projections to their common input.

    Args:
        x_TI: input [T, I].
        frozen: the frozen base of the group.
        adapters: (A [R, I], B [O_p, R]) a projection, or None where it has no adapter.
        scale: alpha / rank.
        drop: dropout on the adapters' inputs, or None.

    Returns:
        All outputs side by side [T, sum of O_p], in the dtype of x.
    """
    flat = [tensor for pair in adapters for tensor in (pair or (None, None))]
    result: Tensor = _QLoRALinear.apply(x_TI, frozen, scale, drop, *flat)
    return result


class _QLoRALinear(torch.autograd.Function):
    """See the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any, x_TI: Tensor, frozen: FrozenGroup, scale: float, drop: Dropout | None, *flat: Tensor | None
    ) -> Tensor:
        weight_OI = frozen.dequantized(x_TI.dtype)
        if frozen.bias_O is None:
            y_TO = x_TI @ weight_OI.T
        else:
            y_TO = torch.addmm(frozen.bias_O.to(x_TI.dtype), x_TI, weight_OI.T)
        for index, y_TP in enumerate(y_TO.split(frozen.outputs, dim=1)):
            a_RI, b_PR = flat[2 * index], flat[2 * index + 1]
            if a_RI is not None and b_PR is not None:
                down_TR = _dropped(x_TI, drop, index) @ a_RI.to(x_TI.dtype).T
                y_TP.addmm_(down_TR, b_PR.to(x_TI.dtype).T, alpha=scale)
        ctx.save_for_backward(x_TI, *flat)
        ctx.frozen, ctx.scale, ctx.drop = frozen, scale, drop
        return y_TO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, *flat = ctx.saved_tensors
        frozen, scale, drop = ctx.frozen, ctx.scale, ctx.drop
        grad_TO = grads[0].contiguous()
        grad_x_TI = grad_TO @ frozen.dequantized(grad_TO.dtype) if ctx.needs_input_grad[0] else None
        grad_flat: list[Tensor | None] = [None] * len(flat)
        for index, grad_TP in enumerate(grad_TO.split(frozen.outputs, dim=1)):
            a_RI, b_PR = flat[2 * index], flat[2 * index + 1]
            if a_RI is None:
                continue
            a_RI_low, b_PR_low = a_RI.to(x_TI.dtype), b_PR.to(x_TI.dtype)
            dropped_TI = _dropped(x_TI, drop, index)
            grad_down_TR = (grad_TP @ b_PR_low) * scale
            grad_flat[2 * index] = (grad_down_TR.T @ dropped_TI).to(a_RI.dtype)
            grad_flat[2 * index + 1] = (grad_TP.T @ (dropped_TI @ a_RI_low.T)).to(b_PR.dtype) * scale
            if grad_x_TI is not None:
                _add_input_gradient(grad_x_TI, grad_down_TR, a_RI_low, drop, index)
        return grad_x_TI, None, None, None, *grad_flat


def _dropped(x_TI: Tensor, drop: Dropout | None, index: int) -> Tensor:
    return x_TI if drop is None else dropout(x_TI, drop.key_T, drop.salts[index], drop.probability)


def _add_input_gradient(
    grad_x_TI: Tensor, grad_down_TR: Tensor, a_RI: Tensor, drop: Dropout | None, index: int
) -> None:
    """Adds mᵀ(grad_down A) in place."""
    if drop is None:
        grad_x_TI.addmm_(grad_down_TR, a_RI)
        return
    keep_TI = keep_mask(drop.key_T, drop.salts[index], a_RI.shape[1], drop.probability)
    grad_x_TI.add_((grad_down_TR @ a_RI) * keep_TI, alpha=1.0 / (1.0 - drop.probability))
