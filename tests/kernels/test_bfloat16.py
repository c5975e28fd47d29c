"""Row operations on bfloat16: those on float32, rounded once.

Each must give, to the bit, what it gives on the same numbers in float32 (which `test_pairs` holds to float64), rounded
to the nearest by torch; and stay near torch's own bfloat16, which rounds more than once on the way.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from strop.kernels import activation, layer_norm, library, nf4, select
from strop.kernels.cross_entropy import softmax_gradient_, token_losses
from strop.kernels.dropout import add_dropped, dropout_into, token_keys
from strop.kernels.rms_norm import normalize, normalize_backward
from strop.kernels.rope import rotate_
from strop.kernels.swiglu import gate, gate_backward_
from strop.kernels.widen import widen

LOW = torch.bfloat16
GAP = 3

pytestmark = pytest.mark.skipif(library.native() is None, reason=f"native library: {library.reason()}")


@pytest.fixture(params=["avx512", "avx2", "neon", "plain"], autouse=True)
def instruction_set(request):
    """Each that this CPU has; the threads and the set of before come back."""
    before, threads = library.instruction_set(), library.threads()
    if not library.native().strop_use(request.param.encode()):
        pytest.skip(f"this CPU has no {request.param}")
    with select.forced("native"):
        yield request.param
    library.native().strop_use(before.encode())
    library.set_threads(threads)


def numbers(rows: int, columns: int, seed: int, size: float = 1.0) -> Tensor:
    """What bfloat16 holds exactly, as float32."""
    return (torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size).to(LOW).float()


def apart(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The same numbers in the middle of wider rows, whose margins are 7."""
    wide = torch.full((len(values), values.shape[1] + 2 * GAP), 7.0, dtype=dtype)
    inner = wide[:, GAP:-GAP]
    return inner.copy_(values)


def margins_kept(inner: Tensor) -> bool:
    wide = torch.as_strided(inner, (len(inner), inner.stride(0)), (inner.stride(0), 1), 0)
    return bool((wide[:, :GAP] == 7).all() and (wide[:, -GAP:] == 7).all())


# Each: what an operation leaves, of inputs in a dtype. Rows lie apart.


def normed(rows: int, columns: int, dtype: torch.dtype) -> list[Tensor]:
    weight = torch.rand(columns, generator=torch.Generator().manual_seed(1)) + 0.5
    return [normalize(apart(numbers(rows, columns, 2), dtype), weight, 1e-5, apart(torch.zeros(rows, columns), dtype))]


def norm_gradient(rows: int, columns: int, dtype: torch.dtype) -> list[Tensor]:
    weight = torch.rand(columns, generator=torch.Generator().manual_seed(1)) + 0.5
    grad, x, into = (apart(numbers(rows, columns, seed), dtype) for seed in (3, 4, 5))
    normalize_backward(grad, x, weight, 1e-5, into)
    return [into, grad]


def rotated(rows: int, columns: int, dtype: torch.dtype) -> list[Tensor]:
    results = []
    for interleaved in (False, True):
        for inverse in (False, True):
            x = apart(numbers(rows, 2 * columns, 6), dtype)
            angles = torch.arange(rows)[:, None] * torch.linspace(1, 0.01, columns)
            rotate_(x[:, None], angles.cos(), angles.sin(), inverse, interleaved=interleaved)
            results.append(x)
    return results


def gated(rows: int, columns: int, dtype: torch.dtype) -> list[Tensor]:
    return [gate(apart(numbers(rows, 2 * columns, 7, 4.0), dtype), apart(torch.zeros(rows, columns), dtype))]


def gate_gradient(rows: int, columns: int, dtype: torch.dtype) -> list[Tensor]:
    gate_up = apart(numbers(rows, 2 * columns, 8, 4.0), dtype)
    gate_backward_(apart(numbers(rows, columns, 9), dtype), gate_up)
    return [gate_up]


