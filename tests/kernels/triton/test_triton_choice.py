"""When Triton computes, when not, and which configuration; in words where it does not."""

import subprocess
import sys

import pytest
import torch

from strop.kernels import select
from strop.kernels.triton import found, tuning

CONFIGS = tuple(tuning.Config({"M": size}) for size in (16, 32, 64))
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_choices():
    before = tuning.choices()
    yield
    tuning.load(before)


def test_the_choice_is_made_from_the_tensors(triton, device):
    x = torch.zeros(3, 4, device=device)
    assert select.uses_triton(x, x.bfloat16(), x.half(), x[:, :2], x[0])
    assert not select.uses_triton(x, x.double())
    assert not select.uses_triton(x.T)
    assert not select.uses_triton(x, torch.zeros(3, 4, device="meta"))
    assert not select.uses_native(x)
    with select.forced("torch"):
        assert not select.uses_triton(x)
    with select.forced("torch"), select.forced("triton"):
        assert select.uses_triton(x)


def test_a_cpu_is_left_to_the_others():
    assert not select.uses_triton(torch.zeros(3, 4))


def test_reasons_are_said(monkeypatch):
    reason = found.reason.__wrapped__
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert reason(CPU) == "no kernels for cpu devices"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert reason(torch.device("cuda")) == "the device is older than Ampere"
    monkeypatch.setenv("STROP_TRITON", "off")
    assert reason(torch.device("cuda")) == "switched off by STROP_TRITON=off"


def test_a_launch_that_fails_is_a_reason(monkeypatch):
    launch = pytest.importorskip("strop.kernels.triton.launch")

    def fails(device):
        raise RuntimeError("Failed to find C compiler.\nmore")

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(launch, "runs", fails)
    assert found.reason.__wrapped__(CPU) == "Triton cannot launch a kernel: Failed to find C compiler."
    monkeypatch.setattr(launch, "runs", lambda device: False)
    assert found.reason.__wrapped__(CPU) == "Triton computes a wrong sum"


def test_it_is_described(monkeypatch):
    reasons = {"cuda": "", "cuda:1": "Triton is not installed"}
    monkeypatch.setattr(found, "reason", lambda device: reasons[str(device)])
    assert select.describe(torch.device("cuda")) == f"Triton {found.version()}"
    assert select.describe(torch.device("cuda:1")) == "torch (no Triton kernels: Triton is not installed)"


def test_forcing_what_is_not_there_fails(monkeypatch):
    monkeypatch.setattr(found, "reason", lambda device: "not here")
    with pytest.raises(RuntimeError, match="not here"), select.forced("triton"):
        pass


def test_the_first_configuration_is_the_default_and_kept_choices_are_taken_up():
    assert tuning.chosen("kernel", CONFIGS, CPU, 128) is CONFIGS[0]
    kept = {tuning.key("kernel", CPU, 128): 2, tuning.key("other", CPU): 0}
    tuning.load(kept)
    assert tuning.chosen("kernel", CONFIGS, CPU, 128) is CONFIGS[2]
    assert tuning.chosen("kernel", CONFIGS, CPU, 64) is CONFIGS[0]
    assert tuning.choices() == {"kernel 128 cpu": 2}
    tuning.load(tuning.choices())
    assert tuning.chosen("kernel", CONFIGS, CPU, 128) is CONFIGS[2]
    # A list that has become shorter since.
    assert tuning.chosen("kernel", CONFIGS[:2], CPU, 128) is CONFIGS[0]
    tuning.load({})
    assert tuning.choices() == {}


def test_the_fastest_configuration_is_kept(monkeypatch):
    sizes = []
    times = {16: 3.0, 32: 1.0, 64: 2.0}

    def run():
        sizes.append(tuning.chosen("kernel", CONFIGS, CPU).sizes["M"])

    monkeypatch.setattr(tuning, "_milliseconds", lambda run: times[sizes[-1]])
    assert tuning.measure("kernel", CONFIGS, CPU, run=run) == 1
    assert sizes == [16, 32, 64]
    assert tuning.chosen("kernel", CONFIGS, CPU) is CONFIGS[1]
    times[16] = 0.5
    assert tuning.measure("kernel", CONFIGS, CPU, run=run) == 0
    assert tuning.choices() == {}


def test_a_configuration_that_a_device_has_no_room_for_is_passed_over(monkeypatch):
    errors = pytest.importorskip("triton.runtime.errors")

    def run():
        if tuning.chosen("kernel", CONFIGS, CPU).sizes["M"] == 64:
            raise errors.OutOfResources(300_000, 232_448, "shared memory")

    monkeypatch.setattr(tuning, "_milliseconds", lambda run: 1.0)
    assert tuning.measure("kernel", CONFIGS, CPU, run=run) == 0


def test_importing_the_operations_does_not_import_triton():
    code = "import strop.kernels.attention, strop.kernels.nf4, sys; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.usefixtures("triton")
def test_every_kernel_that_has_several_configurations_is_measured(monkeypatch, device):
    from strop.kernels.triton.tune import tune

    times = iter(range(1000, 0, -1))
    monkeypatch.setattr(tuning, "_milliseconds", lambda run: next(times))
    sizes = {"heads": 1, "kv_heads": 1, "width": 16, "tokens": 20, "longest": 12, "outputs": 16, "inputs": 64}
    kept = tune(device, torch.float16, **sizes)
    # Each that is tried is faster than those before it.
    assert {name.split()[0]: number for name, number in kept.items()} == {
        "attention.forward": 3,
        "attention.keys": 3,
        "attention.queries": 2,
        "nf4.dequantize": 2,
        "qlora.product": 3,
    }
    assert kept == tuning.choices()
