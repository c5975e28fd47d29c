"""The levers of a plan: read from text, kept on disk, turned into what the engine lays memory out for."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch

from planner_cases import PLAN
from strop.errors import UsageError
from strop.plan.plan import LATER, LEVERS, check_device, plan_from_dict, read_levers
from strop.run.levers import in_words, savings
from strop.training.identity import plan_identity


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch sees one GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


def test_every_lever_can_be_set_by_hand():
    texts = {
        "device": "cpu",
        "dtype": "bfloat16",
        "pack_tokens": "17",
        "recompute_layers": "0",
        "recompute_elementwise": "3",
        "dense_layers": "0",
        "head": "stored",
        "embedding": "file",
        "loss_chunk": "5",
        "prefixes": "repeated",
        "matmul": "torch",
        "threads": "1024",
        "attention": "varlen",
        "checkpoints": "host",
        "base": "host",
    }
    read = read_levers(texts)
    assert {name: str(value) for name, value in read.items()} == texts
    assert {name for name, value in read.items() if isinstance(value, int)} == {
        n for n, whole in LEVERS.items() if whole
    }
    assert set(texts) == set(PLAN.as_dict()) == set(LEVERS)


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("dtype", "float16", "float32 or bfloat16"),
        ("dtype", "", "float32 or bfloat16"),
        ("head", "nf4", "dense or stored"),
        ("prefixes", "Shared", "shared or repeated"),
        ("matmul", "mkl", "amx or openblas or torch"),
        ("pack_tokens", "0", "a whole number, 1 to 2147483647"),
        ("pack_tokens", "-5", "a whole number, 1 to 2147483647"),
        ("pack_tokens", "1e3", "a whole number, 1 to 2147483647"),
        ("loss_chunk", "9999999999999999999", "a whole number, 1 to 2147483647"),
        ("recompute_layers", "-1", "a whole number, 0 to 2147483647"),
        ("dense_layers", "", "a whole number, 0 to 2147483647"),
        ("threads", "1025", "a whole number, 1 to 1024"),
        ("threads", "many", "a whole number, 1 to 1024"),
    ],
)
def test_a_value_that_a_lever_cannot_have_is_refused(name: str, text: str, wanted: str):
    with pytest.raises(UsageError) as caught:
        read_levers({name: text})
    assert caught.value.what == f"--plan.{name} cannot be {text!r}"
    assert (caught.value.expected, caught.value.found) == (wanted, text)
    assert caught.value.do == f"give --plan.{name} {wanted}"


def test_an_unknown_lever_is_refused_with_the_known_ones():
    with pytest.raises(UsageError) as caught:
        read_levers({"threads": "2", "micro_batch": "4"})
    assert caught.value.what == "--plan.micro_batch is no lever of the plan"
    assert caught.value.expected == "one of " + ", ".join(LEVERS)


@pytest.mark.parametrize("name", ["", "npu", "cuda:1", "cuda:x", "cpu:x", "CPU"])
@pytest.mark.usefixtures("one_gpu")
def test_a_device_that_is_not_there_is_refused(name: str):
    for call in (lambda: check_device(name), lambda: read_levers({"device": name})):
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.what == f"--plan.device {name}: there is no such device here"
        assert caught.value.expected == "cpu or cuda:0"


@pytest.mark.usefixtures("one_gpu")
def test_a_gpu_that_is_there_is_taken():
    assert [check_device(name) for name in ("cuda", "cuda:0", "cpu")] == ["cuda", "cuda:0", "cpu"]


def test_a_gpu_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UsageError) as caught:
        read_levers({"device": "cuda"})
    assert (caught.value.expected, caught.value.found) == ("cpu", "cuda")


def test_a_plan_survives_the_disk():
    plan = replace(PLAN, threads=3, recompute_layers=2)
    beside = {**json.loads(json.dumps(plan.as_dict())), "forecast": {"peak_bytes": 1}}
    assert plan_from_dict(beside) == plan
    with pytest.raises(KeyError):
        plan_from_dict({"device": "cpu"})


def test_an_older_plan_is_read_and_is_the_plan_that_it_was():
    """Levers that came later have what they were before; a checkpoint's hash of the plan stays what it was."""
    older = {name: value for name, value in PLAN.as_dict().items() if name not in LATER}
    assert set(LATER) == {"attention", "checkpoints", "base"}
    assert plan_from_dict(older) == PLAN
    assert plan_identity(PLAN)["sha256"] == hashlib.sha256(json.dumps(older, sort_keys=True).encode()).hexdigest()
    for name, value in (("attention", "varlen"), ("checkpoints", "host"), ("base", "host")):
        turned = replace(PLAN, **{name: value})
        assert plan_from_dict(turned.as_dict()) == turned
        assert plan_identity(turned) != plan_identity(PLAN)


def test_what_lies_outside_is_said_in_words():
    turned = replace(PLAN, device="cuda:0", base="host", checkpoints="host", recompute_layers=2, embedding="host")
    assert savings(turned.as_dict()).endswith("embedding, layers' inputs and base in the machine's memory")
    words = dict(in_words(turned.as_dict()))
    assert "from inputs in the machine's memory" in words["backward pass"]
    assert "brought layer by layer" in words["weights"]
    assert words["embedding"].startswith("in the machine's memory")
    assert savings(replace(PLAN, base="host").as_dict()) == "base in the machine's memory"


def test_dropout_keeps_samples_apart():
    assert replace(PLAN, prefixes="shared").shares_prefixes(0.0)
    assert not replace(PLAN, prefixes="shared").shares_prefixes(0.1)
    assert not replace(PLAN, prefixes="repeated").shares_prefixes(0.0)


def test_the_engine_is_told_what_the_levers_say():
    plan = replace(PLAN, recompute_layers=1, recompute_elementwise=2, head="stored", loss_chunk=9, dtype="bfloat16")
    work = plan.work(tokens=50, learned=0, targets=["q_proj"], rank=3, dropout=0.1)
    assert [work.grade(layer) for layer in range(4)] == ["layer", "elementwise", "elementwise", "none"]
    assert (work.tokens, work.learned, work.loss_chunk, work.rank) == (50, 1, 9, 3)
    assert (work.targets, work.dropout, work.dense_head, work.dtype) == (("q_proj",), True, False, torch.bfloat16)
