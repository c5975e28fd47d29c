"""What the general path refuses, and what it says: no code of a repository, no pickles, nothing half quantised."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from strop.errors import ModelError
from strop.model.general.load import load_general
from strop.model.paths import open_tensors, path_of
from tiny_general import CASES, Case, edit, write_model

NEOX = CASES["GPT-NeoX"]


@pytest.fixture
def neox(tmp_path: Path) -> Path:
    return write_model(NEOX, tmp_path / "model")


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as error:
        open_tensors(folder)
    assert error.value.exit_code == 3
    assert error.value.expected
    assert error.value.do
    return str(error.value)


def test_without_transformers_it_says_how_to_get_it(neox: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "transformers.models.auto.modeling_auto", None)
    edit(neox, note="not read before")  # what is known of a config is remembered
    text = refused(neox)
    assert "no table for the family 'gpt_neox'" in text
    assert "pip install 'strop[general]'" in text
    assert "docs/add-a-family.md" in text


def test_a_family_of_ours_never_asks_for_transformers(tmp_path: Path):
    from tiny_models import save_tiny_llama

    script = (
        "import sys\nfrom pathlib import Path\nfrom strop.model.paths import load_any, open_tensors\n"
        f"folder = Path({str(save_tiny_llama(tmp_path))!r})\nopen_tensors(folder)\nload_any(folder)\n"
        "assert 'transformers' not in sys.modules, 'transformers was imported'\n"
    )
    import subprocess

    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model_type": "evil"}, "does not know it at all"),
        ({"model_type": "evil", "auto_map": {"AutoModelForCausalLM": "evil.Evil"}}, "which Strop never runs"),
        ({"model_type": None}, "no table for the family None"),
        ({"model_type": "t5"}, "does not know it as a model that writes text"),
        ({"_attn_implementation_internal": "evil/kernels"}, "names code to be run"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"hidden_size": "64"}, "transformers cannot make this model"),
        ({"num_hidden_layers": 1 << 30}, "not of one model"),
        ({"vocab_size": 1 << 40}, "out of all bounds"),
        ({"max_position_embeddings": 1 << 30}, "out of all bounds"),
        ({"text_config": {"num_hidden_layers": 1 << 30}}, "not of one model"),
        ({"num_experts": 1 << 20}, "out of all bounds"),
        ({"intermediate_size": 128}, "of the wrong shape"),
        ({"num_hidden_layers": 4}, "missing"),
        ({"num_hidden_layers": 2}, "has no place for tensor"),
    ],
)
def test_configs_that_are_refused(neox: Path, settings: dict[str, Any], said: str):
    assert said in refused(edit(neox, **settings))


def test_code_beside_a_model_that_transformers_has_is_never_imported(neox: Path, tmp_path: Path):
    """An honest config may name its repository's code, and an implementation; both are passed over."""
    marker = tmp_path / "ran"
    (neox / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    edit(
        neox,
        auto_map={"AutoConfig": "modeling_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"},
        attn_implementation="evil/kernels",
        _attn_implementation="evil/kernels",
        use_cache=True,
    )
    assert load_general(neox).isolates == "positions"
    assert not marker.exists()
    assert not [name for name in sys.modules if "modeling_evil" in name]


def test_sizes_of_experts_and_infinity_are_honest(neox: Path):
    """What a Nemotron's and a Falcon H1's config hold."""
    settings: dict[str, Any] = {"moe_shared_expert_intermediate_size": 7688, "limit": [0.0, {"__float__": "Infinity"}]}
    assert open_tensors(edit(neox, **settings)).spec.layers == 3


def test_pickled_weights_are_never_opened(neox: Path):
    (neox / "model.safetensors").rename(neox / "pytorch_model.bin")
    assert "never opened" in refused(neox)


def test_experts_in_one_parameter_are_refused(tmp_path: Path):
    case = Case("olmoe", (), {"num_experts": 4, "num_experts_per_tok": 2})
    text = refused(write_model(case, tmp_path / "model"))
    assert "experts in one parameter" in text
    assert "mlp.experts" in text


def test_a_model_that_sees_what_comes_after_is_refused(tmp_path: Path):
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        "bert", vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        is_decoder=False, initializer_range=0.2, max_position_embeddings=64,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match="no causal model"):
        load_general(tmp_path / "model")


def test_numbers_that_are_not_finite_are_named(neox: Path):
    state = load_file(neox / "model.safetensors")
    state["gpt_neox.layers.1.mlp.dense_h_to_4h.weight"][3, 3] = float("nan")
    save_file(state, neox / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.dense_h_to_4h\.weight holds numbers that are not finite"):
        load_general(neox)


def test_files_without_the_bases_name_and_with_older_tensors_are_read(tmp_path: Path):
    """GPT-2's own files begin with h.0, and hold masks that no longer are parameters."""
    folder = write_model(CASES["GPT-2"], tmp_path / "model")
    state = {name.removeprefix("transformer."): t for name, t in load_file(folder / "model.safetensors").items()}
    assert "h.0.attn.c_attn.weight" in state
    state["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    expected = load_general(folder)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    found = load_general(folder)
    for ours, theirs in zip(found.linears, expected.linears, strict=True):
        assert torch.equal(ours.frozen.weights[0].packed, theirs.frozen.weights[0].packed)


def test_what_a_model_is_in_words(neox: Path):
    facts = path_of(neox)
    assert str(facts["path"]).startswith("general path (transformers): slower")
    assert facts["adapters_on"] == "query_key_value, dense, dense_h_to_4h, dense_4h_to_h"
    parameters = sum(t.numel() for n, t in load_file(neox / "model.safetensors").items())
    biases = sum(
        t.numel() for n, t in load_file(neox / "model.safetensors").items() if n.endswith("bias") and "norm" not in n
    )
    assert facts["parameters"] == parameters - biases
    assert json.dumps(facts)
