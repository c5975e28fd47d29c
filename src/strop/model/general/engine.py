"""Losses and gradients of packs through a model of the general path, differentiated by autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from strop.model.batch import Batch
from strop.model.general.decoder import GeneralDecoder
from strop.model.lora import Adapter
from strop.model.workspace import Work


class GeneralEngine:
    """Stands where `strop.model.engine.Engine` does; its memory is autograd's.

    Args:
        decoder: the frozen base.
        work: the largest pack, and how many layers are computed again.
    """

    def __init__(self, decoder: GeneralDecoder, work: Work) -> None:
        self.decoder = decoder
        self.work = work
        decoder.compute_again(work.whole_layers)

    @property
    def tokens(self) -> int:
        """Tokens of the largest pack that was foreseen."""
        return self.work.tokens

    @property
    def device(self) -> torch.device:
        """Where the base lies."""
        return self.decoder.device

    def release(self) -> None:
        """There is nothing to give back: autograd's memory ends with each pass."""

    @torch.no_grad()
    def loss(self, batch: Batch, adapter: Adapter | None) -> Tensor:
        """Summed loss of a pack's learned tokens, each times its weight, dropout off: a float64 scalar."""
        return self.decoder.loss(batch, adapter).double()

    def gradients(self, batch: Batch, adapter: Adapter, weight: float, step_key: int | None = None) -> Tensor:
        """Adds a pack's share of the step's gradients to ``grad`` of the adapter's matrices, which must exist.

        Args:
            batch: the pack.
            adapter: the adapter.
            weight: of all learned tokens of the step together; the gradient is that of the summed loss divided by it.
            step_key: 32 bits that stand for (seed, step) and turn dropout on; None turns it off.

        Returns:
            The pack's summed loss, each token's times its weight: a float64 scalar on the device.
        """
        decoder, total = self.decoder, torch.zeros((), dtype=torch.float64, device=self.device)
        for one in decoder.passes(batch):
            if not len(one.rows_N):
                continue
            # Layers that are computed again in the backward pass need what the forward pass had.
            with torch.enable_grad(), decoder.running.using(adapter, decoder.drop_keys(one, adapter, step_key)):
                loss = decoder.pass_loss(one, adapter, step_key)
                (loss / weight).backward()
            total += loss.detach()
        return total
