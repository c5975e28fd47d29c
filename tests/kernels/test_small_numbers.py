"""In bfloat16 the adapters' part of a projection is kept though it is small beside the base's."""

from __future__ import annotations

import pytest
import torch

from strop.kernels import nf4
from strop.kernels.dropout import token_keys
from strop.kernels.qlora_linear import AdapterMemory, Dropout, FrozenGroup, WeightBuffer, project, project_backward

TOKENS, INPUTS, RANK = 512, 256, 8
OUTPUTS = (192, 64)


def mixed(dtype: torch.dtype, size: float, probability: float):
    """Outputs and input's gradient of a group whose adapters give ``size`` beside the base's 8 or so."""
    generator = torch.Generator().manual_seed(4)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    weights = [nf4.quantize(numbers(rows, INPUTS) * 0.5) for rows in OUTPUTS]
    frozen = FrozenGroup(weights, numbers(sum(OUTPUTS)), WeightBuffer())
    x, grad = numbers(TOKENS, INPUTS).bfloat16().to(dtype), numbers(TOKENS, sum(OUTPUTS)).bfloat16().to(dtype)
    a, b = numbers(RANK, INPUTS) / INPUTS**0.5, numbers(OUTPUTS[0], RANK) * size / RANK**0.5
    adapters = [(a.bfloat16().float(), b.bfloat16().float()), None]
    grads = [tuple(torch.zeros_like(part) for part in adapters[0]), None]
    down = torch.empty(TOKENS * RANK, dtype=dtype)
    room = torch.empty(TOKENS * INPUTS, dtype=dtype)
    memory = AdapterMemory(down, torch.empty_like(down), room)
    places = torch.arange(TOKENS)
    drop = Dropout(probability, token_keys(1, places, places), (5, 6)) if probability else None
    out, into = torch.full((TOKENS, sum(OUTPUTS)), 3.0, dtype=dtype), torch.full((TOKENS, INPUTS), 3.0, dtype=dtype)
    project(x, frozen, adapters, 1.0, drop, memory, out)
    project_backward(grad, x, frozen, adapters, grads, 1.0, drop, memory, into)
    return out.float(), into.float()


@pytest.mark.parametrize("probability", [0.0, 0.2])
def test_a_part_below_half_a_unit_in_the_last_place_is_kept(probability):
    """Its mean effect, along the direction that float32 gives it, is whole; base first, less than a third was left."""
    size = 0.004
    with_part, without = (mixed(torch.bfloat16, each, probability) for each in (size, 0.0))
    exact, plain = (mixed(torch.float32, each, probability) for each in (size, 0.0))
    for mine, none, wanted, nothing in zip(with_part, without, exact, plain, strict=True):
        part = wanted - nothing
        assert 0 < part.abs().mean() < 0.02 * nothing.abs().mean()
        kept = ((mine - nothing) * part).sum() / (part * part).sum()
        # What is left of noise, without the part, is no part of it.
        noise = ((none - nothing) * part).sum() / (part * part).sum()
        assert kept - noise == pytest.approx(1.0, abs=0.2)


def test_columns_without_an_adapter_are_the_bases_alone():
    out, _ = mixed(torch.bfloat16, 0.5, 0.0)
    plain, _ = mixed(torch.float32, 0.0, 0.0)
    mine, wanted = out[:, OUTPUTS[0] :], plain[:, OUTPUTS[0] :]
    assert (mine - wanted).norm() < 1e-2 * wanted.norm()
