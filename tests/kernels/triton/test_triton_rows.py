"""Kernels that go through rows, against the reference in torch: dtypes, ragged shapes, rows that lie apart."""

import pytest
import torch

from strop.kernels import activation, dropout, layer_norm, rms_norm, rope, select, swiglu

pytestmark = pytest.mark.usefixtures("triton")

# float32: what another order of a sum changes. 16 bits: a rounding or two of the largest numbers.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
each_shape = pytest.mark.parametrize("shape", [(1, 8), (3, 64), (5, 100), (2, 1500)], ids=str)


def draw(device, dtype, *shape, spare=0, seed=0):
    """Random numbers in rows that lie ``spare`` numbers apart."""
    numbers = torch.randn(*shape[:-1], shape[-1] + spare, generator=torch.Generator().manual_seed(seed))
    return numbers.to(device, dtype)[..., : shape[-1]]


def close(ours, theirs, dtype):
    scale = theirs.double().abs().max().clamp(min=1)
    assert (ours.double() - theirs.double()).abs().max() <= TOLERANCE[dtype] * scale


@each_dtype
@each_shape
@pytest.mark.parametrize("spare", [0, 3])
def test_rms_norm(device, dtype, shape, spare):
    x, grad = (draw(device, dtype, *shape, spare=spare, seed=seed) for seed in (1, 2))
    weight = draw(device, torch.float32, shape[1], seed=3) + 2
    out, into = draw(device, dtype, *shape, spare=spare), draw(device, dtype, *shape, spare=spare, seed=4)
    before = into.double()
    leaf = x.double().requires_grad_()
    y = torch.nn.functional.rms_norm(leaf, (shape[1],), weight.double(), 1e-5)
    y.backward(grad.double())
    assert rms_norm.normalize(x, weight, 1e-5, out) is out
    rms_norm.normalize_backward(grad, x, weight, 1e-5, into)
    close(out, y, dtype)
    close(into, before + leaf.grad, dtype)


@each_dtype
@each_shape
def test_layer_norm(device, dtype, shape):
    x, grad = (draw(device, dtype, *shape, spare=5, seed=seed) + 1 for seed in (1, 2))
    weight, bias = draw(device, torch.float32, shape[1], seed=3) + 2, draw(device, torch.float32, shape[1], seed=5)
    out, into = draw(device, dtype, *shape, spare=5), draw(device, dtype, *shape, spare=5, seed=4)
    before = into.double()
    leaf = x.double().requires_grad_()
    y = torch.nn.functional.layer_norm(leaf, (shape[1],), weight.double(), bias.double(), 1e-5)
    y.backward(grad.double())
    assert layer_norm.normalize(x, weight, bias, 1e-5, out) is out
    layer_norm.normalize_backward(grad, x, weight, 1e-5, into)
    close(out, y, dtype)
    close(into, before + leaf.grad, dtype)


@pytest.mark.parametrize("norm", [rms_norm, layer_norm])
def test_rows_of_several_heads_are_normalised_head_by_head(device, norm):
    x, grad = draw(device, torch.float32, 7, 5 * 24, spare=9, seed=1), draw(device, torch.float32, 7, 5 * 24, seed=2)
    weight, into = draw(device, torch.float32, 24, seed=3), draw(device, torch.float32, 7, 5 * 24, seed=4)
    rest = (weight,) if norm is layer_norm else ()
    results = {}
    for choice in ("triton", "torch"):
        with select.forced(choice):
            results[choice] = norm.normalize(x, weight, *rest, 1e-5, torch.empty_like(grad)), into.clone()
            norm.normalize_backward(grad, x, weight, 1e-5, results[choice][1])
    for ours, theirs in zip(*results.values(), strict=True):
        close(ours, theirs, torch.float32)
    piece = norm.normalize(x[:, 24:48], weight, *rest, 1e-5, torch.empty(7, 24, device=device))
    close(results["triton"][0][:, 24:48], piece, torch.float32)


