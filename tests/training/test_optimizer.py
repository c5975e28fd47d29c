"""The optimiser is AdamW, and its state survives the disk bit by bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from strop.errors import InputError
from strop.model.lora import Adapter
from strop.training.optimizer import STATE_FILE, Optimizer

RATES = [1e-3, 2e-3, 3e-3, 2e-3, 1e-3, 5e-4]


def make(rank: int = 3) -> Adapter:
    """An adapter over two projections, with odd sizes."""
    generator = torch.Generator().manual_seed(2)
    matrices = {
        f"model.layers.0.{name}": (
            torch.randn(rank, 7, generator=generator).requires_grad_(),
            torch.randn(5, rank, generator=generator).requires_grad_(),
        )
        for name in ("self_attn.q_proj", "mlp.up_proj")
    }
    return Adapter(rank, 6.0, 0.0, ("q_proj", "up_proj"), matrices)


def give_gradients(adapter: Adapter, step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for matrix in adapter.parameters():
        matrix.grad = torch.randn(matrix.shape, generator=generator) * 10.0 ** (step % 3 - 1)


def take_steps(adapter: Adapter, optimizer: Optimizer, first: int, end: int) -> None:
    for step in range(first, end):
        give_gradients(adapter, step)
        optimizer.step(RATES[step])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_it_is_torchs_adamw(weight_decay: float):
    ours, theirs = make(), make()
    take_steps(ours, Optimizer(ours, weight_decay), 0, len(RATES))
    adam = torch.optim.AdamW(theirs.parameters(), lr=1.0, weight_decay=weight_decay, foreach=False)
    for step, rate in enumerate(RATES):
        give_gradients(theirs, step)
        adam.param_groups[0]["lr"] = rate
        adam.step()
    for name, matrix in ours.named().items():
        torch.testing.assert_close(matrix, theirs.named()[name], rtol=1e-6, atol=1e-7)


def test_it_is_the_papers_adamw():
    """Loshchilov & Hutter 2019, algorithm 2, in float64."""
    adapter = make()
    expected = [matrix.detach().double() for matrix in adapter.parameters()]
    first, second = ([torch.zeros_like(matrix) for matrix in expected] for _ in range(2))
    optimizer = Optimizer(adapter, weight_decay=0.1)
    for step, rate in enumerate(RATES):
        give_gradients(adapter, step)
        for index, matrix in enumerate(adapter.parameters()):
            gradient = matrix.grad.double()
            first[index] = 0.9 * first[index] + 0.1 * gradient
            second[index] = 0.999 * second[index] + 0.001 * gradient**2
            mean, spread = first[index] / (1 - 0.9 ** (step + 1)), second[index] / (1 - 0.999 ** (step + 1))
            expected[index] -= rate * (mean / (spread.sqrt() + 1e-8) + 0.1 * expected[index])
        optimizer.step(rate)
    for matrix, wanted in zip(adapter.parameters(), expected, strict=True):
        torch.testing.assert_close(matrix.detach().double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_a_state_from_disk_continues_to_the_same_bits(tmp_path: Path, cut: int):
    whole = make()
    take_steps(whole, Optimizer(whole, 0.1), 0, len(RATES))

    before = make()
    optimizer = Optimizer(before, 0.1)
    take_steps(before, optimizer, 0, cut)
    optimizer.write(tmp_path)
    after = make()
    with torch.no_grad():
        for matrix, saved in zip(after.parameters(), before.parameters(), strict=True):
            matrix.copy_(saved)
    resumed = Optimizer(after, 0.1)
    resumed.read(tmp_path, cut)
    take_steps(after, resumed, cut, len(RATES))
    for name, matrix in after.named().items():
        assert torch.equal(matrix, whole.named()[name]), name


def test_the_same_state_is_the_same_file(tmp_path: Path):
    for name in ("a", "b"):
        adapter = make()
        optimizer = Optimizer(adapter, 0.0)
        take_steps(adapter, optimizer, 0, 2)
        (tmp_path / name).mkdir()
        optimizer.write(tmp_path / name)
    assert (tmp_path / "a" / STATE_FILE).read_bytes() == (tmp_path / "b" / STATE_FILE).read_bytes()
    tensors = load_file(tmp_path / "a" / STATE_FILE)
    moments = {f"{name}.{moment}" for name in make().named() for moment in ("exp_avg", "exp_avg_sq")}
    assert set(tensors) == {*moments, "steps"}
    assert tensors.pop("steps").item() == 2
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_a_state_that_does_not_fit_is_refused(tmp_path: Path):
    adapter = make()
    Optimizer(adapter, 0.0).write(tmp_path)
    with pytest.raises(InputError) as caught:
        Optimizer(make(rank=4), 0.0).read(tmp_path, 1)
    assert "model.layers.0.self_attn.q_proj.lora_A.weight.exp_avg does not fit" in caught.value.what
    assert (caught.value.expected, caught.value.found) == ("shape [4, 7]", "shape [3, 7]")

    tensors = load_file(tmp_path / STATE_FILE)
    gone = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight.exp_avg_sq"
    save_file({name: tensor for name, tensor in tensors.items() if name != gone}, tmp_path / STATE_FILE)
    with pytest.raises(InputError) as caught:
        Optimizer(adapter, 0.0).read(tmp_path, 1)
    assert f"{gone} does not fit" in caught.value.what
    assert caught.value.found == "nothing"
