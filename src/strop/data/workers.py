"""Encoding in several processes: what comes out is the same, chunk by chunk, as in one.

    batches ──▶ this process reads ──records──▶ worker 1 ──chunk──┐
                                   ──records──▶ worker 2 ──chunk──┴▶ chunks in the order of the batches

Templates are rendered, and texts cut and looked up, by Python, one at a time: 145 µs a row of GSM8K on one core of a
Zen 4. So large data is encoded by processes that use one thread each, and small data here: a worker takes 0.4 s to
start.

A worker is a fresh interpreter that imports this module and nothing of the program that runs; so it holds no copy of
that program's threads (as forked processes do) and needs no guard around its main module (as spawned ones do). It
ends when its input ends, however this process ended. What goes to and fro is pickled: it is this program's own, and
never touches a file. Whatever goes wrong in a worker, its batch is encoded here: there, too, faults of the data are
raised.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from strop.data.encoding import Encoder
from strop.data.records import Record
from strop.data.store import Chunk

Batch = Sequence[tuple[int, Record]]

SERIAL_BYTES = 3 << 20
"""So much is encoded here before workers are started: as chunks take it up, and about half a second of work."""

_MOST_WORKERS = 8
"""Reading takes a tenth of encoding's time, and is done in one process."""

_LENGTH_BYTES = 8


def encode_all(encoder: Encoder, batches: Iterable[Batch], workers: int | None = None) -> Iterator[Chunk]:
    """Encode batches, the first ones here and, where many follow, the others in workers.

    Args:
        encoder: what encodes.
        batches: the records, a stretch at a time; read as they are needed.
        workers: processes that encode; None for one on each processor, 0 for none.

    Yields:
        The chunk of each batch, in order.
    """
    wanted = min(_processors(), _MOST_WORKERS) if workers is None else workers
    rest = iter(batches)
    made = 0
    for batch in rest:
        chunk = encoder.encode(batch)
        made += len(chunk.body)
        yield chunk
        if made >= SERIAL_BYTES and wanted > (1 if workers is None else 0):
            break
    yield from _encode_in_workers(encoder, rest, wanted)


def _encode_in_workers(encoder: Encoder, batches: Iterator[Batch], wanted: int) -> Iterator[Chunk]:
    """The chunks of the batches that are left; no worker is started where none is left."""
    first = next(batches, None)
    if first is None:
        return
    pool = _Pool(encoder, wanted)
    waiting: deque[tuple[Batch, Future[Chunk | None]]] = deque()
    try:
        batch: Batch | None = first
        while batch is not None or waiting:
            if batch is not None and pool.ready and len(waiting) < 2 * wanted:
                waiting.append((batch, pool.submit(batch)))
                batch = next(batches, None)
            elif waiting:
                sent, future = waiting.popleft()
                yield future.result() or encoder.encode(sent)
            elif batch is not None:
                # Nobody is there yet: this process works on, rather than wait.
                yield encoder.encode(batch)
                batch = next(batches, None)
    finally:
        pool.close()


class _Pool:
    """Workers, and a thread for each that hands it batches and takes its chunks."""

    def __init__(self, encoder: Encoder, wanted: int) -> None:
        self.ready = False
        self._batches: SimpleQueue[tuple[Batch, Future[Chunk | None]] | None] = SimpleQueue()
        self._order = pickle.dumps(encoder)
        self._processes: list[subprocess.Popen[bytes]] = []
        for _ in range(wanted):
            with contextlib.suppress(OSError):  # no more processes may be started: the others do the work
                self._processes.append(_start())
        self._alive = len(self._processes)
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._serve, args=(process,), daemon=True) for process in self._processes
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, batch: Batch) -> Future[Chunk | None]:
        """The chunk of a batch, in time; None where a worker could not make it."""
        future: Future[Chunk | None] = Future()
        with self._lock:
            if self._alive:
                self._batches.put((batch, future))
            else:
                future.set_result(None)
        return future

    def close(self) -> None:
        """End the workers, whatever they are at."""
        self.ready = False
        for process in self._processes:
            process.kill()
            self._batches.put(None)
        for thread in self._threads:
            thread.join()
        for process in self._processes:
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    stream.close()  # type: ignore[union-attr]  # both are pipes

    def _serve(self, process: subprocess.Popen[bytes]) -> None:
        """A worker's thread: batches to it and chunks from it until there are no more, or it is gone."""
        future: Future[Chunk | None] | None = None
        to_worker, from_worker = process.stdin, process.stdout
        assert to_worker is not None
        assert from_worker is not None
        with contextlib.suppress(OSError, EOFError, pickle.PickleError, AttributeError, TypeError):
            _send(to_worker, self._order)
            _receive(from_worker)
            self.ready = True
            while (work := self._batches.get()) is not None:
                batch, future = work
                _send(to_worker, pickle.dumps(batch, protocol=pickle.HIGHEST_PROTOCOL))
                future.set_result(pickle.loads(_receive(from_worker)))  # noqa: S301 - it is our own
                future = None
        if future is not None:
            future.set_result(None)
        with self._lock:
            self._alive -= 1
            if not self._alive:
                self.ready = False
                while not self._batches.empty():
                    if (work := self._batches.get()) is not None:
                        work[1].set_result(None)


def serve() -> None:
    """A worker's whole life: an encoder first, then batches, each answered by its chunk, or by nothing."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever prints must not write into the replies
    batches = sys.stdin.buffer
    with contextlib.suppress(EOFError, BrokenPipeError):
        encoder = pickle.loads(_receive(batches))  # noqa: S301 - from the process that started this one
        _send(replies, b"ready")
        while True:
            batch = pickle.loads(_receive(batches))  # noqa: S301 - likewise
            try:
                chunk = encoder.encode(batch)
            except Exception:  # noqa: BLE001 - it will be raised where somebody sees it
                chunk = None
            _send(replies, pickle.dumps(chunk, protocol=pickle.HIGHEST_PROTOCOL))


def _start() -> subprocess.Popen[bytes]:
    """Start a worker that finds what this process finds, and nothing of the current folder by chance (-P)."""
    paths = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    return subprocess.Popen(
        [sys.executable, "-P", "-c", "from strop.data.workers import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"},
        # Ctrl-C in the terminal is for this process, which ends its workers.
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )


def _send(stream: IO[bytes], content: bytes) -> None:
    stream.write(len(content).to_bytes(_LENGTH_BYTES, "little"))
    stream.write(content)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes:
    """The next message.

    Raises:
        EOFError: the other side is gone.
    """
    head = stream.read(_LENGTH_BYTES)
    content = stream.read(int.from_bytes(head, "little")) if len(head) == _LENGTH_BYTES else b""
    if not content:
        raise EOFError
    return content


def _processors() -> int:
    affinity: Any = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