def softmax(rows: int, columns: int, dtype: torch.dtype) -> list[Tensor]:
    logits, targets = apart(numbers(rows, columns, 10, 5.0), dtype), torch.arange(rows) * 7 % columns
    losses = token_losses(logits, targets)
    return [losses, softmax_gradient_(logits, targets), logits]


def dropped(rows: int, columns: int, dtype: torch.dtype) -> list[Tensor]:
    keys = token_keys(5, torch.arange(rows), torch.arange(rows))
    x, into = (apart(numbers(rows, columns, seed), dtype) for seed in (11, 12))
    add_dropped(x, keys, 3, 0.3, into)
    return [into, dropout_into(x, keys, 3, 0.3, apart(torch.zeros(rows, columns), dtype))]


OPERATIONS = (normed, norm_gradient, rotated, gated, gate_gradient, softmax, dropped)
SHAPES = ((1, 1), (3, 7), (2, 16), (5, 33), (4, 100), (203, 150), (33, 1003), (0, 16))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
@pytest.mark.parametrize("threads", [1, 3])
def test_equals_float32_rounded_once(operation: Callable[..., list[Tensor]], shape, threads):
    library.set_threads(threads)
    for mine, exact in zip(operation(*shape, LOW), operation(*shape, torch.float32), strict=True):
        if mine.dtype is torch.float64:  # losses
            assert torch.equal(mine, exact)
            continue
        assert mine.dtype is LOW
        assert torch.equal(mine, exact.to(LOW))
        assert margins_kept(mine)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_is_near_torchs_bfloat16(operation: Callable[..., list[Tensor]]):
    """Torch rounds what it keeps on the way, so that its last bit is not ours; ours is nearer to float32."""
    ours, exact = operation(33, 576, LOW), operation(33, 576, torch.float32)
    with select.forced("torch"):
        theirs = operation(33, 576, LOW)
    for mine, other, wanted in zip(ours, theirs, exact, strict=True):
        size = wanted.double().norm()
        assert (mine.double() - wanted.double()).norm() <= 2e-3 * size
        assert (mine.double() - other.double()).norm() <= 8e-3 * size
        assert (mine.double() - wanted).norm() <= (other.double() - wanted).norm() + 1e-6 * size


def assert_rounded(mine: Tensor, wanted: Tensor) -> None:
    """Within half a unit in the last place of float64, and what float32 loses where large numbers cancel."""
    assert mine.dtype is LOW
    assert margins_kept(mine)
    largest = wanted.abs().amax() if wanted.numel() else 0.0
    assert ((mine.double() - wanted).abs() <= 2**-8 * 1.01 * wanted.abs() + 2e-6 * largest).all()


@pytest.mark.parametrize("shape", [*SHAPES, (9, 2560)], ids=str)
def test_layer_norm_and_its_gradient(shape):
    rows, columns = shape
    weight, bias = numbers(2, columns, 1)
    x, grad, into = (numbers(rows, columns, seed) for seed in (2, 3, 4))
    leaf = (x * 3 + 5).to(LOW).double().requires_grad_()
    normal = torch.nn.functional.layer_norm(leaf, (columns,), weight.double(), bias.double(), 1e-5)
    normal.backward(grad.double())
    x_low, into_low = apart(leaf.detach(), LOW), apart(into, LOW)
    out = layer_norm.normalize(x_low, weight, bias, 1e-5, apart(torch.zeros(rows, columns), LOW))
    assert_rounded(out, normal.detach())
    layer_norm.normalize_backward(apart(grad, LOW), x_low, weight, 1e-5, into_low)
    assert_rounded(into_low, into.double() + leaf.grad)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_units_and_their_gradients(shape, name, gated):
    rows, columns = shape
    inputs, grad = numbers(rows, columns * (2 if gated else 1), 5, 3.0), numbers(rows, columns, 6)
    leaf = inputs.double().requires_grad_()
    unit = activation.unit(leaf, name, gated=gated)
    unit.backward(grad.double())
    mine = apart(inputs, LOW)
    assert_rounded(activation.apply(mine, name, apart(torch.zeros(rows, columns), LOW), gated=gated), unit.detach())
    activation.apply_backward_(apart(grad, LOW), mine, name, gated=gated)
    assert_rounded(mine, leaf.grad)


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
def test_units_are_right_over_the_whole_range(name):
    """Small numbers on the left as well, where 1 + erf has no digits left."""
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, -0.0, 1e-30, 1e30, -1e30, float("nan")])]).to(LOW)
    out = activation.apply(x[None], name, torch.empty(1, len(x), dtype=LOW), gated=False)[0]
    assert out.isnan().tolist() == [False] * (len(x) - 1) + [True]
    exact = x[:-1].double()
    if name == "silu":
        share = torch.sigmoid(exact)
    elif name == "gelu":
        share = torch.erfc(-exact / 2**0.5) / 2
    else:
        share = torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (exact + 0.044715 * exact**3))
    wanted = torch.where(share == 0, 0.0, exact * share)
    assert ((out[:-1].double() - wanted).abs() <= 2**-8 * 1.01 * wanted.abs() + 1e-36).all()


