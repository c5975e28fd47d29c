"""`strop models --check`: every layer beside transformers, on tiny models; and what it says where it cannot."""

from __future__ import annotations

import builtins
import json

import pytest

from strop.cli.main import main
from strop.errors import ModelError, UsageError
from strop.evaluate import family_check
from strop.evaluate.family_check import TOLERANCE, check_family
from strop.model.support import unsupported
from strop.model.tensors import ModelTensors
from tiny_families import CASES, write_model

IN_TRANSFORMERS = [name for name, case in CASES.items() if case.convert is None]


@pytest.mark.parametrize("name", IN_TRANSFORMERS)
def test_every_layer_of_every_family(name, tmp_path):
    write_model(CASES[name], tmp_path)
    missing = unsupported(ModelTensors(tmp_path / "own").spec)
    if missing:
        pytest.skip(f"the decoder does not compute {missing} yet")
    checks = list(check_family(tmp_path / "own"))
    assert [check.layer for check in checks] == list(range(len(checks)))
    assert len(checks) == ModelTensors(tmp_path / "own").spec.layers
    assert max(check.difference for check in checks) < 1e-5


def test_a_wrong_table_is_seen(tmp_path, monkeypatch, capsys):
    write_model(CASES["llama"], tmp_path)
    right = family_check._one_layer

    def wrong(spec, layer, vocabulary):
        from dataclasses import replace

        return replace(right(spec, layer, vocabulary), norm_eps=0.1 if layer == 1 else spec.norm_eps)

    monkeypatch.setattr(family_check, "_one_layer", wrong)
    differences = [check.difference for check in check_family(tmp_path / "own")]
    assert [difference > TOLERANCE for difference in differences] == [False, True, False]
    assert main(["models", "--check", str(tmp_path / "own"), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["passed"] is False
    assert len(said["layers"]) == 3
    assert (said["nf4"]["projections"], said["nf4"]["experts"]) == (21, 0)


def test_families_that_transformers_lacks_are_named(tmp_path):
    write_model(CASES["internlm2"], tmp_path)
    with pytest.raises(ModelError, match="needs code from its repository"):
        list(check_family(tmp_path / "own"))


def test_without_transformers_it_says_what_to_install(tmp_path, monkeypatch):
    write_model(CASES["llama"], tmp_path)
    whole = builtins.__import__

    def without(name, *more, **named):
        if name == "transformers":
            raise ImportError(name)
        return whole(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match="needs transformers"):
        list(check_family(tmp_path / "own"))


def test_it_says_what_is_in_four_bits(tmp_path, capsys):
    write_model(CASES["qwen3_moe"], tmp_path)
    assert main(["models", "--check", str(tmp_path / "own")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "3 layers, the same as transformers" in said
    assert "all 12 projections and all 36 matrices of experts in NF4" in said


@pytest.mark.slow
def test_the_starter_models_real_weights(capsys):
    """The command itself on SmolLM2-135M-Instruct, as a user runs it on a model of theirs."""
    assert main(["models", "--check", "smollm2-135m-instruct", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [one["layer"] for one in said["layers"]] == list(range(30))
    assert max(one["difference"] for one in said["layers"]) < TOLERANCE / 10
    assert (said["nf4"]["projections"], said["nf4"]["weights"]) == (210, 106_168_320)
