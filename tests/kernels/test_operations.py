"""Each operation against plain torch autograd in float64 (gradcheck) or against torch's own composite, over shapes."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn.functional import cross_entropy, linear, silu
from torch.nn.functional import rms_norm as torch_rms_norm

from strop.kernels import nf4
from strop.kernels.attention import attend_cached, attention
from strop.kernels.cross_entropy import linear_cross_entropy
from strop.kernels.dropout import dropout, keep_mask, token_keys
from strop.kernels.qlora_linear import (
    AdapterMemory,
    Dropout,
    FrozenGroup,
    WeightBuffer,
    project_backward,
    qlora_linear,
)
from strop.kernels.rms_norm import rms_norm
from strop.kernels.rope import rope
from strop.kernels.swiglu import swiglu


def gradients(function, *inputs):
    """Output, and gradients of a random weighting of it."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(3), dtype=output.dtype)
    return output.detach(), torch.autograd.grad((output * weights).sum(), leaves)


def assert_same(ours, theirs, tolerance=2e-6):
    output, grads = ours
    expected, expected_grads = theirs
    for got, want in zip((output, *grads), (expected, *expected_grads), strict=True):
        assert (got - want).norm() <= tolerance * want.norm() + 1e-12


@pytest.mark.parametrize("shape", [(1, 8), (7, 64), (33, 96)])
def test_rms_norm(shape):
    x, weight = torch.randn(shape), torch.rand(shape[1]) + 0.5
    assert_same(
        gradients(lambda x: rms_norm(x, weight, 1e-5), x),
        gradients(lambda x: torch_rms_norm(x, weight.shape, weight, 1e-5), x),
    )


@pytest.mark.parametrize("shape", [(1, 2), (5, 14), (64, 256)])
def test_swiglu(shape):
    gate_up = torch.randn(shape) * 3

    def composite(gate_up):
        gate, up = gate_up.chunk(2, dim=1)
        return silu(gate) * up

    assert_same(gradients(swiglu, gate_up), gradients(composite, gate_up))


@pytest.mark.parametrize("heads", [1, 3])
def test_rope(heads):
    x = torch.randn(11, heads, 16)
    angles = torch.arange(11)[:, None] * torch.rand(8)

    def composite(x):
        first, second = x.chunk(2, dim=-1)
        cos, sin = torch.cat([angles.cos()] * 2, -1)[:, None], torch.cat([angles.sin()] * 2, -1)[:, None]
        return x * cos + torch.cat([-second, first], -1) * sin

    assert_same(gradients(lambda x: rope(x, angles.cos(), angles.sin()), x), gradients(composite, x))


