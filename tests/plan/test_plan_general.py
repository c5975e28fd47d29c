"""What the general path's plan is made of: bytes as torch makes them, and costs of layers beside a whole model's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from strop.model.general.engine import GeneralEngine
from strop.model.general.files import GeneralTensors
from strop.model.general.load import load_general
from strop.model.general.trial import documents_batch
from strop.model.lora import make_adapter
from strop.model.workspace import Work
from strop.plan.general_costs import Alive, Cost, GeneralCosts, measure_costs
from tiny_general import Case, write_model

TOKENS = 192
LAYERS = 6


def test_bytes_are_counted_while_they_live():
    kept = torch.zeros(7)
    with Alive() as alive:
        first = torch.ones(1000)
        view = first.view(10, 100)
        assert alive.most == 4000
        second = view + 1.0
        assert alive.most == 8000
        del first, view
        third = second[:5] * kept.sum()
        assert alive.most == 8000
        kept.add_(1.0)
        del second, third
        torch.ones(3000)
    assert alive.most == 12000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    case = Case("gpt_neox", (), {"num_hidden_layers": LAYERS, "hidden_size": 128, "intermediate_size": 512})
    return write_model(case, tmp_path_factory.mktemp("general") / "model")


@pytest.fixture(scope="module")
def costs(folder: Path) -> GeneralCosts:
    tensors = GeneralTensors(folder)
    return measure_costs(
        json.dumps(tensors.config),
        folder / "config.json",
        tensors.spec,
        rank=4,
        dropout=0.0,
        targets=tensors.spec.adaptable,
        device="cpu",
        dtype="float32",
        threads=1,
    )


@pytest.mark.parametrize("again", [0, LAYERS])
def test_the_bytes_of_a_pass_are_those_of_its_layers_together(again: int, folder: Path, costs: GeneralCosts):
    """The costs come from three layers of 64 and 256 tokens; the model has six, and the pack 192 tokens."""
    decoder = load_general(folder)
    adapter = make_adapter(decoder.spec, rank=4, alpha=4, dropout=0.0, targets=decoder.spec.adaptable, seed=0)
    adapter.zero_gradients()
    work = Work(
        tokens=TOKENS, learned=1, whole_layers=again, elementwise_layers=0, loss_chunk=1, targets=(), rank=4,
        dropout=False, dense_head=True, dtype=torch.float32,
    )  # fmt: skip
    engine = GeneralEngine(decoder, work)
    batch = documents_batch([torch.arange(TOKENS // 2)] * 2, torch.device("cpu"))
    batch = replace(batch, rows_N=torch.tensor([TOKENS - 2]), targets_N=torch.tensor([3]))
    engine.gradients(batch, adapter, 1.0)
    with Alive() as alive:
        engine.gradients(batch, adapter, 1.0)
    kept, working = (costs.kept_again, costs.working_again) if again else (costs.kept, costs.working)
    said = kept.of(TOKENS) + working.of(TOKENS)
    assert said == pytest.approx(alive.most, rel=0.35)


def test_what_is_computed_again_keeps_less(costs: GeneralCosts):
    assert costs.kept_again.of(TOKENS) < costs.kept.of(TOKENS) / 3
    assert costs.forward.of(TOKENS) < costs.both.of(TOKENS)


def test_costs_add_and_scale():
    cost = Cost(1.0, 2.0, 3.0) + Cost(1.0, 0.0).scaled(4)
    assert cost.of(10) == 5.0 + 20.0 + 300.0
