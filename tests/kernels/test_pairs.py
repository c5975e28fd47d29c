"""The operations that write into given memory, in every implementation, against formulas in float64."""

import pytest
import torch
from test_nf4 import CASES

from strop.kernels import library, nf4, select
from strop.kernels.cross_entropy import softmax_gradient_, token_losses
from strop.kernels.dropout import add_dropped, dropout_into, keep_mask, token_keys
from strop.kernels.rms_norm import normalize, normalize_backward
from strop.kernels.rope import rotate_
from strop.kernels.swiglu import gate, gate_backward_
from strop.kernels.widen import widen

SHAPES = [(1, 8), (3, 7), (5, 96), (33, 131), (70, 576), (0, 16)]


@pytest.fixture(params=["torch", "avx512", "avx2", "neon", "plain"], autouse=True)
def implementation(request):
    """Every test runs once in torch and once with each instruction set that this CPU has."""
    if request.param == "torch":
        with select.forced("torch"):
            yield request.param
        return
    if library.native() is None:
        pytest.skip(f"the native library is not used: {library.reason()}")
    before = library.instruction_set()
    if not library.native().strop_use(request.param.encode()):
        pytest.skip(f"this CPU has no {request.param}")
    with select.forced("native"):
        yield request.param
    library.native().strop_use(before.encode())


def generator():
    return torch.Generator().manual_seed(11)


def apart(rows, columns, gap=5):
    """Random numbers in the middle of a wider buffer, whose margins have to stay as they are."""
    wide = torch.randn(rows, columns + 2 * gap, generator=generator())
    return wide, wide[:, gap : gap + columns]


def assert_close(got, want, tolerance=1e-6):
    assert got.shape == want.shape
    assert (got.double() - want).norm() <= tolerance * want.norm() + 1e-30


def assert_margins_kept(wide, before, gap=5):
    assert torch.equal(wide[:, :gap], before[:, :gap])
    assert torch.equal(wide[:, -gap:], before[:, -gap:])