def test_is_the_librarys_and_not_torchs():
    x = torch.zeros(3, 4, dtype=LOW)
    assert select.native_name("gate", x, x[:, :2]) == "gate_bfloat16"
    assert select.native_name("gate", x.float()) == "gate_float32"
    for others in ((x.half(),), (x, x.float()), (x.T,), (x, x.to("meta"))):
        assert select.native_name("gate", *others) == ""
    with select.forced("torch"):
        assert select.native_name("gate", x) == ""


def test_what_is_no_number_or_too_large_is_not_hidden():
    """Every NaN of 16 bits, signalling ones too, and the largest number times 2."""
    bits = torch.arange(-(1 << 15), 1 << 15).to(torch.int16)
    x = bits.view(LOW)[None]
    out = dropout_into(x, torch.zeros(1, dtype=torch.int64), 3, 0.5, torch.empty_like(x))
    exact = dropout_into(x.float(), torch.zeros(1, dtype=torch.int64), 3, 0.5, torch.empty_like(x.float()))
    assert torch.equal(out.isnan(), x.isnan())
    assert torch.equal(out.nan_to_num(7.0), exact.to(LOW).nan_to_num(7.0))
    assert out.isinf().sum() > 2
    logits = torch.zeros(2, 40, dtype=LOW)
    logits[1, 38] = float("nan")
    assert token_losses(logits, torch.tensor([0, 0])).isnan().tolist() == [False, True]
    normal = torch.ones(1, 20, dtype=LOW)
    normal[0, 17] = float("nan")
    assert normalize(normal, torch.ones(20), 1e-6, torch.empty_like(normal)).isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_widen_rounds_every_number_to_the_nearest(dtype):
    half = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    out = widen(half, torch.empty(1 << 16, dtype=LOW))
    assert torch.equal(out.isnan(), half.isnan())
    kept = ~half.isnan()
    assert torch.equal(out[kept].view(torch.int16), half.to(LOW)[kept].view(torch.int16))


@pytest.mark.parametrize("scale", [1.0, 3e-7, 1e-39, 7e4, 1e34])
@pytest.mark.parametrize("count", [64 * 40, 64 * 1037 + 5, 63, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_nf4_weights_are_those_of_float32_rounded(dtype, count, scale):
    """Rows and partial blocks, numbers too small and too large for 16 bits, and what lies behind the result."""
    draw = torch.Generator().manual_seed(count)
    tensor = nf4.quantize(torch.randn(count, generator=draw) * torch.rand(count, generator=draw) * scale)
    with select.forced("torch"):
        exact = nf4.dequantize(tensor)
    room = torch.full((count + 8,), 7.0, dtype=dtype)
    assert torch.equal(nf4.dequantize(tensor, out=room[4:-4]), exact.to(dtype))
    assert (room[:4] == 7).all()
    assert (room[-4:] == 7).all()
