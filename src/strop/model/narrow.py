"""The adapter's matrices in 16 bits, for products in 16 bits: made once a pass, in one launch, in memory that stays.

The matrices themselves, their gradients and the optimiser's moments are float32; only what is multiplied is rounded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from strop.kernels.qlora_linear import Pair
from strop.model.lora import Adapter


class NarrowCopies:
    """Copies of the matrices in a dtype.

    Args:
        dtype: of the products.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._copies: list[Tensor] = []

    def of(self, adapter: Adapter) -> dict[str, Pair]:
        """The matrices as they are now, by module path; the adapter's own where they need no rounding."""
        matrices = [matrix.detach() for matrix in adapter.parameters()]
        if all(matrix.dtype is self._dtype for matrix in matrices):
            return adapter.matrices
        if [copy.shape for copy in self._copies] != [matrix.shape for matrix in matrices]:
            with torch.inference_mode(False):
                self._copies = _room(matrices, self._dtype)
        torch._foreach_copy_(self._copies, matrices)
        pairs = iter(self._copies)
        return {path: (next(pairs), next(pairs)) for path in adapter.matrices}


def _room(matrices: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Memory for A, B, A, B, …: all A below one another, so that those of a group are multiplied as one; then all B."""
    order = [*range(0, len(matrices), 2), *range(1, len(matrices), 2)]
    sizes = [matrices[index].numel() for index in order]
    flat = torch.empty(sum(sizes), dtype=dtype, device=matrices[0].device)
    rooms = dict(zip(order, flat.split(sizes), strict=True))
    return [rooms[index].view(matrix.shape) for index, matrix in enumerate(matrices)]
