"""The loss of held-out samples: Σ weight · loss / Σ weight over their learned tokens, nothing of training touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from strop.data.packing import pack
from strop.data.records import Example
from strop.model.batch import Batch, uploads
from strop.model.lora import Adapter


@dataclass(frozen=True, slots=True)
class Loss:
    """Mean loss over learned tokens by their weights, and how many those are."""

    mean: float
    learned_tokens: int


class Measure(Protocol):
    """Computes the summed loss of a pack: an engine, or a decoder as the reference."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def loss(self, batch: Batch, adapter: Adapter | None) -> Tensor:
        """Summed loss of a pack's learned tokens, each times its weight, dropout off."""


def held_out_loss(
    measure: Measure,
    adapter: Adapter | None,
    examples: Sequence[Example],
    pack_tokens: int,
    share_prefixes: bool = False,
) -> Loss | None:
    """The loss of samples, or None where there are none.

    Args:
        measure: what computes it.
        adapter: the adapter, or None for the base alone.
        examples: the samples.
        pack_tokens: most tokens in a pack.
        share_prefixes: compute what samples begin with once a pack; an engine can.
    """
    packs = pack(examples, pack_tokens, share_prefixes)
    learned_tokens = sum(part.learned_tokens for part in packs)
    if not learned_tokens:
        return None
    with torch.no_grad():
        losses = [measure.loss(batch, adapter).double() for batch in uploads(packs, measure.device)]
    # One after another, as the packs come; read once, so that a GPU is waited for once.
    total = sum(torch.stack(losses).tolist())
    return Loss(total / sum(part.weight for part in packs), learned_tokens)
