"""Every family against transformers, on tiny random models: tensors, logits, loss, gradients, packs, answers.

What is compared is always float32, with the weights that NF4 really leaves: those of transformers' model are replaced
by their dequantised selves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_decoder import batch_of, documents, relative
from test_engine import agree, engines, reference, work_of
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from strop.errors import ModelError
from strop.kernels import nf4
from strop.model.decoder import Decoder
from strop.model.engine import Engine
from strop.model.families import families, spec_from_config
from strop.model.generate import generate
from strop.model.load import load_decoder
from strop.model.lora import Adapter, adapter_size, make_adapter, parse_targets, write_adapter
from strop.model.support import unsupported
from strop.model.tensors import ModelTensors
from tiny_families import CASES, Case, equal_model, read, write_model

LENGTHS = (17, 1, 40)
"""Documents of a pack; the last is longer than the windows, and than the original contexts of the stretched ropes."""


class Pair(NamedTuple):
    """A tiny model here and in transformers."""

    case: Case
    folder: Path
    ours: Decoder
    theirs: PreTrainedModel


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def pair(request, tmp_path_factory) -> Iterator[Pair]:
    case = CASES[request.param]
    folder = tmp_path_factory.mktemp("family")
    write_model(case, folder)
    missing = unsupported(ModelTensors(folder / "own").spec)
    if missing:
        pytest.skip(f"the decoder does not compute {missing} yet")
    ours = load_decoder(folder / "own")
    dequantise(folder / "equal")
    yield Pair(case, folder, ours, equal_model(case, folder))


def dequantise(folder: Path) -> None:
    """Gives the files of a model the weights that NF4 leaves of its projections."""
    state, tensors = load_file(folder / "model.safetensors"), ModelTensors(folder)
    for name, source in tensors.table.items():
        if name.endswith("_proj.weight"):
            weight = nf4.dequantize(nf4.quantize(tensors.read(name)))
            rows = [row for start, end in source.rows or ((0, len(weight)),) for row in range(start, end)]
            state[source.name][rows] = weight
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def targets_of(decoder: Decoder) -> tuple[str, ...]:
    return decoder.spec.adaptable


def adapter_of(decoder: Decoder) -> Adapter:
    adapter = make_adapter(decoder.spec, rank=4, alpha=8, dropout=0.0, targets=targets_of(decoder), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for matrix in adapter.parameters():
            matrix.add_(torch.randn(matrix.shape, generator=generator) * 0.1)
    return adapter


def merged(pair: Pair, adapter: Adapter) -> dict[str, Tensor]:
    """transformers' parameters with the adapter in them, differentiable in A and B."""
    parameters = dict(pair.theirs.named_parameters())
    changed: dict[str, Tensor] = {}
    for name, source in ModelTensors(pair.folder / "equal").table.items():
        path = name.removesuffix(".weight")
        if path in adapter.matrices:
            # The tree of a model that also sees is another than that of its files.
            known = source.name.replace("language_model.model", "model.language_model")
            a_RI, b_OR = adapter.matrices[path]
            whole = changed.get(known, parameters[known])
            rows = [row for start, end in source.rows or ((0, len(b_OR)),) for row in range(start, end)]
            changed[known] = whole.index_add(0, torch.tensor(rows), adapter.scale * b_OR @ a_RI)
    return changed


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_and_row_of_the_files_is_read_once(name, tmp_path):
    case = CASES[name]
    write_model(case, tmp_path)
    tensors = ModelTensors(tmp_path / "own")
    shapes = {key: tuple(value.shape) for key, value in load_file(tmp_path / "own/model.safetensors").items()}
    read_rows: dict[str, list[int]] = {}
    for key, source in tensors.table.items():
        rows = source.rows or ((0, source.file_shape[0]),)
        read_rows.setdefault(source.name, []).extend(row for start, end in rows for row in range(start, end))
        assert tuple(tensors.read(key).shape) == source.shape
    passed_over = {key for key in shapes if "inv_freq" in key or "vision" in key or "multi_modal" in key}
    assert set(read_rows) == set(shapes) - passed_over
    for key, rows in read_rows.items():
        assert sorted(rows) == list(range(shapes[key][0])), key


def test_logits_are_transformers(pair):
    docs = documents(*LENGTHS)
    ours = pair.ours.logits(batch_of(*docs), None)
    with torch.no_grad():
        theirs = torch.cat([pair.theirs(torch.tensor([document])).logits[0] for document in docs])
    assert relative(ours, theirs) < 1e-5


def test_loss_and_gradients_are_transformers(pair):
    adapter = adapter_of(pair.ours)
    docs = documents(9, 30, 3)
    loss = pair.ours.loss(batch_of(*docs), adapter)
    ours = torch.autograd.grad(loss, adapter.parameters())
    expected = torch.tensor(0.0)
    for document in docs:
        logits = torch.func.functional_call(pair.theirs, merged(pair, adapter), (torch.tensor([document]),)).logits
        expected = expected + cross_entropy(logits[0, 1:-1], torch.tensor(document[2:]), reduction="sum")
    theirs = torch.autograd.grad(expected, adapter.parameters())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, mine, other in zip(adapter.named(), ours, theirs, strict=True):
        assert relative(mine, other) < 1e-5, name