@pytest.mark.parametrize("shape", SHAPES)
def test_normalize_and_its_gradient(shape):
    wide, x = apart(*shape)
    out_wide, out = apart(*shape)
    into_wide, into = apart(*shape)
    margins, into_before = out_wide.clone(), into_wide.clone()
    weight = torch.rand(shape[1], generator=generator()) + 0.5
    grad = torch.randn(shape, generator=generator())
    leaf = x.double().requires_grad_()
    want = leaf * (leaf.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()
    assert normalize(x, weight, 1e-5, out) is out
    assert_close(out, want.detach())
    want.backward(grad.double())
    kept = grad.clone()
    accumulated = into.double() + leaf.grad
    normalize_backward(grad, x, weight, 1e-5, into)
    assert_close(into, accumulated)
    assert torch.equal(grad, kept)
    assert_margins_kept(out_wide, margins)
    assert_margins_kept(into_wide, into_before)
    assert torch.equal(wide, apart(*shape)[0])


def test_normalize_of_tiny_and_huge_rows_is_finite():
    x = torch.stack([torch.zeros(24), torch.full((24,), 1e-20), torch.full((24,), 1e18)])
    out = normalize(x, torch.ones(24), 1e-6, torch.empty(3, 24))
    assert torch.equal(out[0], torch.zeros(24))
    assert torch.allclose(out[2], torch.ones(24))


@pytest.mark.parametrize(("rows", "heads", "size"), [(1, 1, 2), (11, 3, 16), (5, 2, 34), (130, 9, 64)])
def test_rotate_and_back(rows, heads, size):
    wide, flat = apart(rows, heads * size)
    before = wide.clone()
    view = flat.view(rows, heads, size)
    x = view.double()
    angles = torch.arange(rows)[:, None] * torch.rand(size // 2, generator=generator())
    cos, sin = angles.cos(), angles.sin()
    rotate_(view, cos, sin)
    first, second = x.chunk(2, dim=-1)
    cos_T1E, sin_T1E = cos[:, None].double(), sin[:, None].double()
    assert_close(view, torch.cat([first * cos_T1E - second * sin_T1E, second * cos_T1E + first * sin_T1E], -1))
    rotate_(view, cos, sin, inverse=True)
    assert_close(view, x)
    assert_margins_kept(wide, before)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("rows", "heads", "size", "turned"), [(11, 3, 16, 16), (5, 2, 34, 10), (130, 9, 64, 32)])
def test_rotate_a_part_of_a_head_and_neighbours(rows, heads, size, turned, interleaved):
    wide, flat = apart(rows, heads * size)
    before = wide.clone()
    view = flat.view(rows, heads, size)
    x = view.double()
    angles = torch.arange(rows)[:, None] * torch.rand(turned // 2, generator=generator())
    cos, sin = angles.cos(), angles.sin()
    # Complex numbers say which two belong together.
    part = x[..., :turned]
    pairs = part.unflatten(-1, (-1, 2)) if interleaved else torch.stack(part.chunk(2, dim=-1), -1)
    numbers = torch.view_as_complex(pairs.contiguous()) * torch.complex(cos, sin).cdouble()[:, None]
    turned_pairs = torch.view_as_real(numbers)
    expected = turned_pairs.flatten(-2) if interleaved else torch.cat(turned_pairs.unbind(-1), -1)
    rotate_(view, cos, sin, interleaved=interleaved)
    assert_close(view, torch.cat([expected, x[..., turned:]], -1))
    rotate_(view, cos, sin, inverse=True, interleaved=interleaved)
    assert_close(view, x)
    assert_margins_kept(wide, before)


@pytest.mark.parametrize("shape", SHAPES)
def test_gate_and_its_gradient(shape):
    rows, columns = shape
    wide, gate_up = apart(rows, 2 * columns)
    wide *= 3
    before = wide.clone()
    grad = apart(rows, columns, 2)[1]
    leaf = gate_up.double().requires_grad_()
    want = torch.nn.functional.silu(leaf[:, :columns]) * leaf[:, columns:]
    want.backward(grad.double())
    out_wide, out = apart(rows, columns)
    assert gate(gate_up, out) is out
    assert_close(out, want.detach())
    gate_backward_(grad, gate_up)
    assert_close(gate_up, leaf.grad)
    assert_margins_kept(wide, before)
    assert_margins_kept(out_wide, apart(rows, columns)[0])


def test_gate_is_right_over_the_whole_range():
    numbers = torch.cat([torch.linspace(-87, 87, 20001), torch.tensor([0.0, -0.0, 1e-30, 1e30, -1e30, 1e4, -1e4])])
    out = gate(torch.cat([numbers, torch.ones_like(numbers)])[None], torch.empty(1, len(numbers)))[0]
    want = torch.nn.functional.silu(numbers.double())
    assert out.isfinite().all()
    assert ((out.double() - want).abs() <= 5e-7 * want.abs() + 1e-33).all()


def test_what_is_no_number_is_not_hidden():
    gate_up = torch.ones(1, 8)
    gate_up[0, 1] = float("nan")
    assert gate(gate_up, torch.empty(1, 4))[0].isnan().tolist() == [False, True, False, False]
    logits = torch.zeros(2, 40)
    logits[1, 38] = float("nan")
    assert token_losses(logits, torch.tensor([0, 0])).isnan().tolist() == [False, True]
    x = torch.ones(1, 20)
    x[0, 17] = float("nan")
    assert normalize(x, torch.ones(20), 1e-6, torch.empty(1, 20)).isnan().all()


@pytest.mark.parametrize("shape", [(1, 7), (13, 300), (3, 49152), (2, 1), (0, 9)])
def test_softmax_gradient_and_losses(shape):
    wide, logits = apart(*shape)
    wide *= 4
    before = wide.clone()
    targets = torch.randint(shape[1], shape[:1], generator=generator())
    want = logits.double().requires_grad_()
    loss = torch.nn.functional.cross_entropy(want, targets, reduction="none")
    loss.sum().backward()
    losses = token_losses(logits, targets)
    assert losses.dtype is torch.float64
    assert_close(losses, loss.detach())
    assert torch.equal(wide, before)
    losses = softmax_gradient_(logits, targets)
    assert losses.dtype is torch.float64
    assert_close(losses, loss.detach())
    assert_close(logits, want.grad, 2e-6)
    assert_margins_kept(wide, before)


def test_softmax_of_extreme_logits(implementation):
    # The reference adds the logarithm to the largest logit before it takes the difference.
    low = -100.0 if implementation == "torch" else -1e30
    logits = torch.tensor([[1e4, -1e4, 0.0], [low, low, low], [5.0, 5.0, 5.0], [-1e30, 0.0, float("-inf")]])
    targets = torch.tensor([1, 0, 2, 1])
    losses = token_losses(logits, targets)
    assert losses.tolist() == pytest.approx([2e4, 1.0986123, 1.0986123, 0.0], rel=1e-5)
    softmax_gradient_(logits, targets)
    third = 1 / 3
    want = [[1, -1, 0], [third - 1, third, third], [third, third, third - 1], [0, 0, 0]]
    assert torch.allclose(logits, torch.tensor(want), atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1 - 1e-12])
def test_dropout_and_its_gradient(shape, probability):
    rows, columns = shape
    wide, x = apart(rows, columns)
    keys = token_keys(77, torch.arange(rows) // 3, torch.arange(rows) % 3)
    salt = 0xFEDCBA98
    scaled = x * keep_mask(keys, salt, columns, probability) * (1.0 / (1.0 - probability))
    out_wide, out = apart(rows, columns)
    assert dropout_into(x, keys, salt, probability, out) is out
    assert torch.equal(out, scaled)
    into_wide, into = apart(rows, columns)
    want = into + scaled
    add_dropped(x, keys, salt, probability, into)
    assert torch.equal(into, want)
    for each in (wide, out_wide, into_wide):
        assert_margins_kept(each, apart(rows, columns)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_widen_is_exact_for_every_number(dtype):
    half = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    out = widen(half, torch.empty(1 << 16))
    numbers = ~half.isnan()
    assert torch.equal(out[numbers].view(torch.int32), half.float()[numbers].view(torch.int32))
    assert torch.equal(out.isnan(), ~numbers)


def test_half_precision_follows_the_reference():
    """What the library has no code for is computed by torch, whatever is chosen."""
    x = torch.randn(6, 32, generator=generator()).half()
    assert_close(normalize(x, torch.ones(32), 1e-5, torch.empty_like(x)), torch.nn.functional.rms_norm(x, (32,)), 1e-2)
    gate_up = torch.randn(6, 64, generator=generator()).half()
    want = torch.nn.functional.silu(gate_up[:, :32].double()) * gate_up[:, 32:].double()
    assert_close(gate(gate_up, torch.empty_like(x)), want, 1e-2)
    logits, targets = torch.randn(4, 50, generator=generator()).half(), torch.arange(4)
    want = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum")
    assert softmax_gradient_(logits, targets).sum().item() == pytest.approx(want.item(), rel=1e-2)
    assert logits.sum(1).abs().max() < 0.05


@pytest.mark.parametrize(("name", "weight"), CASES, ids=[name for name, _ in CASES])
def test_nf4_bytes_are_those_of_torch(name, weight):
    ours = nf4.quantize(weight)
    with select.forced("torch"):
        reference = nf4.quantize(weight)
        values = nf4.dequantize(reference, dtype=weight.dtype)
    for part in ("packed", "absmax8", "nested_absmax", "offset"):
        assert torch.equal(getattr(ours, part), getattr(reference, part)), part
    assert torch.equal(nf4.dequantize(ours, dtype=weight.dtype), values)


def test_nf4_codes_next_to_the_midpoints_are_those_of_torch():
    """Where a last bit decides: whole blocks are multiplied by a reciprocal, partial ones divided."""
    draw = generator()
    for count in [64, 40] * 100:
        absmax = torch.rand(1, generator=draw) + 0.1
        near = nf4._nf4_midpoints().repeat(5)[: count - 1] * absmax
        weight = torch.cat([absmax, near])
        ours = nf4.quantize(weight).packed
        with select.forced("torch"):
            assert torch.equal(ours, nf4.quantize(weight).packed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("columns", "first", "rows"), [(64, 0, 3), (64, 5, 600), (128, 259, 300), (37, 3, 5), (37, 64, 2)]
)
def test_rows_are_those_of_the_whole(columns, first, rows, dtype):
    tensor = nf4.quantize(torch.randn(610, columns, generator=generator()))
    wide = torch.full((rows * columns + 16,), 7.0, dtype=dtype)
    out = wide[8:-8].view(rows, columns)
    assert nf4.dequantize_rows(tensor, first, rows, out) is out
    assert torch.equal(out, nf4.dequantize(tensor, dtype=dtype)[first : first + rows])
    assert (wide[:8] == 7).all()
    assert (wide[-8:] == 7).all()


def test_quantizing_what_does_not_lie_together():
    weight = torch.randn(96, 64, generator=generator())
    assert torch.equal(nf4.quantize(weight.T).packed, nf4.quantize(weight.T.contiguous()).packed)
    assert torch.equal(nf4.quantize(weight.double()).packed, nf4.quantize(weight).packed)
