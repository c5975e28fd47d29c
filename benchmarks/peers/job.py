"""What a side of `cpu_peers.py` is given, and what it writes down while it works.

    job.json (model folder, samples of every step, learning rates, adapter) ─▶ side ─▶ course.jsonl

A side is a script of this folder in a process of its own, with the job's and the course's path as arguments. It writes
a line when it is ready, one after every micro-batch and one after every step, so that what it had done is known even
of a side that is stopped at a time limit. Nothing here imports torch or Strop: peers live in environments without it.

    {"kind": "ready", "load_seconds": …, "threads": …, "versions": {…}, "settings": {…}}
    {"kind": "pass", "seconds": …, "computed": …, "read": …, "learned": …, "peak_bytes": …}  sums since the step began
    {"kind": "step", …, "cpu_seconds": …, "loss": …}

Three counts of tokens: *computed* are the positions that went through the model, padding included; *read* are tokens of
samples; *learned* are those with a loss.

On a GPU `peak_bytes` is what torch's allocator took from the card at most, and `card_bytes` stands beside it: all that
was in use on the card after a micro-batch at most, the context and the libraries included.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Sample = tuple[list[int], list[bool]]


@dataclass(frozen=True)
class Job:
    """The same work for all sides.

    Attributes:
        model: folder of the model.
        steps: samples of every step; of each its tokens, and which of them are learned.
        rates: learning rate of every step.
        first_adapter: folder with the adapter that every side starts from, in PEFT's format.
        rank, alpha, targets: of the adapter.
        clip: largest norm of all gradients together.
        seed: the recipe's.
        dropout: of the adapter's inputs.
        device: where it is computed: "cpu" or "cuda".
        micro_batch: samples that the tutorial's script puts into a micro-batch.
        made: how the samples were made (`card.made_samples`), where they are made again instead of read.
    """

    model: str
    steps: list[list[Sample]]
    rates: list[float]
    first_adapter: str
    rank: int
    alpha: float
    targets: list[str]
    clip: float = 1.0
    seed: int = 0
    dropout: float = 0.0
    device: str = "cpu"
    micro_batch: int = 4
    made: dict[str, Any] | None = None

    def write(self, path: Path) -> None:
        """Writes the job to a file."""
        values = asdict(self)
        if self.made:
            values["steps"] = []
        path.write_text(json.dumps(values), encoding="utf-8")


def read_job(path: Path) -> Job:
    """The job that a file holds."""
    values = json.loads(path.read_text(encoding="utf-8"))
    if values.get("made"):
        sys.path.insert(1, str(Path(__file__).parents[1]))
        from card.made_samples import made_steps

        values["steps"] = made_steps(**values["made"])
    else:
        values["steps"] = [[(tokens, learned) for tokens, learned in step] for step in values["steps"]]
    return Job(**values)


def learned_tokens(sample: Sample) -> int:
    """Tokens of a sample with a loss: nothing predicts the first."""
    return sum(sample[1][1:])


class Course:
    """Writes what a side does, as it does it."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self._path, self._on_card = path, device.startswith("cuda")
        self._card_bytes = 0
        self._begun = time.perf_counter()
        self._cpu_begun = time.process_time()
        self._counts = [0, 0, 0]

    def ready(self, packages: list[str], **settings: Any) -> None:
        """The model is loaded; what follows is measured."""
        import torch

        threads, versions = torch.get_num_threads(), {name: _version(name) for name in packages}
        self._wait()
        seconds = time.perf_counter() - self._begun
        self._write(kind="ready", load_seconds=seconds, threads=threads, versions=versions, settings=settings)

    def begin_step(self) -> None:
        """A step begins."""
        self._wait()
        self._counts = [0, 0, 0]
        self._begun, self._cpu_begun = time.perf_counter(), time.process_time()

    def count(self, computed: int, read: int, learned: int) -> None:
        """A micro-batch is about to go through the model."""
        self._counts = [a + b for a, b in zip(self._counts, (computed, read, learned), strict=True)]

    def end_pass(self) -> None:
        """The micro-batches counted so far have gone forward and backward."""
        self._write(kind="pass", **self._sums())

    def end_step(self, loss: float | None) -> None:
        """The optimiser has moved. A loss that is not known yet is written by `late_loss`."""
        self._wait()
        sums = self._sums()
        self._write(kind="step", **sums, cpu_seconds=time.process_time() - self._cpu_begun, loss=loss)

    def refused(self, reason: str) -> None:
        """The side cannot do the job, and says why."""
        self._write(kind="refused", reason=reason)

    def late_loss(self, loss: float) -> None:
        """The loss of the step that ended last, where a trainer tells it afterwards."""
        self._write(kind="loss", loss=loss)

    def _sums(self) -> dict[str, float]:
        computed, read, learned = self._counts
        seconds = time.perf_counter() - self._begun
        counts = {"seconds": seconds, "computed": computed, "read": read, "learned": learned}
        if not self._on_card:
            return {**counts, "peak_bytes": peak_bytes()}
        import torch

        free, total = torch.cuda.mem_get_info()
        # The allocator keeps what it took, so that what is in use after a micro-batch is what was in use at most.
        self._card_bytes = max(self._card_bytes, total - free)
        return {**counts, "peak_bytes": torch.cuda.max_memory_reserved(), "card_bytes": self._card_bytes}

    def _wait(self) -> None:
        """Until the card has done what it was given: the clock is the host's."""
        if self._on_card:
            import torch

            torch.cuda.synchronize()

    def _write(self, **line: Any) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def peak_bytes() -> int:
    """Most resident memory that this process has had.

    From /proc where there is one: Linux lets a child's `ru_maxrss` start at what its parent had when it was started.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"  # run from its source


def arguments(variants: list[str] | None = None) -> tuple[Job, Course, str]:
    """Job, course and variant that a side's command line names; one of ``variants`` where they are given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=Path)
    parser.add_argument("course", type=Path)
    parser.add_argument("variant", nargs="?", default="", choices=variants)
    given = parser.parse_args()
    job = read_job(given.job)
    return job, Course(given.course, job.device), given.variant
