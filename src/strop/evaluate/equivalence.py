"""Are two mathematical expressions equal? Asked of `math-verify`, in a process that may be killed.

The library (and sympy below it) bounds its own time by SIGALRM, which exists neither on Windows nor outside the main
thread, and which does not interrupt one long multiplication of integers. A process of its own bounds everything:

    this process ──["1/2", "x = 0.5"]──▶ worker: a watchdog of 5 s, 2 GiB of address space ──true──▶
                                         worker killed by its watchdog ──end of file──▶ not equal

The worker starts at the first question that needs it (most are settled before, by text or by exact numbers), answers
further ones in milliseconds, is started afresh after a death, and ends with this process. The watchdog is
`faulthandler`'s: it runs in C, needs no signal and no interpreter lock, and exists on every system.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TextIO

from strop.errors import StropError

_SECONDS_TO_COMPARE = 5.0
_SECONDS_TO_START = 120.0
_ADDRESS_SPACE = 2 * 1024**3
_READY = "ready"
_ENDED_BY_WATCHDOG = 1  # faulthandler leaves by _exit(1)


def are_equivalent(answer: str, reference: str) -> bool:
    """Tells whether two results are mathematically equal, within bounded time and memory.

    A comparison that the library cannot make, or not in time, counts as not equal. Safe to call from any thread.

    Args:
        answer: LaTeX or plain text of the answer's result, without dollar signs around it.
        reference: the reference's, likewise. (The library is not symmetric: a reference "x = 5" accepts "5".)

    Raises:
        StropError: the worker could not be started.
    """
    return _worker.ask(answer, reference)


class _Worker:
    """The process that compares, started when first asked."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def ask(self, answer: str, reference: str) -> bool:
        question = json.dumps([answer, reference])
        with self._lock:
            # Ended by its watchdog, the worker would be again; killed by something outside, a second try may do.
            for _ in range(2):
                process = self._running()
                try:
                    reply = self._exchange(process, question)
                except BaseException:  # Ctrl-C while waiting: the late reply must not answer the next question
                    process.kill()
                    self._discard(process)
                    raise
                if reply:
                    return reply == "true"
                if self._discard(process) == _ENDED_BY_WATCHDOG:
                    break
            return False

    def close(self) -> None:
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._discard(self._process)

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = process = _start()
            if _streams(process)[1].readline().strip() != _READY:
                self._discard(process)
                raise StropError(
                    "the process that compares answers could not be started",
                    expected="math-verify to be importable by this Python",
                    found=f"{sys.executable} ended while importing it",
                    do="reinstall strop into this environment, then try `python -c 'import math_verify'`",
                )
        return self._process

    @staticmethod
    def _exchange(process: subprocess.Popen[str], question: str) -> str:
        """Returns the worker's reply, or "" if it ended before or over the question."""
        to_worker, from_worker = _streams(process)
        try:
            to_worker.write(question + "\n")
            to_worker.flush()
        except OSError:
            return ""
        return from_worker.readline().strip()

    def _discard(self, process: subprocess.Popen[str]) -> int:
        """Forgets a worker whose output has ended; returns its exit status."""
        self._process = None
        for stream in _streams(process):
            with contextlib.suppress(OSError):  # what was still to be written has nobody to read it
                stream.close()
        return process.wait()


def _start() -> subprocess.Popen[str]:
    """Starts a worker that finds what this process finds, and nothing of the current folder by chance (-P)."""
    paths = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    return subprocess.Popen(
        [sys.executable, "-P", "-c", "from strop.evaluate.equivalence import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="ascii",
        env={**os.environ, "PYTHONPATH": paths},
        # Ctrl-C in the terminal is for the run, which may want to finish; the worker ends when its input does.
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )


def _streams(process: subprocess.Popen[str]) -> tuple[TextIO, TextIO]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout  # type: ignore[return-value]  # Popen opens text files here


def serve() -> None:
    """The worker's whole life: reads questions from standard input until it ends, writes true or false for each."""
    replies, sys.stdout = sys.stdout, sys.stderr  # the library must not be able to write into the replies
    with Path(os.devnull).open("w") as nowhere:
        faulthandler.dump_traceback_later(_SECONDS_TO_START, exit=True, file=nowhere)
        _limit_memory()
        logging.disable(logging.CRITICAL)
        from math_verify import LatexExtractionConfig, parse, verify

        # LaTeX alone: the library's other reader hands text to sympy's, which evaluates it as Python.
        latex = [LatexExtractionConfig(boxed_match_priority=0)]

        def parsed(result: str) -> list[object]:
            found: list[object] = parse(f"\\boxed{{{result}}}", extraction_config=latex, parsing_timeout=None)
            return found

        parsed("1")  # the first reading loads the grammar; it is no part of the first question's time
        print(_READY, file=replies, flush=True)
        for line in sys.stdin:
            faulthandler.dump_traceback_later(_SECONDS_TO_COMPARE, exit=True, file=nowhere)
            try:
                answer, reference = json.loads(line)
                equal = bool(verify(parsed(reference), parsed(answer), timeout_seconds=None))
            except Exception:  # noqa: BLE001  # whatever the library trips over, the answer is not shown to be right
                equal = False
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps(equal), file=replies, flush=True)


def _limit_memory() -> None:
    """Limits the address space where the system can (Linux; macOS may refuse, Windows has no such call)."""
    if sys.platform != "win32":
        import resource

        with contextlib.suppress(OSError, ValueError):
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            limit = _ADDRESS_SPACE if hard == resource.RLIM_INFINITY else min(hard, _ADDRESS_SPACE)
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


_worker = _Worker()
atexit.register(_worker.close)