def test_peft_loads_the_adapter_with_equal_logits(pair, tmp_path):
    if pair.case.convert is not None:
        pytest.skip(
            "its own tree of modules needs its repository's code; tests/model/test_adapter_tree.py has its cuts"
        )
    adapter = adapter_of(pair.ours)
    write_adapter(adapter, tmp_path, "base", pair.ours.spec)
    tuned = PeftModel.from_pretrained(equal_model(pair.case, pair.folder), tmp_path).eval()
    (document,) = documents(21)
    with torch.no_grad():
        theirs = tuned(torch.tensor([document])).logits[0]
    assert relative(pair.ours.logits(batch_of(document), adapter), theirs) < 1e-5
    assert relative(pair.ours.logits(batch_of(document), None), theirs) > 1e-2


def test_the_engine_gives_the_gradients_of_autograd(pair):
    adapter = adapter_of(pair.ours)
    batch = batch_of(*documents(9, 30, 1, 17))
    ours = engines(Engine(pair.ours, work_of(batch, adapter, (1, 1))), batch, adapter)
    agree(ours, reference(pair.ours, batch, adapter))


def test_a_pack_gives_what_its_documents_give_alone(pair):
    docs = documents(*LENGTHS)
    together = pair.ours.logits(batch_of(*docs), None)
    alone = torch.cat([pair.ours.logits(batch_of(document), None) for document in docs])
    assert relative(together, alone) < 1e-5


def test_answers_are_transformers(pair):
    prompts = documents(5, 19, 2)
    expected = []
    for prompt in prompts:
        out = pair.theirs.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=8, eos_token_id=None, pad_token_id=0
        )
        expected.append(out[0, len(prompt) :].tolist())
    assert [answer.tokens for answer in generate(pair.ours, None, prompts, [], 8)] == expected


def test_every_family_has_a_case(tmp_path):
    seen = set()
    for number, case in enumerate(CASES.values()):
        write_model(case, tmp_path / str(number))
        config = read(tmp_path / str(number) / "own")
        seen.add(spec_from_config(config, tmp_path).family)
    assert seen == set(families())


def test_an_unknown_family_is_named_with_its_nearest():
    with pytest.raises(ModelError) as error:
        spec_from_config({"model_type": "qwen3_next"}, Path("config.json"))
    text = str(error.value)
    assert "no table for the family 'qwen3_next'" in text
    assert "nearest family by name is qwen3" in text
    assert "docs/add-a-family.md" in text


LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 320,
}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({**LLAMA, "use_mup": True}, "the setting use_mup is not known"),
        ({**LLAMA, "hidden_act": "relu"}, "hidden_act is not supported"),
        ({**LLAMA, "rope_scaling": {"type": "mrope"}}, "rope_type is not supported"),
        ({**LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0, "mrope_section": [1]}}, "mrope_section"),
        ({**LLAMA, "rope_scaling": {"type": "linear"}}, "missing key 'factor'"),
        (
            {**LLAMA, "quantization_config": {"quant_method": "gptq"}},
            "quantization_config names a quantisation that is not read",
        ),
        ({**LLAMA, "num_key_value_heads": 3}, "does not divide"),
        ({**LLAMA, "hidden_size": "64"}, "hidden_size is '64'"),
        ({**LLAMA, "model_type": "phi", "qk_layernorm": True}, "qk_layernorm is not supported"),
        ({**LLAMA, "model_type": "gemma", "use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({**LLAMA, "model_type": "qwen3", "layer_types": ["linear_attention"] * 2}, "layer_types is not supported"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_computed_is_refused_by_name(config, said):
    with pytest.raises(ModelError) as error:
        spec_from_config(config, Path("config.json"))
    assert said in str(error.value)


def test_layers_with_experts_and_without(tmp_path):
    """Layer 1 alone has experts. Adapters are attention's everywhere, and the sizes are those of the tensors."""
    write_model(CASES["qwen3_moe some layers"], tmp_path)
    decoder = load_decoder(tmp_path / "own")
    assert [decoder.spec.has_experts(layer) for layer in range(5)] == [False, True, False, False, False]
    assert [layer.experts is not None for layer in decoder.layers] == [False, True, False, False, False]
    adapter = make_adapter(decoder.spec, rank=4, alpha=8, dropout=0.0, targets=decoder.spec.adaptable, seed=1)
    assert {path.split(".")[3] for path in adapter.matrices} == {"self_attn"}
    assert adapter.size == adapter_size(decoder.spec, adapter.targets, adapter.rank)
    assert parse_targets("all-linear", decoder.spec.adaptable) == adapter.targets
    held = [weight for layer in decoder.layers for group in layer.groups for weight in group.weights]
    assert decoder.spec.linear_weights == sum(weight.shape[0] * weight.shape[1] for weight in held)


def test_a_setting_that_is_off_is_passed_over():
    off = {"use_mup": False, "mup_base": None, "extra": [], "_name_or_path": "here", "attention_dropout": 0.1}
    assert spec_from_config({**LLAMA, **off}, Path("config.json")) == spec_from_config(LLAMA, Path("config.json"))


def test_older_configs_mean_what_newer_ones_mean():
    older = {**LLAMA, "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    newer = {**LLAMA, "rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}}
    place = Path("config.json")
    assert spec_from_config(json.loads(json.dumps(older)), place) == spec_from_config(newer, place)
