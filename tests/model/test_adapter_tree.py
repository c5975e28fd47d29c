"""Adapters under a family's own names: PEFT loads them with equal logits, and they come back as they were."""

from dataclasses import replace

import pytest
import torch
from feature_cases import CASES
from peft import LoraConfig, PeftModel, get_peft_model
from test_decoder import batch_of, documents, relative
from test_engine import adapter_of

from planner_cases import spec
from strop.errors import ModelError
from strop.model.adapter_tree import from_tree, module_rows, to_tree
from strop.model.lora import make_adapter, read_adapter, write_adapter
from strop.model.spec import DecoderSpec, Module

TREES = {
    "phi3": (
        Module("self_attn.qkv_proj", ("q_proj", "k_proj", "v_proj")),
        Module("self_attn.o_proj", ("o_proj",)),
        Module("mlp.gate_up_proj", ("gate_proj", "up_proj")),
        Module("mlp.down_proj", ("down_proj",)),
    ),
    "starcoder2": (
        *(Module(f"self_attn.{name}", (name,)) for name in ("q_proj", "k_proj", "v_proj", "o_proj")),
        Module("mlp.c_fc", ("up_proj",)),
        Module("mlp.c_proj", ("down_proj",)),
    ),
}
TARGETS = [None, ("q_proj", "v_proj"), ("k_proj",), ("up_proj", "down_proj")]


def built(name):
    case = CASES[name]
    return replace(case, spec={**case.spec, "modules": TREES[name]}).build()


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_peft_loads_what_is_written(tmp_path, name, targets):
    model, decoder = built(name)
    adapter = adapter_of(decoder, targets or decoder.spec.projections)
    write_adapter(adapter, tmp_path, "base", decoder.spec)
    again = read_adapter(tmp_path, decoder.spec)
    assert again.targets == adapter.targets
    for path, pair in adapter.matrices.items():
        assert all(torch.equal(one, other) for one, other in zip(pair, again.matrices[path], strict=True)), path
    docs = documents(21)
    before = decoder.logits(batch_of(*docs), None)
    ours = decoder.logits(batch_of(*docs), again)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(model, tmp_path).eval()(torch.tensor(docs)).logits[0]
    assert relative(ours, theirs) < 1e-5
    assert relative(before, theirs) > 1e-2


def test_what_peft_made_of_fused_modules_is_read(tmp_path):
    model, decoder = built("phi3")
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["qkv_proj", "gate_up_proj"], task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, matrix in tuned.named_parameters():
            if "lora_" in name:
                matrix.copy_(torch.randn(matrix.shape, generator=generator) * 0.1)
    tuned.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path, decoder.spec)
    assert adapter.targets == ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    docs = documents(21)
    with torch.no_grad():
        theirs = tuned(torch.tensor(docs)).logits[0]
    assert relative(decoder.logits(batch_of(*docs), adapter), theirs) < 1e-5


def test_ranks_that_differ_for_another_reason_are_refused(tmp_path):
    model, decoder = built("phi3")
    config = LoraConfig(r=4, target_modules=["qkv_proj", "o_proj"], rank_pattern={"o_proj": 2}, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="not a plain LoRA"):
        read_adapter(tmp_path, decoder.spec)


def test_rows_by_group_are_each_heads_queries_its_key_and_its_value():
    # Two groups of three queries, heads of two: rows 0-5 queries, 6-7 key, 8-9 value; then again.
    small = spec(hidden=4, heads=6, kv_heads=2, head_size=2)
    rows = module_rows(small, Module("wqkv", ("q_proj", "k_proj", "v_proj"), by_group=True))
    assert rows["q_proj"].tolist() == [*range(6), *range(10, 16)]
    assert rows["k_proj"].tolist() == [6, 7, 16, 17]
    assert rows["v_proj"].tolist() == [8, 9, 18, 19]


def test_a_module_by_group_gives_what_its_parts_give():
    module = Module("attention.wqkv", ("q_proj", "k_proj", "v_proj"), by_group=True)
    ours: DecoderSpec = spec(modules=(module, Module("attention.wo", ("o_proj",))), layers_path="model.layers")
    adapter = make_adapter(ours, rank=3, alpha=6, dropout=0.0, targets=("q_proj", "k_proj", "v_proj"), seed=2)
    with torch.no_grad():
        for matrix in adapter.parameters():
            matrix.copy_(torch.randn(matrix.shape, generator=torch.Generator().manual_seed(1)))
    tensors = to_tree(ours, adapter.matrices)
    a_SI, b_OS = (tensors[f"base_model.model.model.layers.1.attention.wqkv.lora_{letter}.weight"] for letter in "AB")
    whole = b_OS @ a_SI
    for part, rows in module_rows(ours, module).items():
        a_RI, b_PR = adapter.matrices[f"model.layers.1.self_attn.{part}"]
        torch.testing.assert_close(whole[rows], b_PR @ a_RI)
    again = from_tree(ours, tensors, adapter.targets, 3)
    assert all(torch.equal(again[name], matrix) for name, matrix in adapter.named().items())
