"""The general path on the command line: doctor, models --check, plan, train, and what they say of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from strop.cli.main import main
from tiny_general import CASES, edit, write_model, write_run_model
from tiny_run import rows, write_rows

MARK = "general path (transformers): slower"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run_model(tmp_path_factory.mktemp("general") / "model")


def test_doctor_says_what_would_compute_a_model(model: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", str(model)]) == 0
    assert MARK in " ".join(capsys.readouterr().out.split())
    assert main(["doctor", str(model), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["model"]
    assert found["family"] == "gpt_neox (general path)"
    assert found["context"] == 256


def test_doctor_refuses_what_nothing_computes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = edit(write_model(CASES["GPT-NeoX"], tmp_path / "model"), model_type="mambo")
    assert main(["doctor", str(folder)]) == 3
    assert "no table for the family 'mambo'" in capsys.readouterr().err


def test_models_check_says_how_it_is_computed(model: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["models", "--check", str(model), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"]
    assert found["isolates"] == "positions"
    assert found["path"].startswith(MARK)
    assert 0 < found["difference"] < 1e-4 or found["difference"] == 0
    assert main(["models", "--check", str(model)]) == 0
    assert "in packs, apart by positions" in " ".join(capsys.readouterr().out.split())


def test_the_list_points_to_it(capsys: pytest.CaptureFixture[str]):
    assert main(["models"]) == 0
    assert MARK in " ".join(capsys.readouterr().out.split())


def test_the_plan_is_marked(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = write_rows(tmp_path / "data.jsonl", rows())
    page = tmp_path / "plan.html"
    assert main(["plan", str(model), str(data), "--html", str(page)]) == 0
    assert MARK in " ".join(capsys.readouterr().out.split())
    assert MARK in page.read_text(encoding="utf-8")


def test_a_budget_that_nothing_fits_ends_with_4(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = write_rows(tmp_path / "data.jsonl", rows())
    assert main(["train", str(model), str(data), "--memory", "20MB", "--run", str(tmp_path / "run")]) == 4
    assert "no plan fits" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_target_that_it_has_not_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = write_rows(tmp_path / "data.jsonl", rows())
    assert main(["train", str(model), str(data), "--adapter.targets", "q_proj", "--run", str(tmp_path / "run")]) == 2
    assert "query_key_value" in capsys.readouterr().err
