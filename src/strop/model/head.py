"""The two ends of the decoder: rows of the embedding at the bottom, the head and the loss at the top.

Both are frozen and never quantised, and both are large: 0.85 GB each in 16 bits for 103,168 tokens of 4,096 numbers.
Two levers of the plan say where they are. The embedding is in memory, or its rows are read from the model's file, or
gathered from a GPU's host, as they are needed. The head is in memory in the compute dtype, or as the file has it (16
bits), widened block by block: a 16-bit number is a float32 number, so that neither lever changes a result.

Shapes: T tokens, N learned tokens, D hidden, V vocabulary, C rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from strop.kernels.blas import product, product_in_float32
from strop.kernels.cross_entropy import softmax_gradient_, token_losses
from strop.kernels.widen import widen

# Rows that are widened at a time where the caller brings no memory.
_WIDENED_ROWS = 4096


@dataclass(slots=True)
class Embedding:
    """Rows by token.

    Attributes:
        weight_VD: the embedding in any float dtype, on the device or on the host; None where rows are read from the
            file.
        read_rows: token ids [U] → their rows [U, D], from the file.
    """

    weight_VD: Tensor | None
    read_rows: Callable[[Tensor], Tensor] | None = None

    def rows(self, tokens_T: Tensor, host_tokens_T: Tensor | None = None) -> Tensor:
        """Rows of tokens [T, D] on their device, in the dtype that they are kept in.

        Args:
            tokens_T: the tokens.
            host_tokens_T: the same on the host; a GPU is waited for where they are needed and not given.
        """
        if self.weight_VD is not None and self.weight_VD.device == tokens_T.device:
            return self.weight_VD[tokens_T]
        on_host_T = tokens_T.cpu() if host_tokens_T is None else host_tokens_T
        if self.weight_VD is None:
            assert self.read_rows is not None, "an embedding is in memory or in a file"
            unique_U, place_T = on_host_T.unique(return_inverse=True)
            rows_UD = self.read_rows(unique_U)
        else:
            rows_UD, place_T = self.weight_VD, on_host_T
        if tokens_T.device.type != "cuda":
            return rows_UD[place_T].to(tokens_T.device)
        # Pinned anew every time: the allocator gives it to nobody else before the copy out of it is done.
        rows_TD = torch.empty(len(place_T), rows_UD.shape[1], dtype=rows_UD.dtype, pin_memory=True)
        return torch.index_select(rows_UD, 0, place_T, out=rows_TD).to(tokens_T.device, non_blocking=True)

    def write(self, tokens_T: Tensor, out_TD: Tensor, host_tokens_T: Tensor | None = None) -> None:
        """Rows of tokens into given memory [T, D], in its dtype; the arguments are those of `rows`."""
        weight_VD = self.weight_VD
        if weight_VD is not None and weight_VD.dtype is out_TD.dtype and weight_VD.device == out_TD.device:
            torch.index_select(weight_VD, 0, tokens_T, out=out_TD)
        else:
            out_TD.copy_(self.rows(tokens_T, host_tokens_T))

    def keep(self, place: str, device: torch.device) -> None:
        """Keeps it on the "host", pinned, or in the device's "memory"; one that is read from a file stays there."""
        if self.weight_VD is None:
            return
        if place != "host" or device.type != "cuda":
            self.weight_VD = self.weight_VD.to(device)
        elif self.weight_VD.device.type != "cpu":
            self.weight_VD = self.weight_VD.cpu().pin_memory()


