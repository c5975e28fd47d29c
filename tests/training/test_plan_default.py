"""The plan that is taken when nobody names one: a rule of model, data and machine; and levers set by hand."""

import json
from dataclasses import replace

import pytest
import torch

from strop.errors import UsageError
from strop.model.spec import DecoderSpec, RopeSpec
from strop.plan.plan import Machine, Plan, activation_bytes, check_device, default_plan, plan_from_dict, probe

# SmolLM2-135M.
SPEC = DecoderSpec(
    family="llama",
    vocabulary=49152,
    hidden=576,
    intermediate=1536,
    layers=30,
    heads=9,
    kv_heads=3,
    head_size=64,
    norm_eps=1e-5,
    rope=RopeSpec(100000.0),
    attention_bias=False,
    mlp_bias=False,
    tied_head=True,
    context=8192,
)
LAPTOP = Machine("cpu", 8 << 30, 4)
# float32, dequantised: q and o [576, 576], k and v [192, 576], gate, up and down [1536, 576].
LAYER_BYTES = 4 * 576 * (2 * 576 + 2 * 192 + 3 * 1536)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine whose torch sees one GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    return Machine("cuda", 80 << 30, 16)


# ── the rule ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_laptop_with_room_keeps_everything():
    assert default_plan(SPEC, 300, LAPTOP) == Plan("cpu", "float32", 2048, "none", 30, 256, 4)


def test_a_gpu_computes_in_bfloat16_and_longer_packs(gpu: Machine):
    assert default_plan(SPEC, 300, gpu) == Plan("cuda", "bfloat16", 8192, "none", 30, 1024, 16)


def test_a_pack_holds_the_longest_sample(gpu: Machine):
    assert default_plan(SPEC, 2048, LAPTOP).pack_tokens == 2048
    assert default_plan(SPEC, 2049, LAPTOP).pack_tokens == 2049
    assert default_plan(SPEC, 9000, gpu).pack_tokens == 9000


def test_activations_are_kept_below_half_of_the_free_memory():
    kept = SPEC.layers * activation_bytes(SPEC, 2048, 4)
    assert default_plan(SPEC, 1, replace(LAPTOP, free_bytes=2 * kept + 2)).recompute == "none"
    assert default_plan(SPEC, 1, replace(LAPTOP, free_bytes=2 * kept)).recompute == "layer"
    longer = default_plan(SPEC, 8000, replace(LAPTOP, free_bytes=2 * kept + 2))
    assert longer.recompute == "layer"


def test_activations_of_a_layer_are_what_its_backward_reads():
    """Per token: norms 4 D, q and k twice, v, attention twice, three of the MLP; D 576, q 576, k and v 192, F 1536."""
    assert activation_bytes(SPEC, 1, 4) == 4 * (4 * 576 + 2 * (576 + 192) + 192 + 2 * 576 + 3 * 1536)
    assert activation_bytes(SPEC, 100, 2) == 50 * activation_bytes(SPEC, 1, 4)


@pytest.mark.parametrize(
    ("quarter", "layers"), [(LAYER_BYTES - 1, 0), (LAYER_BYTES, 1), (7 * LAYER_BYTES + 5, 7), (99 * LAYER_BYTES, 30)]
)
def test_layers_stay_dense_within_a_quarter_of_the_free_memory(quarter: int, layers: int):
    assert default_plan(SPEC, 1, replace(LAPTOP, free_bytes=4 * quarter)).dense_layers == layers


def test_the_machine_is_looked_at():
    machine = probe()
    assert machine.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert machine.free_bytes > 1 << 20
    assert machine.cores >= 1
    assert default_plan(SPEC, 1, machine).threads == machine.cores


# ── set by hand ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_lever_can_be_set_by_hand():
    levers = {
        "device": "cpu",
        "dtype": "bfloat16",
        "pack_tokens": "17",
        "recompute": "layer",
        "dense_layers": "0",
        "loss_chunk": "5",
        "threads": "3",
    }
    assert default_plan(SPEC, 300, LAPTOP, levers) == Plan("cpu", "bfloat16", 17, "layer", 0, 5, 3)
    assert set(levers) == set(default_plan(SPEC, 300, LAPTOP).as_dict())


def test_the_rule_follows_the_device_that_was_chosen(gpu: Machine):
    plan = default_plan(SPEC, 300, gpu, {"device": "cpu"})
    assert (plan.device, plan.dtype, plan.pack_tokens, plan.loss_chunk) == ("cpu", "float32", 2048, 256)
    assert default_plan(SPEC, 300, gpu, {"device": "cuda:0"}).dtype == "bfloat16"
    assert default_plan(SPEC, 300, gpu, {"device": "cpu", "dtype": "bfloat16"}).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("dtype", "float16", "float32 or bfloat16"),
        ("dtype", "", "float32 or bfloat16"),
        ("recompute", "all", "none or layer"),
        ("pack_tokens", "0", "a whole number, 1 to 2147483647"),
        ("pack_tokens", "-5", "a whole number, 1 to 2147483647"),
        ("pack_tokens", "1e3", "a whole number, 1 to 2147483647"),
        ("loss_chunk", "9999999999999999999", "a whole number, 1 to 2147483647"),
        ("dense_layers", "-1", "a whole number, 0 to 2147483647"),
        ("dense_layers", "", "a whole number, 0 to 2147483647"),
        ("threads", "1025", "a whole number, 1 to 1024"),
        ("threads", "many", "a whole number, 1 to 1024"),
    ],
)
def test_a_value_that_a_lever_cannot_have_is_refused(name: str, text: str, wanted: str):
    with pytest.raises(UsageError) as caught:
        default_plan(SPEC, 300, LAPTOP, {name: text})
    assert caught.value.what == f"--plan.{name} cannot be {text!r}"
    assert (caught.value.expected, caught.value.found) == (wanted, text)
    assert caught.value.do == f"give --plan.{name} {wanted}"


def test_an_unknown_lever_is_refused_with_the_known_ones():
    with pytest.raises(UsageError) as caught:
        default_plan(SPEC, 300, LAPTOP, {"micro_batch": "4"})
    assert caught.value.what == "--plan.micro_batch is no lever of the plan"
    assert caught.value.expected == "one of device, dtype, pack_tokens, recompute, dense_layers, loss_chunk, threads"


@pytest.mark.parametrize("name", ["", "npu", "cuda:1", "cuda:x", "cpu:x", "CPU"])
def test_a_device_that_is_not_there_is_refused(name: str, gpu: Machine):
    for call in (lambda: check_device(name), lambda: default_plan(SPEC, 300, gpu, {"device": name})):
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.what == f"--plan.device {name}: there is no such device here"
        assert caught.value.expected == "cpu or cuda:0"


def test_a_gpu_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UsageError) as caught:
        default_plan(SPEC, 300, LAPTOP, {"device": "cuda"})
    assert (caught.value.expected, caught.value.found) == ("cpu", "cuda")
    assert check_device("cpu") == "cpu"


# ── kept ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_plan_survives_the_disk():
    plan = default_plan(SPEC, 300, LAPTOP, {"threads": "3"})
    assert plan_from_dict(json.loads(json.dumps(plan.as_dict()))) == plan
    with pytest.raises(KeyError):
        plan_from_dict({"device": "cpu"})
