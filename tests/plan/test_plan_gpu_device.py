"""A GPU as the driver tells of it, and how it is told to compute; the driver is made up here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import pytest
import torch

from strop.plan import gpu
from strop.plan.machine import probe
from strop.training.meter import memory_bytes, peak_bytes

GIB = 1 << 30
CARD = torch.device("cuda:0")


@dataclass
class Driver:
    """Bytes of the card: in use by all, and by torch."""

    used: int
    reserved: int = 0
    peak: int = 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    made = Driver(used=GIB // 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80 * GIB - made.used, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: made.reserved)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: made.peak)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A card")
    gpu._others.cache_clear()
    yield made
    gpu._others.cache_clear()


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leaves torch's settings, and the environment, as they were."""
    names = ("CUBLAS_WORKSPACE_CONFIG", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    precision, order = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    reduced = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    yield
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(order)
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = reduced
    for name in names:
        os.environ.pop(name, None)


@pytest.mark.usefixtures("settings")
def test_a_look_at_a_card_of_ones_own(driver: Driver):
    driver.used, driver.reserved = GIB, GIB // 2
    found = probe(device="cuda")
    assert (found.name, found.total_bytes, found.free_bytes) == ("A card", 80 * GIB, 80 * GIB)
    assert found.process_bytes == GIB, "the context, and what torch has reserved"
    assert 0 < found.host_free_bytes <= psutil.virtual_memory().total
    assert found.rates is None


@pytest.mark.usefixtures("settings")
def test_a_look_at_a_card_that_others_use(driver: Driver):
    driver.used = 21 * GIB
    found = probe(device="cuda:0")
    assert found.process_bytes == gpu.COMMON_CONTEXT
    assert found.free_bytes == 59 * GIB + gpu.COMMON_CONTEXT


def test_memory_is_torchs_and_the_context(driver: Driver):
    """Libraries that come later are this process's; so is what torch reserves, at its peak and now."""
    gpu.others_bytes("cuda")
    driver.used, driver.reserved, driver.peak = 4 * GIB, 3 * GIB, 5 * GIB
    assert gpu.outside_bytes("cuda:0") == GIB
    assert memory_bytes(CARD) == 4 * GIB
    assert peak_bytes(CARD) == 6 * GIB


def test_others_count_as_they_were_at_the_first_look(driver: Driver):
    driver.used = 30 * GIB
    assert gpu.others_bytes("cuda:0") == 30 * GIB - gpu.COMMON_CONTEXT
    driver.used, driver.reserved = 33 * GIB, 2 * GIB
    assert gpu.used_bytes("cuda:0") == 3 * GIB + gpu.COMMON_CONTEXT
    assert gpu.others_bytes("cuda") == 30 * GIB - gpu.COMMON_CONTEXT, "one card, whatever it is called"


@pytest.mark.usefixtures("settings", "driver")
def test_a_gpu_computes_in_one_order_and_in_full():
    gpu.prepare("cuda")
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.usefixtures("settings", "driver")
def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    gpu.prepare("cuda:0")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert "PYTORCH_ALLOC_CONF" not in os.environ


def test_older_cards_compute_in_float32(monkeypatch: pytest.MonkeyPatch):
    for capability, dtype in (((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert gpu.default_dtype("cuda") == dtype


def test_a_cpu_has_nothing_to_give_back():
    gpu.give_back("cpu")
