"""Copies beside a GPU's computing: which stream waits for which, by a device that writes down what it is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from strop.model import batch as batch_module
from strop.model.batch import Batch, uploads
from strop.model.streams import Aside


class FakeGpu(SimpleNamespace):
    """A device with a name, as `torch.device` has one."""

    def __str__(self) -> str:
        return "cuda:0"


GPU = FakeGpu(type="cuda")


class FakeCuda:
    """Streams and events that note their calls; what is copied inside a stream is noted under its name."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.streams = 0
        self.inside = "computing"
        self.computing = FakeStream(self, "computing")

    def stream(self, device: object = None) -> FakeStream:
        self.streams += 1
        return FakeStream(self, "aside")

    def event(self) -> FakeEvent:
        return FakeEvent(self)

    @contextmanager
    def within(self, stream: FakeStream) -> Iterator[None]:
        before, self.inside = self.inside, stream.name
        yield
        self.inside = before


class FakeStream:
    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def wait_stream(self, other: FakeStream) -> None:
        self.cuda.log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event: FakeEvent) -> None:
        self.cuda.log.append(f"{self.name} waits for event {event.number}")

    def synchronize(self) -> None:
        self.cuda.log.append(f"the host waits for {self.name}")


class FakeEvent:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.number = cuda, sum("records" in line for line in cuda.log)

    def record(self, stream: FakeStream) -> None:
        self.cuda.log.append(f"{stream.name} records event {self.number}")


class Noted:
    """A tensor that notes what is copied into it."""

    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def copy_(self, source: Noted, non_blocking: bool = False) -> None:
        assert non_blocking, "the host must not wait"
        self.cuda.log.append(f"{self.cuda.inside}: {source.name} to {self.name}")

    def record_stream(self, stream: FakeStream) -> None:
        self.cuda.log.append(f"{self.name} is used by {stream.name}")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    fake = FakeCuda()
    monkeypatch.setattr(torch.cuda, "Stream", fake.stream)
    monkeypatch.setattr(torch.cuda, "Event", fake.event)
    monkeypatch.setattr(torch.cuda, "stream", fake.within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: fake.computing)
    batch_module._side_stream.cache_clear()
    yield fake
    batch_module._side_stream.cache_clear()


def test_a_copy_comes_after_what_was_launched_and_before_what_waits_for_it(cuda: FakeCuda):
    aside = Aside(GPU, 2)  # type: ignore[arg-type]
    host, place = Noted(cuda, "host"), Noted(cuda, "place")
    aside.copy(0, host, place)  # type: ignore[arg-type]
    aside.copy(1, place, host)  # type: ignore[arg-type]
    aside.wait(0)
    aside.wait(0)
    aside.settle()
    assert cuda.log == [
        "aside waits for computing",
        "aside: host to place",
        "aside records event 0",
        "aside waits for computing",
        "aside: place to host",
        "aside records event 1",
        "computing waits for event 0",  # once: it has been waited for
        "the host waits for aside",
    ]


def test_on_a_cpu_copies_are_done_at_once():
    aside = Aside(torch.device("cpu"), 1)
    target = torch.zeros(3)
    aside.copy(0, torch.ones(3), target)
    assert target.tolist() == [1, 1, 1]
    aside.wait(0)
    aside.settle()


def test_the_next_pack_is_on_its_way_while_one_is_computed(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch):
    def moved(pack: str, device: object) -> Batch:
        cuda.log.append(f"{cuda.inside}: {pack} is sent")
        part = Noted(cuda, pack)
        return Batch(part, part, part, (), part, part, ())  # type: ignore[arg-type]

    monkeypatch.setattr(batch_module, "make_batch", moved)
    for batch in uploads(["a", "b", "c"], GPU):  # type: ignore[arg-type]
        cuda.log.append(f"{batch.tokens_T.name} is computed")  # type: ignore[attr-defined]
    told = [line for line in cuda.log if "is used by" not in line]
    waits = "computing waits for aside"
    assert told == [
        *("aside: a is sent", waits, "aside: b is sent", "a is computed", waits),
        *("aside: c is sent", "b is computed", waits, "c is computed"),
    ]
    assert cuda.log.count("b is used by computing") == 5, "its memory goes to nobody else before that is done"
    assert len(list(uploads(["d", "e"], GPU))) == 2  # type: ignore[arg-type]
    assert cuda.streams == 1, "a stream a step would hold memory of its own for each"
