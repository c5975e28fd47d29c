"""NF4 undone by Triton: the reference's values bit by bit in float32, those rounded in 16 bits."""

import pytest
import torch

from strop.kernels import nf4, select

pytestmark = pytest.mark.usefixtures("triton")


def quantized(device, *shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.01, 3, shape[-1])
    return nf4.quantize(weight), nf4.quantize(weight).to(device)


@pytest.mark.parametrize("shape", [(1,), (63,), (64,), (65, 3), (40, 64), (300, 64), (7, 13, 5), (129, 128)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_values_are_the_references(device, shape, dtype):
    here, there = quantized(device, *shape)
    with select.forced("torch"):
        expected = nf4.dequantize(here)
    ours = nf4.dequantize(there, dtype=dtype)
    assert ours.device.type == device.type
    assert torch.equal(ours.cpu(), expected.to(dtype))


def test_a_given_buffer_is_written_and_nothing_behind_it(device):
    here, there = quantized(device, 65, 3)
    memory = torch.full((200,), 7.0, device=device)
    nf4.dequantize(there, out=memory[:195].view(65, 3))
    assert torch.equal(memory[:195].view(65, 3).cpu(), nf4.dequantize(here))
    assert (memory[195:] == 7).all()


@pytest.mark.parametrize("skipped", [1, 2, 3, 4])
def test_bytes_may_begin_anywhere(device, skipped):
    """Kernels read four at a time: a tensor that is part of another has its first where that begins."""
    _, there = quantized(device, 40, 64)
    memory = torch.full((skipped + there.packed.numel(),), 0x77, dtype=torch.uint8, device=device)
    memory[skipped:] = there.packed
    moved = nf4.NF4Tensor(memory[skipped:], there.absmax8, there.nested_absmax, there.offset, there.shape)
    assert torch.equal(nf4.dequantize(moved), nf4.dequantize(there))


@pytest.mark.parametrize(("first", "rows"), [(0, 1), (1, 2), (3, 17), (300, 8), (5, 0)])
@pytest.mark.parametrize("columns", [64, 32])
def test_some_rows(device, first, rows, columns):
    here, there = quantized(device, 310, columns)
    out = torch.empty(rows, columns, device=device)
    assert nf4.dequantize_rows(there, first, rows, out) is out
    assert torch.equal(out.cpu(), nf4.dequantize(here)[first : first + rows])


@pytest.mark.parametrize("shape", [(300, 64), (129, 127)], ids=str)
def test_quantisation_has_the_bytes_of_the_cpu(device, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    ours = nf4.quantize(weight.to(device))
    with select.forced("torch"):
        theirs = nf4.quantize(weight)
    for part in ("packed", "absmax8", "nested_absmax", "offset"):
        assert torch.equal(getattr(ours, part).cpu(), getattr(theirs, part)), part
        assert getattr(ours, part).device.type == device.type
