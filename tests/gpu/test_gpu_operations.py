"""Every operation of the engine on the device, as it is called there, against torch on a CPU in float32.

The operations get strided rows and ragged sizes, as the engine hands them over. What is written beside what was asked
for is seen: outputs lie in wider memory that holds a known number.

float32 agrees to 1e-5 of the size of the result, bfloat16 to 1 %: it keeps 8 bits, and the reference gets the same
rounded operands. Dropout and NF4 agree exactly: they are tables and whole numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from on_card import DEVICE, on_device, relative
from torch import Tensor

from strop.kernels import nf4, select
from strop.kernels.activation import apply, apply_backward_
from strop.kernels.attention import Span, attend, attend_backward
from strop.kernels.cross_entropy import softmax_gradient_, token_losses
from strop.kernels.dropout import add_dropped, dropout_into, token_keys
from strop.kernels.qlora_linear import AdapterMemory, Dropout, FrozenGroup, WeightBuffer, project, project_backward
from strop.kernels.rms_norm import normalize, normalize_backward
from strop.kernels.rope import rotate_

pytestmark = on_device

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
SHAPES = [(1, 64), (3, 576), (257, 4096)]
BESIDE = 7.0

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, size: float = 1.0) -> Tensor:
    """Random numbers on the CPU, the same for both sides."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size).to(dtype)


def apart(values: Tensor) -> Tensor:
    """The same on the device, as columns of wider memory."""
    wide = torch.full((*values.shape[:-1], values.shape[-1] + 16), BESIDE, dtype=values.dtype, device=DEVICE)
    part = wide[..., : values.shape[-1]]
    part.copy_(values)
    return part


def assert_nothing_beside(part: Tensor) -> None:
    """The rest of the wider memory is as it was."""
    wide = part._base
    assert wide is not None
    assert (wide[..., part.shape[-1] :] == BESIDE).all()


def agree(mine: Tensor, theirs: Tensor, dtype: torch.dtype) -> None:
    assert relative(mine, theirs) < TOLERANCE[dtype]


def in_float32(run: Callable[[], None]) -> None:
    """The reference: plain torch."""
    with select.forced("torch"):
        run()


@dtypes
@shapes
def test_norm_and_its_gradient(shape, dtype):
    x, grad, into = (numbers(*shape, dtype=dtype, seed=seed) for seed in (1, 2, 3))
    weight = numbers(shape[1], seed=4)
    out = apart(torch.zeros_like(x))
    normalize(apart(x), weight.to(DEVICE), 1e-5, out)
    added = apart(into)
    normalize_backward(apart(grad), apart(x), weight.to(DEVICE), 1e-5, added)
    wanted, wanted_added = torch.empty(shape), into.float()
    in_float32(lambda: normalize(x.float(), weight, 1e-5, wanted))
    in_float32(lambda: normalize_backward(grad.float(), x.float(), weight, 1e-5, wanted_added))
    agree(out, wanted, dtype)
    agree(added, wanted_added, dtype)
    assert_nothing_beside(out)
    assert_nothing_beside(added)


@dtypes
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("gated", [True, False])
@shapes
def test_units_and_their_gradients(shape, gated, activation, dtype):
    rows, middle = shape
    inputs = numbers(rows, (2 if gated else 1) * middle, dtype=dtype, seed=1, size=2.0)
    grad = numbers(rows, middle, dtype=dtype, seed=2)
    out, ours = apart(torch.zeros(rows, middle, dtype=dtype)), apart(inputs)
    apply(ours, activation, out, gated=gated)
    apply_backward_(apart(grad), ours, activation, gated=gated)
    wanted, theirs = torch.empty(rows, middle), inputs.float()
    in_float32(lambda: apply(theirs, activation, wanted, gated=gated))
    in_float32(lambda: apply_backward_(grad.float(), theirs, activation, gated=gated))
    agree(out, wanted, dtype)
    agree(ours, theirs, dtype)
    assert_nothing_beside(ours)


