"""The whole training pass of a tiny decoder by Triton's kernels: the loss and the gradients that torch gives."""

from types import SimpleNamespace

import pytest
import torch

from strop.kernels import select
from strop.model.batch import make_batch
from strop.model.engine import Engine
from strop.model.load import load_decoder
from strop.model.lora import make_adapter
from strop.model.workspace import Work
from tiny_models import save_tiny_llama

# One of each group.
TARGETS = ("v_proj", "o_proj", "gate_proj", "down_proj")
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}


def pack(device):
    """A prefix of 5 tokens, two documents that continue it, and one that does not."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(96, (18,), generator=generator)
    targets = tokens.roll(-1)
    targets[[*range(7), 13, 17]] = -100
    arrays = SimpleNamespace(
        tokens_T=tokens,
        targets_T=targets,
        positions_T=torch.tensor([*range(5), *range(5, 8), *range(5, 11), *range(4)]),
        starts_D1=torch.tensor([0, 5, 8, 14, 18]),
        sample_ids_D=torch.tensor([3, 3, 4, 7]),
        spans=((0, 5, 0, 0), (5, 8, 0, 5), (8, 14, 0, 5), (14, 18, 14, 14)),
    )
    return make_batch(arrays, device)


def gradients(choice, decoder, adapter, batch, dtype):
    work = Work(
        tokens=len(batch.tokens_T),
        learned=len(batch.rows_N),
        whole_layers=1,
        elementwise_layers=0,
        loss_chunk=8,
        targets=TARGETS,
        rank=adapter.rank,
        dropout=True,
        dtype=dtype,
    )
    adapter.zero_gradients()
    with select.forced(choice):
        loss = Engine(decoder, work).gradients(batch, adapter, 1, step_key=2**31 + 5).item()
    return loss, [matrix.grad.clone() for matrix in adapter.parameters()]


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), pytest.param(torch.bfloat16, 3e-2, marks=pytest.mark.slow)],
    ids=str,
)
def test_loss_and_gradients_are_torchs(tmp_path, device, dtype, tolerance):
    decoder = load_decoder(save_tiny_llama(tmp_path, **SMALL), device, dtype)
    adapter = make_adapter(decoder.spec, rank=4, alpha=8, dropout=0.2, targets=TARGETS, seed=1, device=device)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for matrix in adapter.parameters():
            matrix.add_((torch.randn(matrix.shape, generator=generator) * 0.1).to(device))
    batch = pack(device)
    loss, grads = gradients("triton", decoder, adapter, batch, dtype)
    expected, expected_grads = gradients("torch", decoder, adapter, batch, dtype)
    assert loss == pytest.approx(expected, rel=tolerance / 10)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        assert (ours - theirs).norm() < tolerance * theirs.norm()
    if dtype is torch.bfloat16:
        again, grads_again = gradients("triton", decoder, adapter, batch, dtype)
        assert again == loss
        assert all(torch.equal(one, other) for one, other in zip(grads, grads_again, strict=True))
