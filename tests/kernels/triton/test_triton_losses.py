"""Losses and the gradient of logits by Triton, against torch in float64."""

import pytest
import torch

from strop.kernels import select
from strop.kernels.cross_entropy import finish, softmax_gradient_, token_losses

pytestmark = pytest.mark.usefixtures("triton")

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def draw(device, dtype, rows, vocabulary, size=4.0):
    generator = torch.Generator().manual_seed(1)
    wide = torch.randn(rows, vocabulary + 3, generator=generator) * size
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    targets[-1] = vocabulary - 1
    return wide.to(device, dtype)[:, :vocabulary], targets.to(device)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 2), (3, 7), (2, 300), (2, 4096), (3, 9001)])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (1.0, 3.0), (0.5, 30.0)])
def test_losses_and_gradient(device, dtype, rows, vocabulary, scale, softcap):
    logits, targets = draw(device, dtype, rows, vocabulary)
    leaf = logits.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(finish(leaf, scale, softcap), targets, reduction="none")
    expected.sum().backward()
    before = logits.clone()
    alone = token_losses(logits, targets, scale=scale, softcap=softcap)
    assert torch.equal(logits, before)
    losses = softmax_gradient_(logits, targets, scale=scale, softcap=softcap)
    assert losses.dtype is torch.float64
    assert torch.equal(losses, alone)
    torch.testing.assert_close(losses, expected.detach(), atol=5e-6, rtol=2e-6)
    assert (logits.double() - leaf.grad).abs().max() <= TOLERANCE[dtype]


@pytest.mark.parametrize(("scale", "softcap"), [(0.25, None), (1.0, 3.0), (0.5, 30.0)])
def test_the_reference_caps_and_scales_too(device, scale, softcap):
    logits, targets = draw(device, torch.float32, 5, 40)
    leaf = logits.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(finish(leaf, scale, softcap), targets, reduction="none")
    expected.sum().backward()
    with select.forced("torch"):
        losses = softmax_gradient_(logits, targets, scale=scale, softcap=softcap)
    torch.testing.assert_close(losses, expected.detach(), atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(logits.double(), leaf.grad, atol=2e-6, rtol=2e-6)


def test_huge_logits_stay_finite(device):
    logits, targets = draw(device, torch.float32, 4, 500, size=1e4)
    losses = softmax_gradient_(logits, targets)
    assert losses.isfinite().all()
    assert logits.isfinite().all()
    assert logits.sum(dim=1).abs().max() < 1e-4


def test_tokens_that_cannot_be_have_no_share(device):
    logits, targets = draw(device, torch.float32, 2, 5000)
    logits[:, :4200] = float("-inf")
    targets[:] = 4999
    expected = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="none")
    losses = softmax_gradient_(logits, targets)
    torch.testing.assert_close(losses, expected, atol=5e-6, rtol=2e-6)
    assert (logits[:, :4200] == 0).all()
