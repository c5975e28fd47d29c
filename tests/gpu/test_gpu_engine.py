"""The training engine on the device against the same on a CPU in float32: losses and adapters' gradients.

The model is random, of bitsandbytes' NF4, with biases and grouped heads; packs are ragged and share a beginning. The
engine is given every grade of what layers keep, dense copies and a head as stored. Under one plan the same call gives
the same bits.
"""

from __future__ import annotations

import pytest
import torch
from on_card import DEVICE, card_only, made, on_device, relative

from strop.data.packing import pack
from strop.data.records import Example, Place
from strop.kernels import select
from strop.model.batch import Batch, make_batch
from strop.model.engine import Engine
from strop.model.load import load_decoder
from strop.model.lora import Adapter, make_adapter
from strop.model.spec import PROJECTIONS
from strop.model.workspace import Work

pytestmark = on_device

KEY = 1234
GRADES = {"none": (0, 0), "elementwise": (0, 2), "layer": (2, 0), "one of each": (1, 1)}
# Gradients of a whole model, relative to their norm.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made(tmp_path_factory.mktemp("models"), "tiny")


def batch_of(device: str, *, shared: bool = False) -> Batch:
    """Samples of 5 to 300 tokens that begin alike."""
    import numpy as np

    random = np.random.default_rng(3)
    examples = []
    for index, length in enumerate((300, 5, 77, 120)):
        tokens = random.integers(10, 500, length).astype(np.int32)
        tokens[:40] = 11
        learned = np.arange(length) >= min(40, length - 2)
        examples.append(Example(tokens, learned, index, Place("made")))
    (whole,) = pack(examples, 4096, shared)
    return make_batch(whole, device)


def adapter_on(device: str, spec, dropout: float) -> Adapter:
    adapter = make_adapter(spec, rank=4, alpha=8, dropout=dropout, targets=PROJECTIONS, seed=1, device=device)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for matrix in adapter.parameters():
            matrix.add_((torch.randn(matrix.shape, generator=generator) * 0.05).to(device))
    return adapter


def computed(folder, device: str, dtype: torch.dtype, batch: Batch, *, dropout: float = 0.0, **changes):
    """Loss and gradients."""
    decoder = load_decoder(folder, device, dtype)
    if dense := changes.pop("dense_layers", 0):
        decoder.keep_dense(dense)
    adapter = adapter_on(device, decoder.spec, dropout)
    values = {
        "tokens": len(batch.tokens_T),
        "learned": len(batch.rows_N),
        "whole_layers": 0,
        "elementwise_layers": 0,
        "loss_chunk": 50,
        "targets": adapter.targets,
        "rank": adapter.rank,
        "dropout": dropout > 0,
        "dtype": dtype,
    }
    engine = Engine(decoder, Work(**{**values, **changes}))
    adapter.zero_gradients()
    loss = float(engine.gradients(batch, adapter, len(batch.rows_N), KEY if dropout else None))
    return loss, {name: matrix.grad.clone() for name, matrix in adapter.named().items()}, engine, adapter


@pytest.fixture(scope="module")
def exact(folder):
    """Loss and gradients of the CPU in float32, with and without dropout."""
    with select.forced("torch"):
        return {
            dropout: computed(folder, "cpu", torch.float32, batch_of("cpu"), dropout=dropout)[:2]
            for dropout in (0.0, 0.1)
        }


def agree(ours, theirs, dtype: torch.dtype) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5 if dtype is torch.float32 else 1e-2)
    for name, gradient in ours[1].items():
        assert gradient.device.type == torch.device(DEVICE).type
        assert relative(gradient, theirs[1][name]) < TOLERANCE[dtype], name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("grades", GRADES.values(), ids=GRADES)
def test_losses_and_gradients_are_the_cpus(grades, dropout, dtype, folder, exact):
    whole, elementwise = grades
    ours = computed(
        folder, DEVICE, dtype, batch_of(DEVICE), dropout=dropout, whole_layers=whole, elementwise_layers=elementwise
    )
    agree(ours, exact[dropout], dtype)


def test_dense_copies_change_no_bit(folder):
    plain = computed(folder, DEVICE, torch.bfloat16, batch_of(DEVICE))
    dense = computed(folder, DEVICE, torch.bfloat16, batch_of(DEVICE), dense_layers=2)
    assert plain[0] == dense[0]
    assert all(torch.equal(gradient, dense[1][name]) for name, gradient in plain[1].items())


def test_a_shared_beginning_changes_nothing_but_rounding(folder, exact):
    shared = batch_of(DEVICE, shared=True)
    assert len(shared.tokens_T) < len(batch_of("cpu").tokens_T)
    agree(computed(folder, DEVICE, torch.float32, shared), exact[0.0], torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_same_call_gives_the_same_bits(dtype, folder):
    batch = batch_of(DEVICE)
    first = computed(folder, DEVICE, dtype, batch, dropout=0.1)
    engine, adapter = first[2], first[3]
    for _ in range(3):
        adapter.zero_gradients()
        assert float(engine.gradients(batch, adapter, len(batch.rows_N), KEY)) == first[0]
        for name, matrix in adapter.named().items():
            assert torch.equal(matrix.grad, first[1][name]), name


@card_only
def test_nothing_is_allocated_in_a_step(folder):
    """The engine's memory is laid out beforehand: of what a step asks the allocator for, nothing stays."""
    batch = batch_of(DEVICE)
    *_, engine, adapter = computed(folder, DEVICE, torch.bfloat16, batch)
    engine.gradients(batch, adapter, 1)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    engine.gradients(batch, adapter, 1)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