@pytest.mark.parametrize("starts", [[0, 9], [0, 1, 2, 9], [0, 4, 9]])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
def test_attention_is_isolated_and_causal(starts, heads, kv_heads):
    q, k, v = torch.randn(9, heads, 8), torch.randn(9, kv_heads, 8), torch.randn(9, kv_heads, 8)
    document = torch.tensor([sum(start <= t for start in starts) for t in range(9)])
    visible = (document[:, None] == document[None]) & torch.ones(9, 9).tril().bool()

    def composite(q, k, v):
        k, v = (part.repeat_interleave(heads // kv_heads, dim=1) for part in (k, v))
        scores = torch.einsum("the,uhe->htu", q, k) / 8**0.5
        return torch.einsum("htu,uhe->the", scores.masked_fill(~visible, float("-inf")).softmax(-1), v)

    assert_same(gradients(lambda *qkv: attention(*qkv, starts), q, k, v), gradients(composite, q, k, v))


def test_cached_attention_equals_the_last_row_of_attention():
    q, k, v = torch.randn(5, 6, 8), torch.randn(5, 2, 8), torch.randn(5, 2, 8)
    whole = attention(q, k, v, [0, 5])[-1]
    cache_k, cache_v = torch.full((1, 2, 8, 8), 9.0), torch.full((1, 2, 8, 8), 9.0)
    cache_k[0, :, :5], cache_v[0, :, :5] = k.transpose(0, 1), v.transpose(0, 1)
    last = attend_cached(q[-1:], cache_k, cache_v, 4 - torch.arange(8)[None])
    assert torch.allclose(last[0], whole, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 4, 5, 64])
@pytest.mark.parametrize("vocabulary", [7, 300])
def test_linear_cross_entropy(chunk, vocabulary):
    hidden, head = torch.randn(13, 24), torch.randn(vocabulary, 24)
    targets = torch.randint(vocabulary, (13,))
    assert_same(
        gradients(lambda hidden: linear_cross_entropy(hidden, head, targets, chunk), hidden),
        gradients(lambda hidden: cross_entropy(hidden @ head.T, targets, reduction="sum"), hidden),
    )


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_linear_cross_entropy_with_weights(chunk):
    hidden, head = torch.randn(13, 24), torch.randn(50, 24)
    targets, weights = torch.randint(50, (13,)), torch.rand(13) * 3

    def weighted(hidden):
        return (cross_entropy(hidden @ head.T, targets, reduction="none") * weights).sum()

    assert_same(
        gradients(lambda hidden: linear_cross_entropy(hidden, head, targets, chunk, weights), hidden),
        gradients(weighted, hidden),
    )


def test_linear_cross_entropy_of_huge_logits_is_finite():
    hidden = torch.full((3, 4), 200.0, requires_grad=True)
    head = torch.tensor([[100.0] * 4, [-100.0] * 4])
    loss = linear_cross_entropy(hidden, head, torch.tensor([0, 1, 0]), 2)
    loss.backward()
    assert loss.isfinite()
    assert hidden.grad.isfinite().all()


def group(outputs, inputs, bias=False):
    weights = [nf4.quantize(torch.randn(rows, inputs) * 0.1) for rows in outputs]
    return FrozenGroup(weights, torch.randn(sum(outputs)) if bias else None, WeightBuffer())


@pytest.mark.parametrize("outputs", [(48,), (64, 16, 16), (40, 40)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("probability", [0.0, 0.3])
@pytest.mark.parametrize("resident", [False, True])
def test_qlora_linear(outputs, bias, probability, resident):
    inputs, rank, scale = 32, 4, 2.0
    frozen = group(outputs, inputs, bias)
    if resident:
        frozen.keep_dense(torch.float32)
    dense = [nf4.dequantize(weight) for weight in frozen.weights]
    x = torch.randn(10, inputs)
    a = [torch.randn(rank, inputs) for _ in outputs]
    b = [torch.randn(rows, rank) for rows in outputs]
    keys = token_keys(5, torch.arange(10) // 4, torch.arange(10) % 4)
    drop = Dropout(probability, keys, tuple(range(100, 100 + len(outputs)))) if probability else None

    def ours(x, *flat):
        adapters = [None if i == 1 else (flat[2 * i], flat[2 * i + 1]) for i in range(len(outputs))]
        return qlora_linear(x, frozen, adapters, scale, drop)

    def composite(x, *flat):
        parts = []
        for i, weight in enumerate(dense):
            y = linear(x, weight)
            if i != 1:
                dropped = x if drop is None else dropout(x, keys, drop.salts[i], probability)
                y = y + scale * linear(linear(dropped, flat[2 * i]), flat[2 * i + 1])
            parts.append(y)
        y = torch.cat(parts, dim=1) + (0 if frozen.bias_O is None else frozen.bias_O)
        return y + 0 * sum(part.sum() for part in flat)

    def with_unused(x, *flat):
        return ours(x, *flat) + 0 * sum(part.sum() for part in flat)

    flat = [part for pair in zip(a, b, strict=True) for part in pair]
    assert_same(gradients(with_unused, x, *flat), gradients(composite, x, *flat), 5e-6)


def test_qlora_linear_makes_no_input_gradient_where_none_is_needed():
    frozen = group((16,), 32)
    a, b = torch.randn(2, 32, requires_grad=True), torch.randn(16, 2, requires_grad=True)
    x = torch.randn(4, 32)
    y = qlora_linear(x, frozen, [(a, b)], 1.0)
    frozen.weights = []  # backward must not need the base
    y.sum().backward()
    assert a.grad is not None
    assert x.grad is None


def test_gradcheck_of_the_element_wise_operations():
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert gradcheck(swiglu, (x,))
    angles = torch.rand(3, 2, dtype=torch.float64)
    heads = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda heads: rope(heads, angles.cos(), angles.sin()), (heads,))


def test_dropout_mask_depends_on_the_token_and_not_on_its_place_in_the_pack():
    ids, positions = torch.tensor([4, 4, 4, 9, 9]), torch.tensor([0, 1, 2, 0, 1])
    keys = token_keys(1234, ids, positions)
    order = torch.tensor([3, 4, 0, 1, 2])
    moved = token_keys(1234, ids[order], positions[order])
    assert torch.equal(keep_mask(moved, 7, 64, 0.5), keep_mask(keys, 7, 64, 0.5)[order])


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.9])
def test_dropout_keeps_the_right_share_and_looks_independent(probability):
    keys = token_keys(99, torch.arange(256), torch.zeros(256, dtype=torch.long))
    mask = keep_mask(keys, 1, 512, probability).double()
    spread = (probability * (1 - probability) / mask.numel()) ** 0.5
    assert abs(mask.mean() - (1 - probability)) < 5 * spread
    other_salt = keep_mask(keys, 2, 512, probability).double()
    other_step = keep_mask(
        token_keys(100, torch.arange(256), torch.zeros(256, dtype=torch.long)), 1, 512, probability
    ).double()
    for other in (other_salt, other_step, mask.roll(1, 0), mask.roll(1, 1)):
        correlation = torch.corrcoef(torch.stack([mask.flatten(), other.flatten()]))[0, 1]
        assert abs(correlation) < 5 / mask.numel() ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_the_engines_gradients_of_a_group(dtype, probability):
    """A group whose second projection has no adapter; in 16 bits its adapters' inputs are multiplied together."""
    outputs, inputs, rank, scale, close = (64, 16, 48), 32, 4, 2.0, 1e-5 if dtype is torch.float32 else 2e-2
    frozen = group(outputs, inputs, bias=True)
    x, grad = torch.randn(10, inputs).to(dtype), torch.randn(10, sum(outputs)).to(dtype)
    pairs = [None if i == 1 else (torch.randn(rank, inputs), torch.randn(n, rank)) for i, n in enumerate(outputs)]
    keys = token_keys(5, torch.arange(10) // 4, torch.arange(10) % 4)
    drop = Dropout(probability, keys, (100, 101, 102)) if probability else None
    leaves = [x.float().requires_grad_(), *(part.requires_grad_() for pair in pairs if pair for part in pair)]
    qlora_linear(leaves[0], frozen, pairs, scale, drop).backward(grad.float())
    memory = AdapterMemory(*(torch.empty(10 * size, dtype=dtype) for size in (2 * rank, 2 * rank, inputs)))
    grads = [pair and tuple(torch.ones_like(part) for part in pair) for pair in pairs]
    into = torch.empty_like(x)
    with torch.no_grad():
        project_backward(grad, x, frozen, pairs, grads, scale, drop, memory, into)
    ours = [into, *(part - 1 for pair in grads if pair for part in pair)]
    for mine, leaf in zip(ours, leaves, strict=True):
        assert (mine.float() - leaf.grad).norm() < close * leaf.grad.norm()
