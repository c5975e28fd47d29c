"""docs/add-a-family.md: its example is a family that works, in one file under 60 lines."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from strop.errors import ModelError
from strop.evaluate.family_check import _alone
from strop.kernels import nf4
from strop.model import families as package
from strop.model.families import families, spec_from_config
from strop.model.load import load_decoder
from strop.model.tensors import ModelTensors
from tiny_families import Case, equal_model, write_model

PAGE = Path(__file__).parents[2] / "docs" / "add-a-family.md"
EXAMPLE = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
CASE = Case("ernie4_5", {"head_dim": 16, "use_bias": True})


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The page's file, in the package's path as if it lay in its folder."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "ernie4_5.py").write_text(EXAMPLE, encoding="utf-8")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / "package")])
    families.cache_clear()
    yield tmp_path
    families.cache_clear()
    sys.modules.pop("strop.model.families.ernie4_5", None)


def test_the_example_is_a_family_that_equals_transformers(example):
    write_model(CASE, example)
    state = ModelTensors(example / "own")
    assert state.spec.family == "ernie4_5"
    ours, theirs = load_decoder(example / "own"), equal_model(CASE, example)
    parameters = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, source in state.table.items():
            if name.endswith("_proj.weight"):
                parameters[source.name].copy_(nf4.dequantize(nf4.quantize(state.read(name))))
        tokens = torch.randint(320, (40,), generator=torch.Generator().manual_seed(1)).tolist()
        expected = theirs(torch.tensor([tokens])).logits[0]
    logits = ours.logits(_alone(torch.tensor(tokens)), None)
    assert ((logits - expected).norm() / expected.norm()).item() < 1e-5


def test_without_the_file_it_is_refused(tmp_path):
    write_model(CASE, tmp_path)
    with pytest.raises(ModelError, match="no table for the family 'ernie4_5'"):
        spec_from_config(package.read_config(tmp_path / "own"), tmp_path)


def test_the_page_and_its_example_are_short():
    assert len(EXAMPLE.splitlines()) < 60
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) <= 64
