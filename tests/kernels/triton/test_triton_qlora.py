"""The linear with NF4 undone inside the product, against the dequantised product of the matrix library."""

import pytest
import torch

from strop.kernels import nf4, qlora_linear
from strop.kernels.dropout import token_keys
from strop.kernels.qlora_linear import AdapterMemory, Dropout, FrozenGroup, WeightBuffer, fuse_up_to, project

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@pytest.fixture(autouse=True)
def off_again():
    assert qlora_linear.fused_rows() == 0, "off until someone has measured"
    yield
    fuse_up_to(0)


@pytest.fixture
def fused(monkeypatch):
    """How many products the kernel computed."""
    kernels = pytest.importorskip("strop.kernels.triton.qlora_matmul")
    calls, given = [], kernels.product
    monkeypatch.setattr(kernels, "product", lambda *args, **settings: calls.append(given(*args, **settings)))
    return calls


def group(device, outputs, inputs, bias):
    generator = torch.Generator().manual_seed(1)
    weights = [nf4.quantize(torch.randn(rows, inputs, generator=generator) * 0.1).to(device) for rows in outputs]
    bias_O = torch.randn(sum(outputs), generator=generator).to(device) if bias else None
    return FrozenGroup(weights, bias_O, WeightBuffer())


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("rows", "outputs", "inputs", "rank", "add"),
    [(1, (48,), 64, 4, False), (19, (70, 16, 16), 128, 3, True), (3, (40, 65), 192, 20, False)],
)
def test_it_is_the_same_projection(device, fused, dtype, rows, outputs, inputs, rank, add):
    generator = torch.Generator().manual_seed(2)
    frozen = group(device, outputs, inputs, bias=add)
    x, before = (torch.randn(rows, size + 8, generator=generator).to(device, dtype) for size in (inputs, sum(outputs)))
    x, before = x[:, :inputs], before[:, : sum(outputs)]
    adapters = [
        None if index == 1 else (torch.randn(rank, inputs, generator=generator), torch.randn(size, rank))
        for index, size in enumerate(outputs)
    ]
    adapters = [pair and tuple(matrix.to(device) * 0.2 for matrix in pair) for pair in adapters]
    keys = token_keys(5, torch.arange(rows), torch.arange(rows)).to(device)
    drop = Dropout(0.3, keys, tuple(range(len(outputs)))) if add else None
    memory = AdapterMemory(*(torch.empty(rows * size, dtype=dtype, device=device) for size in (60, 60, inputs)))
    results = []
    for limit in (rows - 1, rows):
        fuse_up_to(limit)
        results.append(project(x, frozen, adapters, 2.0, drop, memory, before.clone(), add=add).double())
    assert len(fused) == len(outputs)
    assert (results[0] - results[1]).abs().max() <= TOLERANCE[dtype] * results[0].abs().max()


@pytest.mark.usefixtures("triton")
def test_what_it_cannot_do_is_left_to_the_library(device, fused):
    fuse_up_to(64)
    memory = AdapterMemory(torch.empty(0), torch.empty(0), None)
    for frozen in (group(device, (8,), 72, bias=False), group(device, (8,), 64, bias=False)):
        frozen.dense_OI = None if frozen.weights[0].shape[1] == 72 else nf4.dequantize(frozen.weights[0])
        x = torch.randn(3, frozen.weights[0].shape[1], device=device)
        out = project(x, frozen, [None], 1.0, None, memory, torch.empty(3, 8, device=device))
        torch.testing.assert_close(out, x @ nf4.dequantize(frozen.weights[0]).T, atol=1e-5, rtol=1e-5)
    assert fused == []


def test_matrices_that_lie_below_one_another_are_not_copied():
    whole = torch.randn(9, 5)
    stacked = qlora_linear._stacked([whole[1:3], whole[3:4], whole[4:8]])
    assert torch.equal(stacked, whole[1:8])
    assert stacked.data_ptr() == whole[1:].data_ptr()
    for parts in ([whole[1:3], whole[4:8]], [whole[3:4], whole[1:3]], [whole[:2], whole[2:].clone()]):
        copied = qlora_linear._stacked(parts)
        assert torch.equal(copied, torch.cat(parts))
        assert copied.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr()
