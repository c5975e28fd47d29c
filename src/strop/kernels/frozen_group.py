"""The frozen weights of projections that share an input, and the memory that they are dequantised into."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from strop.kernels import nf4
from strop.kernels.nf4 import NF4Tensor

# Most weights that are dequantised at one time, 64 MiB in float32: the gate and up projections of a 7B model would
# take 344 MiB. Larger blocks were no faster.
BLOCK_WEIGHTS = 1 << 24


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

    def blocks(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """The weights in blocks of whole rows, each with its rows' place; a block is valid until the next."""
        inputs = self.weights[0].shape[1]
        if self.dense_OI is not None or sum(self.outputs) * inputs <= BLOCK_WEIGHTS:
            yield slice(0, sum(self.outputs)), self.dequantized(dtype)
            return
        # Whole 64-weight blocks of NF4 in every block of rows, whatever the width.
        step = max(BLOCK_WEIGHTS // inputs // nf4.BLOCK, 1) * nf4.BLOCK
        first = 0
        for weight in self.weights:
            for start in range(0, weight.shape[0], step):
                rows = min(step, weight.shape[0] - start)
                block_BI = self.buffer.take(rows, inputs, dtype, weight.packed.device)
                nf4.dequantize_rows(weight, start, rows, block_BI)
                yield slice(first + start, first + start + rows), block_BI
            first += weight.shape[0]

    def keep_dense(self, dtype: torch.dtype) -> None:
        """Keeps a dequantised copy from now on."""
        if self.dense_OI is None:
            outputs, inputs = sum(self.outputs), self.weights[0].shape[1]
            dense_OI = torch.empty(outputs, inputs, dtype=dtype, device=self.weights[0].packed.device)
            for weight, rows in zip(self.weights, dense_OI.split(self.outputs), strict=True):
                nf4.dequantize(weight, out=rows)
            self.dense_OI = dense_OI