@dtypes
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("turned", [32, 16])
@pytest.mark.parametrize("inverse", [False, True])
def test_rope(inverse, turned, interleaved, dtype):
    heads = numbers(33, 5 * 64, dtype=dtype, seed=1)
    angles = numbers(33, turned, seed=2, size=3.0)
    cos, sin = angles.cos(), angles.sin()
    ours = apart(heads)
    rotate_(ours.unflatten(1, (5, 64)), cos.to(DEVICE), sin.to(DEVICE), inverse, interleaved=interleaved)
    theirs = heads.float()
    in_float32(lambda: rotate_(theirs.view(33, 5, 64), cos, sin, inverse, interleaved=interleaved))
    agree(ours, theirs, dtype)
    assert_nothing_beside(ours)


@dtypes
@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_dropout_drops_the_same_numbers(probability, dtype):
    x, into = numbers(65, 300, dtype=dtype, seed=1), numbers(65, 300, dtype=dtype, seed=2)
    keys = token_keys(9, torch.arange(65) // 7, torch.arange(65) % 7)
    out, added = apart(torch.zeros_like(x)), apart(into)
    dropout_into(apart(x), keys.to(DEVICE), 1234, probability, out)
    add_dropped(apart(x), keys.to(DEVICE), 1234, probability, added)
    wanted, wanted_added = torch.empty(65, 300), into.float()
    in_float32(lambda: dropout_into(x.float(), keys, 1234, probability, wanted))
    in_float32(lambda: add_dropped(x.float(), keys, 1234, probability, wanted_added))
    assert torch.equal(out.cpu() == 0, wanted == 0)
    agree(out, wanted, dtype)
    agree(added, wanted_added, dtype)


@pytest.mark.parametrize("vocabulary", [7, 49152, 103168])
def test_cross_entropy_and_its_gradient(vocabulary):
    logits = numbers(5, vocabulary, seed=1, size=4.0)
    targets = torch.tensor([0, vocabulary - 1, 3, 5, 2])
    ours = apart(logits)
    alone = token_losses(ours, targets.to(DEVICE))
    losses = softmax_gradient_(ours, targets.to(DEVICE))
    theirs = logits.clone()
    with select.forced("torch"):
        wanted = softmax_gradient_(theirs, targets)
    agree(losses, wanted, torch.float32)
    agree(alone, wanted, torch.float32)
    agree(ours, theirs, torch.float32)
    assert_nothing_beside(ours)


@pytest.mark.parametrize("shape", [(64, 64), (576, 1536), (3, 37), (1024, 4160)], ids=str)
def test_nf4_has_the_same_bytes_and_values(shape):
    weight = numbers(*shape, seed=1, size=0.02)
    cpu, ours = nf4.quantize(weight), nf4.quantize(weight.to(DEVICE)).to("cpu")
    assert torch.equal(cpu.packed, ours.packed)
    # The mean of the scales is a sum, which a card may round otherwise; a code next to a border goes with it.
    assert (cpu.absmax8 != ours.absmax8).sum() <= 1 + cpu.absmax8.numel() // 500
    moved = cpu.to(DEVICE)
    assert torch.equal(nf4.dequantize(moved).cpu(), nf4.dequantize(cpu))
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(nf4.dequantize(moved, dtype=dtype).cpu(), nf4.dequantize(cpu, dtype=dtype))
    if shape[0] > 64:
        part = torch.empty(64, shape[1], device=DEVICE)
        nf4.dequantize_rows(moved, 64, min(64, shape[0] - 64), part)
        assert torch.equal(part.cpu(), nf4.dequantize(cpu)[64:128])


def group(outputs: tuple[int, ...], inputs: int) -> FrozenGroup:
    weights = [nf4.quantize(numbers(rows, inputs, seed=rows, size=0.05)) for rows in outputs]
    return FrozenGroup(weights, numbers(sum(outputs), seed=3), WeightBuffer())


def on_device_group(frozen: FrozenGroup) -> FrozenGroup:
    assert frozen.bias_O is not None
    return FrozenGroup([weight.to(DEVICE) for weight in frozen.weights], frozen.bias_O.to(DEVICE), WeightBuffer())


@dtypes
@pytest.mark.parametrize("probability", [0.0, 0.2])
@pytest.mark.parametrize("tokens", [1, 200])
@pytest.mark.parametrize("outputs", [(192, 64, 64), (320,)])
def test_projections_with_adapters(outputs, tokens, probability, dtype):
    inputs, rank, scale = 128, 8, 2.0
    frozen = group(outputs, inputs)
    pairs = [(numbers(rank, inputs, seed=7), numbers(rows, rank, seed=8)) for rows in outputs]
    adapters = [None if len(outputs) > 1 and place == 1 else pair for place, pair in enumerate(pairs)]
    x, grad = numbers(tokens, inputs, dtype=dtype, seed=5), numbers(tokens, sum(outputs), dtype=dtype, seed=6)
    keys, salts = token_keys(1, torch.arange(tokens), torch.arange(tokens)), tuple(range(len(outputs)))

    def both(device: str, frozen: FrozenGroup, x: Tensor, grad: Tensor, kind: torch.dtype) -> list[Tensor]:
        drop = Dropout(probability, keys.to(device), salts) if probability else None
        mine = [pair and tuple(part.to(device) for part in pair) for pair in adapters]
        grads = [pair and tuple(torch.zeros_like(part) for part in pair) for pair in mine]
        ranks = rank * sum(pair is not None for pair in adapters)
        room = {"device": device, "dtype": kind}
        down = torch.empty(tokens * ranks, **room)
        memory = AdapterMemory(down, torch.empty_like(down), torch.empty(tokens * inputs, **room))
        out, into = torch.empty(tokens, sum(outputs), **room), torch.empty(tokens, inputs, **room)
        project(x.to(device, kind), frozen, mine, scale, drop, memory, out)
        project_backward(grad.to(device, kind), x.to(device, kind), frozen, mine, grads, scale, drop, memory, into)
        return [out, into, *(part for pair in grads if pair for part in pair)]

    ours = both(DEVICE, on_device_group(frozen), x, grad, dtype)
    with select.forced("torch"):
        theirs = both("cpu", frozen, x, grad, torch.float32)
    for mine, other in zip(ours, theirs, strict=True):
        # The weights themselves are rounded to bfloat16 as well.
        assert relative(mine, other) < (1e-5 if dtype is torch.float32 else 2e-2)


SPANS = {
    "one": [Span(0, 190, 0, 0)],
    "ragged": [Span(0, 1, 0, 0), Span(1, 65, 1, 1), Span(65, 67, 65, 65), Span(67, 190, 67, 67)],
    "a shared beginning": [Span(0, 40, 0, 0), Span(40, 100, 0, 40), Span(100, 101, 0, 40), Span(101, 190, 0, 40)],
}


@dtypes
@pytest.mark.parametrize("spans", SPANS.values(), ids=SPANS)
@pytest.mark.parametrize("heads", [(4, 4), (9, 3), (8, 1)], ids=str)
@pytest.mark.parametrize("width", [64, 128])
def test_attention_and_its_gradient(width, heads, spans, dtype):
    total = (heads[0] + 2 * heads[1]) * width
    qkv, grad = numbers(190, total, dtype=dtype, seed=1), numbers(190, heads[0] * width, dtype=dtype, seed=2)
    out, sums = apart(torch.zeros_like(grad)), torch.empty(heads[0], 190, device=DEVICE)
    ours = torch.empty(190, total, dtype=dtype, device=DEVICE)
    attend(apart(qkv), spans, *heads, out, sums)
    attend_backward(apart(qkv), out, apart(grad), sums, spans, *heads, ours)
    wanted, wanted_sums, theirs = (
        torch.empty(190, heads[0] * width),
        torch.empty(heads[0], 190),
        torch.empty(190, total),
    )
    in_float32(lambda: attend(qkv.float(), spans, *heads, wanted, wanted_sums))
    in_float32(lambda: attend_backward(qkv.float(), wanted, grad.float(), wanted_sums, spans, *heads, theirs))
    agree(out, wanted, dtype)
    # The gradient of the scores is a difference of numbers of like size.
    assert relative(ours, theirs) < (2e-5 if dtype is torch.float32 else 2e-2)
    assert_nothing_beside(out)