@dataclass(slots=True)
class Head:
    """The head, and the loss of learned tokens in chunks.

    Attributes:
        weight_VD: [V, D], in the compute dtype or in 16 bits.
        dtype: the compute dtype.
        stored: the dtype of the model's file.
        bias_V: float32 [V], or None.
        scale: factor of the logits.
        softcap: logits become cap · tanh(logit / cap); None for no cap.
    """

    weight_VD: Tensor
    dtype: torch.dtype
    stored: torch.dtype
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def plain(self) -> bool:
        """Whether logits are the product alone."""
        return self.bias_V is None and self.scale == 1.0 and self.softcap is None

    def finish(self, logits_NV: Tensor) -> Tensor:
        """Logits of the product: bias, scale and cap. Differentiable."""
        if self.bias_V is not None:
            logits_NV = logits_NV + self.bias_V.to(logits_NV.dtype)
        if self.scale != 1.0:
            logits_NV = logits_NV * self.scale
        if self.softcap is not None:
            logits_NV = torch.tanh(logits_NV / self.softcap) * self.softcap
        return logits_NV

    @property
    def dense(self) -> bool:
        """Whether the weight can be multiplied as it lies."""
        return self.weight_VD.dtype is self.dtype

    def logits(self, hidden_ND: Tensor, out_NV: Tensor | None = None, rows_BD: Tensor | None = None) -> Tensor:
        """Logits [N, V].

        Args:
            hidden_ND: normalised hidden states, in the compute dtype.
            out_NV: where to write them.
            rows_BD: memory for a block of widened rows; made where it is not given.
        """
        if out_NV is None:
            out_NV = hidden_ND.new_empty(len(hidden_ND), len(self.weight_VD))
        for rows, weight_BD in self._blocks(rows_BD):
            if out_NV.dtype is self.dtype:
                product(hidden_ND, weight_BD, out_NV[:, rows], transpose_b=True)
            else:
                product_in_float32(hidden_ND, weight_BD.T, out_NV[:, rows])
        if self.bias_V is not None:
            out_NV += self.bias_V.to(out_NV.dtype)
        if self.scale != 1.0:
            out_NV *= self.scale
        if self.softcap is not None:
            out_NV.div_(self.softcap).tanh_().mul_(self.softcap)
        return out_NV

    def loss(
        self,
        hidden_ND: Tensor,
        targets_N: Tensor,
        logits_CV: Tensor,
        rows_BD: Tensor | None = None,
        weights_N: Tensor | None = None,
    ) -> Tensor:
        """The summed loss of N learned tokens: a float64 scalar, which is read when it is needed and not before.

        Args:
            hidden_ND: normalised hidden states.
            targets_N: int64 [N], the tokens that come next.
            logits_CV: memory for a chunk of logits; C is the chunk.
            rows_BD: memory for a block of widened rows.
            weights_N: float32 [N], how much each token counts; None where each counts 1.
        """
        total = torch.zeros((), dtype=torch.float64, device=hidden_ND.device)
        for rows in _chunks(len(hidden_ND), len(logits_CV)):
            chunk_CV = self.logits(hidden_ND[rows], logits_CV[: rows.stop - rows.start], rows_BD)
            total += _weighted_sum(token_losses(chunk_CV, targets_N[rows]), weights_N, rows)
        return total

    def loss_gradient(
        self,
        hidden_ND: Tensor,
        targets_N: Tensor,
        logits_CV: Tensor,
        grad_ND: Tensor,
        rows_BD: Tensor | None = None,
        weights_N: Tensor | None = None,
        slopes_CV: Tensor | None = None,
    ) -> Tensor:
        """The summed loss, a float64 scalar, and its gradient in the hidden states.

        A weight multiplies a row of the gradient [N, D] and not of the logits [N, V]: that is the same, and less.

        Args:
            hidden_ND: normalised hidden states.
            targets_N: int64 [N], the tokens that come next.
            logits_CV: memory for a chunk of logits, which becomes their gradient in place; C is the chunk.
            grad_ND: the gradient is written here.
            rows_BD: memory for a block of widened rows.
            weights_N: float32 [N], how much each token counts; None where each counts 1.
            slopes_CV: memory for the slopes of capped logits, as large as a chunk; made where it is not given.
        """
        total = torch.zeros((), dtype=torch.float64, device=hidden_ND.device)
        for rows in _chunks(len(hidden_ND), len(logits_CV)):
            chunk_CV = self.logits(hidden_ND[rows], logits_CV[: rows.stop - rows.start], rows_BD)
            capped_CV = self._cap_slopes(chunk_CV, slopes_CV)
            total += _weighted_sum(softmax_gradient_(chunk_CV, targets_N[rows]), weights_N, rows)
            if capped_CV is not None:
                chunk_CV *= capped_CV
            slope_CV = chunk_CV.to(self.dtype)
            for number, (columns, weight_BD) in enumerate(self._blocks(rows_BD)):
                product(slope_CV[:, columns], weight_BD, grad_ND[rows], add=number > 0)
        if self.scale != 1.0:
            grad_ND *= self.scale
        if weights_N is not None:
            grad_ND *= weights_N[:, None]
        return total

    def _cap_slopes(self, chunk_CV: Tensor, slopes_CV: Tensor | None) -> Tensor | None:
        """1 − tanh² of capped logits, or None where there is no cap."""
        if self.softcap is None:
            return None
        out_CV = torch.empty_like(chunk_CV) if slopes_CV is None else slopes_CV[: len(chunk_CV)]
        return torch.div(chunk_CV, self.softcap, out=out_CV).square_().neg_().add_(1)

    def _blocks(self, rows_BD: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
        """The weight in the compute dtype in blocks of rows, each with its place; one is valid until the next."""
        if self.dense:
            yield slice(0, len(self.weight_VD)), self.weight_VD
            return
        if rows_BD is None:
            rows_BD = self.weight_VD.new_empty(_WIDENED_ROWS, self.weight_VD.shape[1], dtype=self.dtype)
        for rows in _chunks(len(self.weight_VD), len(rows_BD)):
            yield rows, widen(self.weight_VD[rows], rows_BD[: rows.stop - rows.start])


def _weighted_sum(losses_C: Tensor, weights_N: Tensor | None, rows: slice) -> Tensor:
    """Losses of a chunk, added up in float64 in the order of the rows."""
    return (losses_C if weights_N is None else losses_C * weights_N[rows]).sum()


def _chunks(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]
