"""The loss of held-out samples: the mean over their learned tokens, dropout off, nothing of training touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from strop.data.packing import pack
from strop.data.records import Example
from strop.model.batch import make_batch
from strop.model.decoder import Decoder
from strop.model.lora import Adapter


@dataclass(frozen=True, slots=True)
class Loss:
    """Mean loss over learned tokens, and how many those are."""

    mean: float
    learned_tokens: int


@torch.inference_mode()
def held_out_loss(
    decoder: Decoder, adapter: Adapter | None, examples: Sequence[Example], pack_tokens: int
) -> Loss | None:
    """The loss of samples, or None where there are none.

    Args:
        decoder: the base.
        adapter: the adapter, or None for the base alone.
        examples: the samples.
        pack_tokens: most tokens in a pack.
    """
    total, learned_tokens = 0.0, 0
    for part in pack(examples, pack_tokens):
        batch = make_batch(part, decoder.device)
        total += decoder.loss(batch, adapter).item()
        learned_tokens += part.learned_tokens
    return Loss(total / learned_tokens, learned_tokens) if learned_tokens else None
