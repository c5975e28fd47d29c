"""The first run on a card: what is worth most, in order, each step under a limit of its own, all in one command.

    python benchmarks/gpu_first.py [--seconds 530] [--only words,…] [--results FOLDER] [--bundle FILE]

    environment   the card, its driver, versions, the compiler that Triton needs, and the ceilings of product and copy
    kernel        one small kernel: whether Triton compiles and launches here
    operations    every operation beside torch on a CPU
    engine        losses and gradients of the engine beside a CPU's
    kernels       Triton's kernels beside their references
    training      whole runs of a tiny model: they learn, repeat to the bit, and can be resumed
    memory        the tests that count memory, alone on the card
    timings       each operation on the job's shapes: `gpu_kernels.py`
    losses        the starter model in bfloat16 beside a CPU in float32: `gpu_losses.py`, where the model is there
    seed          the tutorial's job: `gpu_seed_job.py`, with all the time that is left

A step that fails or takes too long stops no other. What it printed goes to `first.log`, how it ended to `first.json`
as soon as it has; the table at the end is `first.md`. `--bundle` packs the folder into one file after every step, so
that it can be fetched in one piece whatever happens.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
# A step is not begun with less time left.
LEAST_SECONDS = 10
KERNEL = """
import torch
from strop.kernels.triton import found
from strop.kernels import select
device = torch.device("{device}")
print("Triton:", found.version(), found.reason(device) or "runs")
print("operations are computed by", select.describe(device))
raise SystemExit(bool(found.reason(device)) and device.type == "cuda")
"""


@dataclass(frozen=True)
class Step:
    """A process of the first run.

    Attributes:
        name: what `--only` takes.
        seconds: it may take; the last step takes what is left.
        command: words after the interpreter.
    """

    name: str
    seconds: float
    command: tuple[str, ...]


def steps(given: argparse.Namespace, folder: Path) -> list[Step]:
    """What is done, in order."""
    pytest = ("-m", "pytest", "-q", "-rs", "--timeout=120", "-p", "no:cacheprovider", "-m", "not slow")
    at_once = ("-n", str(given.workers)) if given.workers > 1 and importlib.util.find_spec("xdist") else ()
    flags = ("--device", given.device, *(("--tiny",) if given.device == "cpu" else ()))
    script = {name: str(HERE / f"gpu_{name}.py") for name in ("kernels", "losses", "seed_job")}

    def tests(*paths: str) -> tuple[str, ...]:
        return (*pytest, *at_once, *paths)

    sides = ("--cases", "seed", "--sides", given.sides, "--total", "{left}", "--results", str(folder))
    return [
        Step("environment", 60, (str(HERE / "card/machine.py"), given.device, "--roof", *flags[2:])),
        Step("kernel", 60, ("-c", KERNEL.format(device=given.device))),
        Step("operations", 120, tests("tests/gpu/test_gpu_operations.py")),
        Step("engine", 90, tests("tests/gpu/test_gpu_engine.py", "tests/gpu/test_gpu_bitsandbytes.py")),
        Step("kernels", 120, tests("tests/kernels/triton")),
        Step("training", 120, tests("tests/gpu/test_gpu_training.py")),
        Step("memory", 90, (*pytest, "tests/gpu/test_gpu_memory.py")),
        Step("timings", 100, (script["kernels"], *flags, "--json", str(folder / "kernels.json"), *_quick(given))),
        Step("losses", 130, (script["losses"], *flags, "--steps", "20", "--folder", str(folder))),
        Step("seed", float("inf"), (script["seed_job"], *flags, *sides)),
    ]


def _quick(given: argparse.Namespace) -> tuple[str, ...]:
    return () if given.device == "cpu" else ("--tokens", "2048,8192", "--seconds", "0.1")


def run_step(step: Step, limit: float, log: Path) -> dict[str, Any]:
    """Runs a step with all that it starts, ends both at the limit, and tells how it went."""
    command = [sys.executable, *(word.replace("{left}", f"{max(limit - 5, 1):.0f}") for word in step.command)]
    began = time.monotonic()
    with log.open("ab") as output:
        output.write(f"\n======== {step.name}\n".encode())
        output.flush()
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            code = process.wait(limit)
            end = "done" if code == 0 else f"failed ({code})"
        except subprocess.TimeoutExpired:
            end = "stopped"
        finally:
            # Whatever it has left behind: a child that holds the card would spoil what comes next.
            _end(process)
    words = log.read_text(encoding="utf-8", errors="replace").rpartition(f"======== {step.name}\n")[2]
    return {"step": step.name, "end": end, "seconds": round(time.monotonic() - began, 1), "said": last_words(words)}


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_words(text: str) -> str:
    """The last line that says something; of tests, their count."""
    lines = [line.strip("= ") for line in text.splitlines() if line.strip("= ")]
    return lines[-1][:200] if lines else ""


def table(found: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| step | end | seconds | said |", "|---|---|---:|---|"]
    for each in found:
        said = each["said"].replace("|", "/")
        lines.append(f"| {each['step']} | {each['end']} | {each['seconds']:.0f} | {said} |")
    return "\n".join(lines) + "\n"


def surroundings() -> dict[str, Any]:
    """What a failure may come from beside the card."""
    found: dict[str, Any] = {"processors": os.cpu_count(), "python": sys.version.split()[0]}
    found |= {name: shutil.which(name) or "not there" for name in ("gcc", "cc", "clang", "nvidia-smi", "git")}
    temporary = Path(os.environ.get("TMPDIR", "/tmp"))
    return {**found, "free_disk_gb": round(shutil.disk_usage(temporary).free / 1e9, 1)}


def bundle(folder: Path, file: Path | None) -> None:
    """Packs the results into one file, whole at every moment."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(file.name + ".part")
        with tarfile.open(part, "w:gz") as packed:
            packed.add(folder, folder.name)
        part.replace(file)


def main() -> int:
    """All steps, as far as the time goes; 1 where one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=530.0, help="of all steps together")
    parser.add_argument("--only", help="names of steps, with commas")
    parser.add_argument("--sides", default="strop-14.5gb,tutorial,strop-5gib", help="of the seed job")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes of tests at a time")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, help="a .tar.gz of the results, written after every step")
    given = parser.parse_args()
    folder = given.results.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    log, began, found = folder / "first.log", time.monotonic(), list[dict[str, Any]]()
    log.write_text(json.dumps(surroundings(), indent=1) + "\n", encoding="utf-8")
    for step in steps(given, folder):
        if given.only and step.name not in given.only.split(","):
            continue
        left = given.seconds - (time.monotonic() - began)
        if left < LEAST_SECONDS:
            found.append({"step": step.name, "end": "not begun", "seconds": 0.0, "said": "no time was left"})
        else:
            print(f"{step.name} …", file=sys.stderr, flush=True)
            found.append(run_step(step, min(step.seconds, left), log))
            print(f"{step.name}: {found[-1]['end']}, {found[-1]['seconds']} s", file=sys.stderr, flush=True)
        (folder / "first.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (folder / "first.md").write_text(table(found), encoding="utf-8")
        bundle(folder, given.bundle)
    print(table(found))
    return int(any(each["end"] != "done" for each in found))


if __name__ == "__main__":
    raise SystemExit(main())
