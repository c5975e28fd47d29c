"""The head of a model of the general path: its logits and losses of learned rows, in chunks.

Where logits are hidden · Wᵀ alone, the loss is `strop.kernels.cross_entropy.linear_cross_entropy`. Where the model does
more with them (a factor, a cap, a bias), its own code does it: the model with its base taken out, which is given hidden
states a chunk at a time. Which of both it is, is tried with numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from strop.kernels.cross_entropy import linear_cross_entropy

_TRIED_ROWS = 4


class GeneralHead:
    """The head, and the loss of learned tokens.

    Args:
        model: the whole model.
        base: the path of its part below the head.
        weight_VD: the head's weight, in the compute dtype.
    """

    def __init__(self, model: Any, base: str, weight_VD: Tensor) -> None:
        self.weight_VD = weight_VD
        self._given = _Given()
        self._rest: Any = _replaced(model, base, self._given)
        self.plain = False

    def find_plain(self, output: Any) -> None:
        """Finds out whether logits are the product alone: on zeros, which a bias shows on, and on large numbers.

        Args:
            output: what the base gave for some tokens.
        """
        hidden = output.last_hidden_state
        generator = torch.Generator().manual_seed(3)
        numbers_ND = torch.randn(_TRIED_ROWS, hidden.shape[-1], generator=generator) * 30
        numbers_ND[0] = 0.0
        hidden_ND = numbers_ND.to(hidden.device, hidden.dtype)
        product_NV = (hidden_ND @ self.weight_VD.T).float()
        found_NV = self.logits(output, hidden_ND)
        if found_NV.shape != product_NV.shape:
            return
        tolerance = 1e-5 if hidden.dtype == torch.float32 else 2e-2
        difference = (found_NV - product_NV).norm() / product_NV.norm()
        self.plain = bool(difference < tolerance) and not found_NV[0].any()

    def logits(self, output: Any, hidden_ND: Tensor) -> Tensor:
        """Logits of hidden states: float32 [N, V].

        Args:
            output: what the base gave, whose other fields the model may read.
            hidden_ND: hidden states after the last norm.
        """
        given = copy.copy(output)
        given.last_hidden_state = hidden_ND[None]
        self._given.output = given
        try:
            ids_1N = torch.zeros(1, len(hidden_ND), dtype=torch.int64, device=hidden_ND.device)
            logits: Tensor = self._rest(input_ids=ids_1N, use_cache=False, return_dict=True).logits
        finally:
            self._given.output = None
        return logits[0].float()

    def loss(self, output: Any, hidden_ND: Tensor, targets_N: Tensor, weights_N: Tensor | None, chunk: int) -> Tensor:
        """Summed loss of learned tokens, each times its weight: float32 scalar, differentiable in ``hidden_ND``."""
        if self.plain:
            return linear_cross_entropy(hidden_ND, self.weight_VD, targets_N, chunk, weights_N)
        result: Tensor = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
            hidden_ND, self, output, targets_N, weights_N, chunk
        )
        return result


class _Given(nn.Module):
    """Stands in the place of the base and gives what was put into it."""

    def __init__(self) -> None:
        super().__init__()
        self.output: Any = None

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        """That."""
        return self.output


class _ChunkedLoss(torch.autograd.Function):
    """The loss through the model's own head; the gradient is made on the way forward, a chunk's logits at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head: GeneralHead,
        output: Any,
        targets_N: Tensor,
        weights_N: Tensor | None,
        chunk: int,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        grad_ND = torch.empty_like(hidden_ND) if wanted else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        for rows in _chunks(len(hidden_ND), chunk):
            with torch.set_grad_enabled(wanted):
                part_CD = hidden_ND[rows].detach().requires_grad_(wanted)
                losses_C = nn.functional.cross_entropy(head.logits(output, part_CD), targets_N[rows], reduction="none")
                part = (losses_C if weights_N is None else losses_C * weights_N[rows]).sum()
                if grad_ND is not None:
                    (grad_ND[rows],) = torch.autograd.grad(part, part_CD)
            loss += part.detach()
        if grad_ND is not None:
            ctx.save_for_backward(grad_ND)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_ND,) = ctx.saved_tensors
        return grad_ND * grads[0].to(grad_ND.dtype), None, None, None, None, None


def _replaced(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """A model of the same modules but for one: shallow copies along its path, each with its own list of modules."""
    name, _, rest = path.partition(".")
    twin = copy.copy(model)
    inner = _replaced(model.get_submodule(name), rest, module) if rest else module
    twin.__dict__["_modules"] = {**model._modules, name: inner}
    return twin


def _chunks(rows: int, chunk: int) -> Iterator[slice]:
    for start in range(0, rows, chunk):
        yield slice(start, start + chunk)
