"""NF4 bytes and values against bitsandbytes, which defines them."""

import bitsandbytes.functional as bnb
import pytest
import torch

from strop.kernels import nf4


def tensors():
    generator = torch.Generator().manual_seed(7)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    yield "random", normal(576, 1536) * 0.02
    yield "random, many nested blocks", normal(1024, 2048)
    yield "constant", torch.full((64, 128), 0.37)
    yield "zero", torch.zeros(64, 64)
    yield "zero block among others", torch.cat([torch.zeros(1, 64), normal(7, 64)])
    yield "tiny values", normal(128, 128) * 1e-30
    yield "huge values", normal(128, 128) * 1e30
    yield "mixed magnitudes", normal(256, 256) * torch.logspace(-8, 8, 256)[:, None]
    yield "outliers", normal(128, 256).masked_fill(torch.rand(128, 256, generator=generator) < 0.001, 50.0)
    yield "one weight", normal(1, 1)
    yield "odd width", normal(3, 37)
    yield "odd width, last block of one", normal(1, 65)
    yield "last block partial", normal(10, 100)
    yield "vector", normal(1000)
    yield "halves of the midpoints", nf4._midpoints(torch.tensor(nf4.NF4_CODE)).repeat(64)[: 15 * 64].view(15, 64)
    yield "bfloat16", (normal(64, 192) * 0.1).bfloat16()
    yield "float16", (normal(64, 192) * 0.1).half()


CASES = list(tensors())


@pytest.mark.parametrize(("name", "weight"), CASES, ids=[name for name, _ in CASES])
def test_bytes_and_values_equal_bitsandbytes(name, weight):
    ours = nf4.quantize(weight)
    packed, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    assert torch.equal(ours.packed, packed.reshape(-1))
    assert torch.equal(ours.absmax8, state.absmax.reshape(-1))
    assert torch.equal(ours.nested_absmax, state.state2.absmax)
    assert torch.equal(ours.offset, state.offset)
    theirs = bnb.dequantize_4bit(packed, state)
    assert torch.equal(nf4.dequantize(ours, dtype=weight.dtype), theirs.view(weight.shape))


def test_dynamic_code_equals_bitsandbytes():
    assert torch.equal(nf4._dynamic8_code(torch.device("cpu")), bnb.create_dynamic_map())


@pytest.mark.parametrize("seed", range(20))
def test_nested_codes_equal_bitsandbytes_over_many_scales(seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(4096 + seed, generator=generator) * 10.0 ** (seed - 10)
    codes, state = bnb.quantize_blockwise(values, blocksize=256)
    ours, absmax = nf4._quantize_dynamic8(values)
    assert torch.equal(ours, codes)
    assert torch.equal(absmax, state.absmax)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dequantize_into_a_buffer_equals_a_new_tensor(dtype):
    weight = torch.randn(96, 320)
    tensor = nf4.quantize(weight)
    buffer = torch.full((96 * 320,), float("nan"), dtype=dtype)
    nf4.dequantize(tensor, out=buffer)
    assert torch.equal(buffer.view(96, 320), nf4.dequantize(tensor, dtype=dtype))


def test_round_trip_error_is_that_of_nf4():
    weight = torch.randn(512, 512)
    error = (nf4.dequantize(nf4.quantize(weight)) - weight).norm() / weight.norm()
    assert 0.05 < error < 0.12  # about 9 % on normal weights


def test_denormal_weights_stay_finite_and_tiny():
    weight = torch.randn(64, 64) * 1e-40
    assert nf4.dequantize(nf4.quantize(weight)).abs().max() < 1e-37


def test_a_weight_costs_4_127_bits():
    tensor = nf4.quantize(torch.randn(2048, 2048))
    assert tensor.nbytes * 8 / 2048**2 == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-4)
