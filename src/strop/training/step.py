"""One optimiser step: the packs of its samples forward and backward, one division, one check, one move.

    loss of the step = Σ weight · loss / Σ weight, both over the learned tokens of all packs

Where each token weighs 1 that is the mean over the learned tokens. The sum of the weights is known before the first
pack runs, so each pack's summed loss is divided by it on its way back and nothing is divided twice. Losses and norm are
read once, together, when everything has been launched; nothing moves before they are known to be finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch

from strop.data.packing import Pack
from strop.kernels.random import key
from strop.model.batch import Batch, make_batch, uploads
from strop.model.lora import Adapter
from strop.model.paths import AnyDecoder, AnyEngine
from strop.training.guards import NotFinite


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step found before the optimiser moves: mean loss, gradient norm, and what it read."""

    loss: float
    grad_norm: float
    learned_tokens: int
    tokens: int


@torch.no_grad()
def first_not_finite(decoder: AnyDecoder, batch: Batch, adapter: Adapter, step_key: int | None) -> str:
    """Where a number that is not finite first stands: a matrix of the adapter, or what a layer gives.

    Args:
        decoder: computes the pack once more, layer by layer.
        batch: a pack whose loss is not finite.
        adapter: as it was.
        step_key: as for the gradients.
    """
    for name, matrix in adapter.named().items():
        if not matrix.isfinite().all():
            return name
    try:
        for place, hidden_TD in decoder.stages(batch, adapter, step_key):
            if not hidden_TD.isfinite().all():
                return place
    except (MemoryError, RuntimeError):  # there was memory for one pass, not for two
        return ""
    return "the logits"


def accumulate_gradients(
    engine: AnyEngine, adapter: Adapter, packs: Sequence[Pack], *, seed: int, step: int, clip: float
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
    step_key = key(seed, "dropout", step)
    grads = adapter.zero_gradients()
    losses = [engine.gradients(batch, adapter, weight, step_key) for batch in uploads(packs, engine.device)]
    norm = torch.nn.utils.get_total_norm(grads)
    # A GPU is waited for here, and nowhere else in a step.
    *pack_losses, grad_norm = torch.stack([*losses, norm.double()]).tolist()
    loss_sum = 0.0
    for pack, loss in zip(packs, pack_losses, strict=True):
        loss_sum += loss
        if not isfinite(loss_sum):
            where = first_not_finite(engine.decoder, make_batch(pack, engine.device), adapter, step_key)
            raise NotFinite("loss", [int(sample) for sample in pack.sample_ids_D], step, where)
    if not isfinite(grad_norm):
        named = adapter.named().items()
        first = next((name for name, m in named if m.grad is not None and not m.grad.isfinite().all()), "all gradients")
        raise NotFinite(f"gradient of {first}", [int(sample) for pack in packs for sample in pack.sample_ids_D], step)
    if clip:
        torch.nn.utils.clip_grads_with_norm_(adapter.parameters(), clip, norm)
    learned_tokens, tokens = sum(pack.learned_tokens for pack in packs), sum(pack.read_tokens for pack in packs)
    return StepResult(loss_sum / weight, grad_norm, learned_tokens, tokens)
