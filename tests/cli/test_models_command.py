"""`strop models`: the list, its JSON, the stock templates."""

from __future__ import annotations

import json

import pytest

from strop.cli.main import main
from strop.data.stock_templates import STOCK
from strop.model.families import families


def test_every_family_is_listed_with_how_it_was_checked(capsys):
    assert main(["models"]) == 0
    said = capsys.readouterr().out
    for name in families():
        assert name in said
    assert "SmolLM2-135M-Instruct" in said
    assert "tiny random weights" in said


def test_json(capsys):
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["families"]
    assert {row["family"] for row in rows} == set(families())
    assert [row["family"] for row in rows if row["real_weights"]] == ["llama"]
    by_name = {row["family"]: row for row in rows}
    assert by_name["internlm2"]["reference"] == "formulas"
    assert by_name["qwen3"]["reference"] == "transformers"
    assert by_name["internlm"]["stock_templates"] == ["internlm"]


@pytest.mark.parametrize("name", STOCK)
def test_a_template_is_printed_as_it_is(name, capsys):
    assert main(["models", "--template", name]) == 0
    assert capsys.readouterr().out == STOCK[name].source


def test_an_unknown_template_is_answered_with_the_nearest(capsys):
    assert main(["models", "--template", "internlm-eho", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)
    assert "internlm-eoh" in json.dumps(error)


def test_two_wishes_at_once_are_refused(capsys):
    assert main(["models", "--check", "x", "--template", "qwen"]) == 2
    assert "do not go together" in capsys.readouterr().err
