"""Encoding in workers gives the bytes of encoding here, in order, whatever happens to a worker."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from strop.data import workers
from strop.data.encoding import Encoder
from strop.data.examples import prepare
from strop.data.records import Place, Record
from strop.data.store import Chunk
from strop.data.tokenizer import Tokenizer
from strop.data.workers import Batch, encode_all
from strop.errors import TemplateError
from strop.recipe.schema import DataSection

SETTINGS: Any = SimpleNamespace(map=None, system=None, overlong="cut_prompt", learn="answers", thinking=None)


def records(count: int) -> Iterator[tuple[int, Record]]:
    for n in range(count):
        question = "" if n % 11 == 5 else f"What is {n} + {n}? " + "word " * (n % 70)
        yield n, Record({"question": question, "answer": f"It is {2 * n}. <|im_end|> 日本"}, Place("f.jsonl", n + 1))


def batches(count: int = 120, size: int = 10) -> Iterator[Batch]:
    rest = records(count)
    return iter(lambda: list(itertools.islice(rest, size)), [])


@pytest.fixture
def encoder(chatml: Tokenizer) -> Encoder:
    return Encoder(SETTINGS, chatml, 90)


@pytest.fixture(autouse=True)
def start_soon_and_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are started behind the second batch, and nothing is encoded here while they start."""
    monkeypatch.setattr(workers, "SERIAL_BYTES", 5000)
    serve_one = workers._Pool.__init__

    def waiting(self: Any, *given: Any) -> None:
        serve_one(self, *given)
        while not self.ready and self._alive:
            time.sleep(0.01)

    monkeypatch.setattr(workers._Pool, "__init__", waiting)


def parts(chunks: Iterator[Chunk]) -> list[Any]:
    return [(one.records, one.rows.tobytes(), one.body, one.refusals, one.files, one.tally) for one in chunks]


def test_the_same_bytes_in_the_same_order(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = parts(encode_all(encoder, batches(), 0))
    here = []
    encode = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, batch: here.append(batch[0][0]) or encode(self, batch))
    for count in (1, 2, 3):
        here.clear()
        assert parts(encode_all(encoder, batches(), count)) == expected
        assert here == [0, 10]  # the others were encoded elsewhere
    assert sum(one[0] for one in expected) == 120
    assert any(one[3] for one in expected)


def test_a_tokenizer_that_was_sent_is_the_same(chatml: Tokenizer) -> None:
    sent = pickle.loads(pickle.dumps(chatml))
    for name in ("special_tokens", "stop_tokens", "vocabulary_size", "bos", "eos"):
        assert getattr(sent, name) == getattr(chatml, name)
    assert (sent.backend.to_str(), sent.template.source) == (chatml.backend.to_str(), chatml.template.source)


def test_little_data_starts_no_worker(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_start", lambda: pytest.fail("a worker was started"))
    for count in (1, 20):
        assert sum(one.records for one in encode_all(encoder, batches(count))) == count
    monkeypatch.setattr(workers, "_processors", lambda: 1)
    assert sum(one.records for one in encode_all(encoder, batches())) == 120


def gone() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def dies_at_the_third_batch() -> subprocess.Popen[bytes]:
    code = """
import os
from strop.data import workers
receive, left = workers._receive, [4]
def receiving(stream):
    left[0] -= 1
    return receive(stream) if left[0] else os._exit(3)
workers._receive = receiving
workers.serve()
"""
    paths = os.pathsep.join(sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
    )


def cannot_start() -> subprocess.Popen[bytes]:
    raise OSError(11, "Resource temporarily unavailable")


@pytest.mark.parametrize("start", [gone, dies_at_the_third_batch, cannot_start])
def test_what_a_worker_does_not_do_is_done_here(encoder: Encoder, monkeypatch: pytest.MonkeyPatch, start: Any) -> None:
    expected = parts(encode_all(encoder, batches(), 0))
    monkeypatch.setattr(workers, "_start", start)
    assert parts(encode_all(encoder, batches(), 2)) == expected


def test_a_fault_in_a_worker_is_raised_here(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(self: Encoder, batch: Batch) -> Chunk:
        if batch[0][0] == 50:
            raise TemplateError("the sixth batch")
        return encode(self, batch)

    # Workers know nothing of this: they are sent a batch that they cannot read.
    encode = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", faulty)
    broken = (batch if batch[0][0] != 50 else [(50, None)] for batch in batches())
    done: list[int] = []
    with pytest.raises(TemplateError, match="the sixth batch"):
        done.extend(chunk.records for chunk in encode_all(encoder, broken, 2))  # type: ignore[arg-type]
    assert done == [10] * 5


def test_workers_end_with_whoever_stops_listening(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = workers._start
    monkeypatch.setattr(workers, "_start", lambda: started.append(start()) or started[-1])
    chunks = encode_all(encoder, batches(), 2)
    for _ in range(4):
        next(chunks)
    assert [process.poll() for process in started] == [None, None]
    chunks.close()
    assert [process.poll() for process in started] == [-signal.SIGKILL] * 2 if os.name == "posix" else [1, 1]


def test_a_data_set_is_the_same_in_any_number_of_processes(
    tmp_path: Path, chatml: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from strop.data import examples

    monkeypatch.setattr(examples.batches, "__defaults__", (10,))
    file = tmp_path / "f.jsonl"
    file.write_text("".join(json.dumps(record.values) + "\n" for _, record in records(150)), "utf-8")
    section = DataSection(train=str(file), eval=0.1, max_tokens=90, overlong="cut_end", system="Be brief.")
    sets = [prepare(section, chatml, seed=1, workers=count) for count in (0, 1, 2)]
    assert len({one.fingerprint for one in sets}) == 1
    assert all(one.refused == sets[0].refused for one in sets)
    assert all([e.tokens.tolist() for e in one.learned] == [e.tokens.tolist() for e in sets[0].learned] for one in sets)