@each_dtype
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("tokens", "heads", "size", "angles"), [(1, 1, 4, 2), (5, 3, 16, 8), (4, 9, 20, 6), (3, 40, 64, 32)]
)
def test_rope(device, dtype, interleaved, tokens, heads, size, angles):
    whole = draw(device, dtype, tokens, heads * size + 7, seed=1)
    x = whole[:, : heads * size].unflatten(1, (heads, size))
    turns = torch.arange(tokens, device=device)[:, None] * draw(device, torch.float32, angles, seed=2)
    cos, sin = turns.cos(), turns.sin()
    expected = rope.rope(x.double(), cos, sin, interleaved=interleaved)
    before, behind = x.clone(), whole[:, heads * size :].clone()
    rope.rotate_(x, cos, sin, interleaved=interleaved)
    close(x, expected, dtype)
    assert torch.equal(x[..., 2 * angles :], before[..., 2 * angles :])
    rope.rotate_(x, cos, sin, inverse=True, interleaved=interleaved)
    close(x, before, dtype)
    assert torch.equal(whole[:, heads * size :], behind)


@each_dtype
@pytest.mark.parametrize("shape", [(1, 4), (3, 70), (2, 2500)], ids=str)
@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("gated", [True, False])
def test_activation(device, dtype, shape, name, gated):
    rows, columns = shape
    inputs = draw(device, dtype, rows, columns * (1 + gated), spare=3, seed=1) * 3
    grad = draw(device, dtype, rows, columns, spare=1, seed=2)
    leaf = inputs.double().requires_grad_()
    y = activation.unit(leaf, name, gated=gated)
    y.backward(grad.double())
    out = draw(device, dtype, rows, columns, spare=2)
    assert activation.apply(inputs, name, out, gated=gated) is out
    close(out, y, dtype)
    activation.apply_backward_(grad, inputs, name, gated=gated)
    close(inputs, leaf.grad, dtype)


def test_the_gated_unit_alone(device):
    gate_up, grad = draw(device, torch.float32, 4, 60, seed=1), draw(device, torch.float32, 4, 30, seed=2)
    expected, ours = swiglu.swiglu(gate_up), swiglu.gate(gate_up, torch.empty_like(grad))
    close(ours, expected, torch.float32)
    with select.forced("torch"):
        theirs = gate_up.clone()
        swiglu.gate_backward_(grad, theirs)
    swiglu.gate_backward_(grad, gate_up)
    close(gate_up, theirs, torch.float32)


@each_dtype
@pytest.mark.parametrize("probability", [0.05, 0.5, 0.9])
def test_dropout_has_the_bits_of_the_reference(device, dtype, probability):
    x, into = draw(device, dtype, 6, 1100, spare=4, seed=1), draw(device, dtype, 6, 1100, spare=2, seed=2)
    keys = dropout.token_keys(2**31 + 77, torch.arange(6, device=device) // 4, torch.arange(6, device=device) % 4)
    for salt in (1, 2**31, 2**32 - 1):
        expected = dropout.dropout(x, keys, salt, probability)
        assert torch.equal(dropout.dropout_into(x, keys, salt, probability, torch.empty_like(x)), expected)
        sums = into + expected
        ours = into.clone()
        dropout.add_dropped(x, keys, salt, probability, ours)
        assert torch.equal(ours, sums)
    cpu = dropout.keep_mask(keys.cpu(), salt, 1100, probability)
    assert torch.equal(dropout.dropout_into(torch.ones_like(x), keys, salt, probability, ours).cpu() != 0, cpu)


@pytest.mark.parametrize("rows", [0, 1])
def test_packs_without_tokens(device, rows):
    x = torch.ones(rows, 8, device=device)
    keys, angles = torch.zeros(rows, dtype=torch.int64, device=device), torch.zeros(rows, 2, device=device)
    assert rms_norm.normalize(x, x.new_ones(8), 1e-5, torch.empty_like(x)).shape == x.shape
    assert layer_norm.normalize(x, x.new_ones(8), x.new_ones(8), 1e-5, torch.empty_like(x)).shape == x.shape
    assert swiglu.gate(torch.cat([x, x], 1), torch.empty_like(x)).shape == x.shape
    assert dropout.dropout_into(x, keys, 1, 0.5, torch.empty_like(x)).shape == x.shape
    rope.rotate_(x.unflatten(1, (2, 4)), angles + 1, angles)
    assert torch.equal(x, torch.ones_like(x))
