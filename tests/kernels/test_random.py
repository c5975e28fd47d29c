"""Randomness as a function: golden values, for ever, and what a source of numbers must be."""

import torch

from strop.kernels.random import hash32, key, uniform


def test_golden_values():
    """Never change these: old runs must resume to the same bits."""
    assert hash32(torch.tensor([0, 1, 2**32 - 1])).tolist() == [0, 1753845952, 1734902346]
    assert key(0, "dropout", 7) == 4161705290
    assert (uniform((2, 2), 7, "a.q_proj") * 2**24).int().tolist() == [[12642832, 15208337], [10643419, 4290389]]


def test_hash32_is_a_bijection_on_a_sample_and_flips_half_the_bits():
    values = torch.arange(1 << 16)
    hashed = hash32(values)
    assert hashed.unique().numel() == values.numel()
    flipped = hash32(values ^ 1) ^ hashed
    bits = sum(((flipped >> bit) & 1).sum().item() for bit in range(32)) / values.numel()
    assert abs(bits - 16) < 0.1


def test_uniform_is_uniform_and_a_function_of_its_name():
    numbers = uniform((500, 200), 0, "a")
    assert 0 <= numbers.min() < numbers.max() < 1
    assert abs(numbers.double().mean().item() - 0.5) < 0.004
    assert abs(numbers.double().var().item() - 1 / 12) < 0.002
    assert torch.equal(numbers, uniform((500, 200), 0, "a"))
    for other in (uniform((500, 200), 0, "b"), uniform((500, 200), 1, "a")):
        both = torch.stack([numbers.flatten(), other.flatten()]).double()
        assert abs(torch.corrcoef(both)[0, 1]) < 0.02
    assert uniform((), 0, "a").shape == ()
