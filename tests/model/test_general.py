"""The general path against transformers and PEFT, on tiny random models that no table describes.

What is compared is always float32, with the weights that NF4 really leaves: those of transformers' model are replaced
by their dequantised selves.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_decoder import batch_of, documents, relative
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from strop.kernels import nf4
from strop.model.general.decoder import GeneralDecoder
from strop.model.general.engine import GeneralEngine
from strop.model.general.files import GeneralTensors
from strop.model.general.load import load_general
from strop.model.generate import generate
from strop.model.lora import Adapter, load_matrices, make_adapter, read_adapter, write_adapter
from strop.model.workspace import Work
from tiny_general import CASES, Case, their_model, write_model

LENGTHS = (17, 1, 40)


class Pair(NamedTuple):
    """A tiny model here and in transformers."""

    case: Case
    folder: Path
    ours: GeneralDecoder
    theirs: PreTrainedModel


FAST = ("GPT-NeoX", "GPT-2", "Falcon", "Cohere", "Mamba")
"""A case of each way: plain, transposed, a mask, a factor of the logits, a document at a time. The others are slow."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in CASES],
    ids=lambda name: name.replace(" ", "-"),
)
def pair(request, tmp_path_factory) -> Iterator[Pair]:
    case = CASES[request.param]
    folder = write_model(case, tmp_path_factory.mktemp("general"))
    ours = load_general(folder)
    dequantise(folder)
    yield Pair(case, folder, ours, their_model(folder))


def dequantise(folder: Path) -> None:
    """Gives the files of a model the weights that NF4 leaves of its linears."""
    state, tensors = load_file(folder / "model.safetensors"), GeneralTensors(folder)
    for name in tensors.projections:
        source = tensors.table[name]
        weight = nf4.dequantize(nf4.quantize(tensors.read(name)))
        state[source.name] = weight.T.contiguous() if source.change else weight
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def adapter_of(decoder: GeneralDecoder, dropout: float = 0.0) -> Adapter:
    targets = decoder.spec.adaptable
    adapter = make_adapter(decoder.spec, rank=4, alpha=8, dropout=dropout, targets=targets, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for matrix in adapter.parameters():
            matrix.add_(torch.randn(matrix.shape, generator=generator) * 0.1)
    return adapter


def work(again: int = 0) -> Work:
    return Work(
        tokens=64,
        learned=64,
        whole_layers=again,
        elementwise_layers=0,
        loss_chunk=16,
        targets=(),
        rank=4,
        dropout=False,
        dense_head=True,
        dtype=torch.float32,
    )


def gradients(decoder: GeneralDecoder, adapter: Adapter, docs, *, again: int = 0, key: int | None = None):
    adapter.zero_gradients()
    loss = GeneralEngine(decoder, work(again)).gradients(batch_of(*docs), adapter, 2.0, key)
    return loss.item(), [matrix.grad.clone() for matrix in adapter.parameters()]


def test_what_was_found_out_of_the_model(pair):
    assert pair.ours.spec.adaptable == pair.case.targets
    assert (pair.ours.isolates, pair.ours.caches) == (pair.case.packs, pair.case.caches)
    assert pair.ours.head.plain == pair.case.plain


def test_logits_are_transformers(pair):
    docs = documents(*LENGTHS)
    ours = pair.ours.logits(batch_of(*docs), None)
    with torch.no_grad():
        theirs = torch.cat([pair.theirs(torch.tensor([document])).logits[0] for document in docs])
    assert relative(ours, theirs) < 1e-5


def test_a_pack_gives_what_its_documents_give_alone(pair):
    docs = documents(*LENGTHS)
    together = pair.ours.logits(batch_of(*docs), None)
    alone = torch.cat([pair.ours.logits(batch_of(document), None) for document in docs])
    assert relative(together, alone) < 1e-5


def test_loss_and_gradients_are_pefts(pair, tmp_path):
    """PEFT's own module with our numbers: what it loads, computes and differentiates."""
    adapter = adapter_of(pair.ours)
    write_adapter(adapter, tmp_path, "base", pair.ours.spec)
    tuned = PeftModel.from_pretrained(their_model(pair.folder), tmp_path, is_trainable=True).eval()
    docs = documents(9, 30, 3)
    expected = torch.tensor(0.0)
    for document in docs:
        logits = tuned(torch.tensor([document])).logits
        expected = expected + cross_entropy(logits[0, 1:-1], torch.tensor(document[2:]), reduction="sum")
    (expected / 2.0).backward()
    loss, ours = gradients(pair.ours, adapter, docs)
    theirs = {name.replace(".default", ""): p.grad for name, p in tuned.named_parameters() if p.requires_grad}
    assert set(adapter.named()) == set(theirs)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for name, mine in zip(adapter.named(), ours, strict=True):
        assert relative(mine, theirs[name]) < 2e-5, name


def test_peft_loads_the_adapter_with_equal_logits(pair, tmp_path):
    adapter = adapter_of(pair.ours)
    write_adapter(adapter, tmp_path, "base", pair.ours.spec)
    tuned = PeftModel.from_pretrained(their_model(pair.folder), tmp_path).eval()
    (document,) = documents(21)
    with torch.no_grad():
        theirs = tuned(torch.tensor([document])).logits[0]
    assert relative(pair.ours.logits(batch_of(document), adapter), theirs) < 1e-5
    assert relative(pair.ours.logits(batch_of(document), None), theirs) > 1e-3


def test_the_adapter_comes_back_as_it_was(pair, tmp_path):
    adapter = adapter_of(pair.ours)
    write_adapter(adapter, tmp_path, "base", pair.ours.spec)
    back = read_adapter(tmp_path, pair.ours.spec)
    assert back.targets == adapter.targets
    load_matrices(back, adapter.named(), tmp_path)
    for ours, theirs in zip(back.parameters(), adapter.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_computing_layers_again_changes_no_gradient(pair):
    adapter = adapter_of(pair.ours, dropout=0.2)
    docs = documents(9, 30, 3)
    once, again = (gradients(pair.ours, adapter, docs, again=layers, key=77) for layers in (0, 2))
    assert once[0] == again[0]
    for first, second in zip(once[1], again[1], strict=True):
        assert torch.equal(first, second)


def test_dropout_follows_the_token_not_the_pack(pair):
    adapter = adapter_of(pair.ours, dropout=0.2)
    docs = documents(9, 30, 3)
    together = gradients(pair.ours, adapter, docs, key=77)
    isolates, pair.ours.isolates = pair.ours.isolates, ""
    apart = gradients(pair.ours, adapter, docs, key=77)
    pair.ours.isolates = isolates
    assert together[0] == pytest.approx(apart[0], rel=1e-5)
    assert together[0] != pytest.approx(gradients(pair.ours, adapter, docs)[0], rel=1e-3)
    for first, second in zip(together[1], apart[1], strict=True):
        assert relative(first, second) < 1e-4


def test_answers_are_transformers(pair):
    prompts = documents(5, 19, 2)
    expected = []
    for prompt in prompts:
        out = pair.theirs.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=8, eos_token_id=None, pad_token_id=0
        )
        expected.append(out[0, len(prompt) :].tolist())
    assert [answer.tokens for answer in generate(pair.ours, None, prompts, [], 8)] == expected
