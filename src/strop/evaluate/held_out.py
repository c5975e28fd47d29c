"""The loss of held-out samples: Σ weight · loss / Σ weight over their learned tokens, nothing of training touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from strop.data.packing import pack
from strop.data.records import Example
from strop.model.batch import Batch, make_batch
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

    def loss(self, batch: Batch, adapter: Adapter | None) -> float | Tensor:
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
    total, weight, learned_tokens = 0.0, 0.0, 0
    for part in pack(examples, pack_tokens, share_prefixes):
        with torch.no_grad():
            total += float(measure.loss(make_batch(part, measure.device), adapter))
        weight += part.weight
        learned_tokens += part.learned_tokens
    return Loss(total / weight, learned_tokens) if learned_tokens else None
