"""The modules that stand in transformers' tree in place of its own: our linear, the embedding, layers computed again.

What a pass needs beside its tokens (the adapter, the dropout's keys) has no way through transformers' functions: the
modules share a `Pass`, which the decoder fills for as long as a pass and its gradients take.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from strop.kernels.qlora_linear import AdapterMemory, Dropout, FrozenGroup, project, qlora_linear
from strop.kernels.random import key
from strop.model.lora import Adapter


@dataclass(slots=True)
class Pass:
    """What a pass is computed with.

    Attributes:
        adapter: the adapter; None for the base alone.
        drop_keys_T: a key a token, as `strop.kernels.dropout.token_keys` makes them; None without dropout.
    """

    adapter: Adapter | None = None
    drop_keys_T: Tensor | None = None

    @contextmanager
    def using(self, adapter: Adapter | None, drop_keys_T: Tensor | None = None) -> Iterator[None]:
        """Computes with these within."""
        before = self.adapter, self.drop_keys_T
        self.adapter, self.drop_keys_T = adapter, drop_keys_T
        try:
            yield
        finally:
            self.adapter, self.drop_keys_T = before


class QuantizedLinear(nn.Module):
    """A linear whose weight lies in NF4, with its adapter: `strop.kernels.qlora_linear.qlora_linear`.

    Args:
        path: where it is in the tree: the name of its adapter.
        frozen: its weight and bias.
        running: what the pass is computed with.
    """

    def __init__(self, path: str, frozen: FrozenGroup, running: Pass) -> None:
        super().__init__()
        self.path, self.frozen, self.running = path, frozen, running
        self.out_features, self.in_features = frozen.weights[0].shape

    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] → [..., O]."""
        adapter, keys_T = self.running.adapter, self.running.drop_keys_T
        pair = adapter.matrices.get(self.path) if adapter else None
        scale = adapter.scale if adapter else 0.0
        x_TI = x.reshape(-1, self.in_features)
        drop = None
        if pair is not None and keys_T is not None and adapter is not None:
            drop = Dropout(adapter.dropout, keys_T, (key(self.path),))
        if torch.is_grad_enabled() or drop is not None:
            out_TO = qlora_linear(x_TI, self.frozen, [pair], scale, drop)
        else:
            down = x_TI.new_empty(len(x_TI), len(pair[0]) if pair else 0)
            out_TO = x_TI.new_empty(len(x_TI), self.out_features)
            project(x_TI.contiguous(), self.frozen, [pair], scale, None, AdapterMemory(down, down, None), out_TO)
        return out_TO.view(*x.shape[:-1], self.out_features)


class StoredEmbedding(nn.Module):
    """An embedding kept in the dtype of the file; its rows are widened as they are taken.

    Args:
        weight_VD: the embedding.
        dtype: of the rows that it gives.
    """

    def __init__(self, weight_VD: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_VD, requires_grad=False)
        self.dtype = dtype

    def forward(self, tokens: Tensor) -> Tensor:
        """Rows of tokens [..., D]."""
        return nn.functional.embedding(tokens, self.weight).to(self.dtype)


class Layer(nn.Module):
    """A layer of the model, which may keep its input alone and be computed a second time in the backward pass.

    Args:
        layer: transformers' own.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.again = False

    def __getattr__(self, name: str) -> Any:
        """What code of the model reads of its layers, such as the kind of attention."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer gives."""
        if self.again and torch.is_grad_enabled():
            # Dropout is a function of the token: no generator's state has to be put back.
            return checkpoint(self.layer, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
        return self.layer(*args, **kwargs)
