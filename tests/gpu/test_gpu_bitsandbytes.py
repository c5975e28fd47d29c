"""NF4 on the device against bitsandbytes there, which defines it; skipped where it is not installed.

On a card bitsandbytes takes the nearest code for a scale, on a CPU one by a grid; Strop does the latter everywhere
(docs/decisions/0003-nf4-bytes.md). The codes of the weights are the same bytes on both.
"""

from __future__ import annotations

import pytest
import torch
from on_card import DEVICE, ON_CARD, made, on_device

from strop.kernels import nf4

pytestmark = on_device

bnb = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")


@pytest.fixture(params=[(64, 64), (576, 1536), (1024, 4096)], ids=str)
def weight(request):
    return (torch.randn(request.param, generator=torch.Generator().manual_seed(1)) * 0.02).to(DEVICE)


def test_codes_are_the_same_bytes(weight):
    packed, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    ours = nf4.quantize(weight)
    assert torch.equal(ours.packed, packed.reshape(-1))
    apart = (ours.absmax8.int() - state.absmax.reshape(-1).int()).abs()
    assert (apart != 0).float().mean() <= (0.01 if ON_CARD else 0.0)
    assert apart.max() <= (1 if ON_CARD else 0)
    assert torch.allclose(ours.nested_absmax, state.state2.absmax, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_values_of_the_same_bytes_are_the_same(weight, dtype):
    packed, state = bnb.quantize_4bit(weight.to(dtype), quant_type="nf4", compress_statistics=True)
    theirs = bnb.dequantize_4bit(packed, state)
    mine = nf4.NF4Tensor(
        packed.reshape(-1), state.absmax.reshape(-1), state.state2.absmax, state.offset.float(), tuple(weight.shape)
    )
    ours = nf4.dequantize(mine, dtype=dtype)
    # A product and a sum may be rounded as one on a card: a unit in the last place of float32.
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    assert torch.allclose(ours.float(), theirs.float(), rtol=tolerance if ON_CARD else 0, atol=0)


def test_made_models_hold_what_bitsandbytes_would_read(tmp_path):
    """The benchmarks' random models are read by both sides as the same weights."""
    from safetensors import safe_open

    from strop.model.load import load_decoder

    folder = made(tmp_path, "tiny")
    name = "model.layers.0.self_attn.q_proj.weight"
    with safe_open(str(next(folder.glob("model-00001-*"))), "pt", device=DEVICE) as file:
        mine = [key for key in file.offset_keys() if key.startswith(name)]
        packed, parts = file.get_tensor(name), {key: file.get_tensor(key) for key in mine if key != name}
    state = bnb.QuantState.from_dict(parts, device=torch.device(DEVICE))
    theirs = bnb.dequantize_4bit(packed, state)
    ours = nf4.dequantize(load_decoder(folder, DEVICE).layers[0].groups[0].weights[0], dtype=theirs.dtype)
    assert torch.allclose(ours.float(), theirs.float(), rtol=2**-7, atol=0)
