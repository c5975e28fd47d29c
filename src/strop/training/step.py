"""One optimiser step: the packs of its samples forward and backward, one division, one check, one move.

    loss of the step = Σ weight · loss / Σ weight, both over the learned tokens of all packs

Where each token weighs 1 that is the mean over the learned tokens. The sum of the weights is known before the first
pack runs, so each pack's summed loss is divided by it on its way back and nothing is divided twice. Nothing moves
before the loss and the gradients are known to be finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch

from strop.data.packing import Pack
from strop.kernels.random import key
from strop.model.batch import make_batch
from strop.model.engine import Engine
from strop.model.lora import Adapter
from strop.training.guards import NotFinite


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step found before the optimiser moves: mean loss, gradient norm, and what it read."""

    loss: float
    grad_norm: float
    learned_tokens: int
    tokens: int


def accumulate_gradients(
    engine: Engine, adapter: Adapter, packs: Sequence[Pack], *, seed: int, step: int, clip: float
) -> StepResult:
    """Leaves the step's gradients in the adapter, clipped to a norm.

    Args:
        engine: computes the gradients of a pack.
        adapter: float32 leaves; what their ``grad`` holds is overwritten.
        packs: all samples of the step.
        seed: the recipe's seed.
        step: the step, from 0; with the seed it names the dropout.
        clip: largest norm of all gradients together; 0 for no clipping.

    Raises:
        NotFinite: the loss or a gradient is NaN or infinite; nothing has moved.
    """
    weight = sum(pack.weight for pack in packs)
    loss_sum = 0.0
    step_key = key(seed, "dropout", step)
    grads = adapter.zero_gradients()
    for pack in packs:
        loss_sum += engine.gradients(make_batch(pack, engine.device), adapter, weight, step_key)
        if not isfinite(loss_sum):
            raise NotFinite("loss", [int(sample) for sample in pack.sample_ids_D])
    norm = torch.nn.utils.get_total_norm(grads)
    grad_norm = norm.item()
    if not isfinite(grad_norm):
        named = adapter.named().items()
        first = next((name for name, m in named if m.grad is not None and not m.grad.isfinite().all()), "all gradients")
        raise NotFinite(f"gradient of {first}", [int(sample) for pack in packs for sample in pack.sample_ids_D])
    if clip:
        torch.nn.utils.clip_grads_with_norm_(adapter.parameters(), clip, norm)
    learned_tokens, tokens = sum(pack.learned_tokens for pack in packs), sum(pack.read_tokens for pack in packs)
    return StepResult(loss_sum / weight, grad_norm, learned_tokens, tokens)
