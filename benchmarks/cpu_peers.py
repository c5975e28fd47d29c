"""Strop beside its peers on a CPU: the same model, the same samples, one run, in turn.

    python benchmarks/cpu_peers.py [--data FILE --map question:answer] [--sides all] [--rounds 2] [--steps 6] [--json]

NF4 base, LoRA of rank 8 on q, k and v (the recipe of the tutorial that Strop started from), samples of at most 512
tokens at their real lengths, 16 a step. A side is a script in `benchmarks/peers/`, in a process of its own, and its
docstring says what it does; all of them read the same job: tokens, what is learned, learning rates, the first adapter.

    strop       the plan that `strop train` chooses           trl         TRL's SFTTrainer with its defaults
    strop-low   Strop, the plan of least memory               trl-packed  TRL's SFTTrainer, its fastest settings
    strop-float32  Strop in float32, where its own plan is bfloat16 (on CPUs that multiply it faster)
    tuned       transformers + PEFT + bitsandbytes, tuned by hand for a CPU; with OpenMP's threads as they come, which
                spin while they wait, and as "tuned-passive" asleep: which is better depends on what else runs
    tuned-bfloat16  the same with base and activations in bfloat16
    tutorial    the same libraries, as the tutorial's script has them

TRL lives in an environment of its own (`--peers-venv`), which is made when one of its sides is first asked for. Left
out: LLaMA-Factory, which from 0.9.4 on imports torchaudio, whose builds on PyPI do not load beside a CPU's torch, and
before asks for a transformers that refuses bitsandbytes on CPUs; Axolotl and Unsloth, which do not train on CPUs.

The sides run in turn (A B C A B C), so that what else the machine does falls on all alike. Within a run the first step
is left out (it warms up) and the median of the others taken; tokens are those of samples, padding does not count. Over
the rounds the median stands in the table, the best beside it in the JSON file. Ratios to "tuned" are made within a
round, and then the median is taken. Memory is the process's peak of resident memory. A side that is not done within
`--limit` seconds is stopped, and what it had done by then is reported. The limit of the arithmetic is
`matmul_rate.py`'s, measured in every round, the best of them; a side's share of it counts the tokens that it computed,
padding included, and for the head those that are learned.

The losses show that all do the same work: those of sides marked `same_work` must agree with "tuned" within 1e-4 in
every step (0.05 in bfloat16), and their tokens exactly, or the script says so and ends with exit code 1. With
`--busy`, Strop and both "tuned" sides run once more in every round beside a process that keeps one core busy. With
`--avx2` every side is held to AVX2, as on a CPU that has no more: there bfloat16, which TRL's defaults ask for, has no
instructions of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from peers.figures import Run, loss_differences, read_course, slowdown, summarize, table
from peers.job import Job, learned_tokens

HERE = Path(__file__).parent
GSM8K = HERE.parents[1] / "shared" / "data" / "gsm8k" / "train.jsonl"
RESULTS = HERE / "results" / "cpu_peers.json"
TORCH = "torch==2.13.0"
# The stock stack in bfloat16 was 0.033 from itself in float32, Strop 0.01.
TOLERANCE, LOW_TOLERANCE = 1e-4, 0.05
# Beginnings of variables that set threads or choose kernels: no side, nor the limit, has any but its own.
SETTINGS = ("OMP_", "GOMP_", "MKL_", "OPENBLAS_")
TARGETS = ("q_proj", "k_proj", "v_proj")
# How the libraries that have a say in it are held to AVX2: torch's own kernels, its two matrix libraries, Strop's two.
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "STROP_NATIVE": "avx2",
}
RANK, ALPHA, MAX_TOKENS, CONTEXT = 8, 32.0, 512, 2048


@dataclass(frozen=True)
class Side:
    """A script of `peers/`.

    Attributes:
        label: what the table calls it.
        command: the script and its variant.
        peers: name of the requirements file of its own environment; empty for this one.
        same_work: the job's samples in every step: its losses must be those of "tuned", to its dtype's rounding.
        environment: variables that it is run with.
    """

    label: str
    command: tuple[str, ...]
    peers: str = ""
    same_work: bool = True
    environment: dict[str, str] = field(default_factory=dict)


SIDES = {
    "strop": Side("Strop", ("strop_engine.py", "default")),
    "strop-low": Side("Strop, least memory", ("strop_engine.py", "low")),
    "strop-float32": Side("Strop in float32", ("strop_engine.py", "float32")),
    "tuned": Side("transformers + PEFT + bitsandbytes, tuned by hand", ("tuned.py",)),
    "tuned-passive": Side("the same, threads that sleep", ("tuned.py",), environment={"OMP_WAIT_POLICY": "PASSIVE"}),
    "tuned-bfloat16": Side("the same in bfloat16", ("tuned.py", "bfloat16")),
    "tutorial": Side("the tutorial's PEFT script", ("tutorial.py",)),
    "trl": Side("TRL, its defaults", ("trl_sft.py", "default"), "peers", same_work=False),
    "trl-packed": Side("TRL, packed, float32", ("trl_sft.py", "packed"), "peers", same_work=False),
}
WITHOUT_PEERS = [name for name, side in SIDES.items() if not side.peers]
BUSY_SIDES = ("strop", "tuned", "tuned-passive")


def write_job(place: Path, given: argparse.Namespace) -> tuple[Path, float, str]:
    """Reads and orders the data as `strop train` does.

    Returns:
        The job's file, the learned share of its tokens, and what the data is called.
    """
    from strop.data.examples import prepare
    from strop.data.order import step_samples
    from strop.data.problems import write_problems
    from strop.data.tokenizer import Tokenizer
    from strop.model.families import read_spec
    from strop.model.lora import make_adapter, write_adapter
    from strop.model.starter import starter_folder
    from strop.recipe.schema import DataSection, TrainSection
    from strop.training.schedule import learning_rate

    data, mapping, name = given.data, given.map, given.data and Path(given.data).name
    if not data and GSM8K.is_file():
        data, mapping, name = str(GSM8K), "question:answer", "GSM8K"
    elif not data:
        data, name = str(write_problems(place / "problems") / "train"), "the demo's problems"
    model, steps, samples = starter_folder(), given.steps, given.samples
    section = DataSection(train=data, map=mapping, eval=0.0, max_tokens=MAX_TOKENS)
    found = prepare(section, Tokenizer.from_folder(model), seed=0, context_tokens=CONTEXT).learned
    train = TrainSection(samples_per_step=samples, steps=steps)
    spec = read_spec(model)
    adapter = make_adapter(spec, rank=RANK, alpha=ALPHA, dropout=0.0, targets=TARGETS, seed=0)
    (place / "adapter").mkdir()
    write_adapter(adapter, place / "adapter", str(model), spec)
    given = [(example.tokens.tolist(), example.learned.tolist()) for example in found]
    chosen = [[given[index] for index in step_samples(0, step, len(given), samples)] for step in range(steps)]
    rates = [learning_rate(train, step, steps) for step in range(steps)]
    Job(str(model), chosen, rates, str(place / "adapter"), RANK, ALPHA, list(TARGETS)).write(place / "job.json")
    read = sum(len(tokens) for step in chosen for tokens, _ in step)
    learned = sum(learned_tokens(sample) for step in chosen for sample in step)
    return place / "job.json", learned / read, name


def plain_environment() -> dict[str, str]:
    """This process's variables without those that set threads or choose kernels."""
    return {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}


def run_side(side: Side, job: Path, python: Path, limit: float, held: dict[str, str]) -> Run:
    """Runs a side to its end, or to the limit; ``held`` are variables that all sides are run with."""
    course, log = job.with_name("course.jsonl"), job.with_name("log.txt")
    course.write_text("", encoding="utf-8")
    script, *variant = side.command
    command = [str(python), str(HERE / "peers" / script), str(job), str(course), *variant]
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**plain_environment(), **held, **offline, **side.environment},
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
        )
        try:
            end = "done" if process.wait(limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            end = "stopped"
        finally:
            process.kill()
            process.wait()
    return read_course(course, end, log.read_text(encoding="utf-8", errors="replace"))


def peers_python(folder: Path, name: str) -> Path:
    """The interpreter of a peers' environment, which is made if it is not there or its requirements have changed."""
    requirements = HERE / f"requirements-{name}.txt"
    home = folder / name
    python, made_from = home / "bin" / "python", home / "made-from.txt"
    if not made_from.is_file() or made_from.read_text(encoding="utf-8") != requirements.read_text(encoding="utf-8"):
        print(f"making {home} from {requirements.name}", file=sys.stderr)
        venv.create(home, with_pip=True, clear=True)
        (folder / ".gitignore").write_text("*\n", encoding="utf-8")
        # torch first and alone: what the others ask of it is then there, and pip does not look for another build.
        for wanted in ([TORCH], ["-r", str(requirements)]):
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted], check=True)
        made_from.write_text(requirements.read_text(encoding="utf-8"), encoding="utf-8")
    return python


@contextmanager
def busy_core(where: str) -> Iterator[None]:
    """Keeps one core busy: "free" lets the system choose which, "pinned" is the last one."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        if where == "pinned":
            os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
        yield
    finally:
        process.kill()
        process.wait()


def measure_limit(job: Path, learned_share: float, held: dict[str, str]) -> dict[str, Any]:
    """What `matmul_rate.py` finds, in a process of its own."""
    model = json.loads(job.read_text(encoding="utf-8"))["model"]
    command = [sys.executable, str(HERE / "matmul_rate.py"), model, "--learned-share", str(learned_share)]
    found = subprocess.run(command, env={**plain_environment(), **held}, capture_output=True, check=True)
    return dict(json.loads(found.stdout))


def machine() -> dict[str, Any]:
    """The CPU's name, cores and system."""
    import psutil

    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": psutil.cpu_count(logical=False),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def run_rounds(given: argparse.Namespace, job: Path, learned_share: float) -> dict[str, Any]:
    """Runs all sides in turn, round after round, and gives the figures."""
    pythons = {
        name: peers_python(given.peers_venv.absolute(), SIDES[name].peers)
        if SIDES[name].peers
        else Path(sys.executable)
        for name in given.sides
    }
    quiet: dict[str, list[Run]] = {name: [] for name in given.sides}
    busy: dict[str, list[Run]] = {name: [] for name in given.sides if given.busy and name in BUSY_SIDES}
    limits, held = [], AVX2 if given.avx2 else {}
    for number in range(given.rounds):
        limits.append(measure_limit(job, learned_share, held))
        for name in given.sides:
            _tell(number, name)
            quiet[name].append(run_side(SIDES[name], job, pythons[name], given.limit, held))
        for name, runs in busy.items():
            _tell(number, f"{name} beside a busy core")
            with busy_core(given.busy):
                runs.append(run_side(SIDES[name], job, pythons[name], given.limit, held))
    limit = max(limits, key=lambda found: found["limit_tokens_per_s"])
    reference = quiet.get("tuned", [])
    return {
        "limit": limit,
        "sides": {name: summarize(runs, reference, limit) for name, runs in quiet.items()},
        "beside_a_busy_core": {
            name: {"where": given.busy, **slowdown(runs, quiet[name])} for name, runs in busy.items()
        },
        "same_work": {
            name: loss_differences(runs, reference[0])
            for name, runs in quiet.items()
            if reference and SIDES[name].same_work
        },
    }


def faults(figures: dict[str, Any]) -> list[str]:
    """What makes the run's figures no comparison: a side that failed, other losses, other tokens."""
    found = [f"{name}: a run failed" for name, each in figures["sides"].items() if "failed" in each["ends"]]
    for name, each in figures["same_work"].items():
        difference = each["largest_loss_difference"]
        settings = figures["sides"].get(name, {}).get("settings", {})
        allowed = LOW_TOLERANCE if settings.get("dtype") == "bfloat16" else TOLERANCE
        if difference is not None and not difference <= allowed:
            found.append(f"{name}: a loss differs from tuned's by {difference:.2g}, more than {allowed:g}")
        if each["most_tokens_apart"]:
            found.append(f"{name}: a step has {each['most_tokens_apart']} tokens more or fewer than tuned's")
    return found


def _tell(number: int, what: str) -> None:
    print(f"round {number + 1}: {what}", file=sys.stderr, flush=True)


def _sides(text: str) -> list[str]:
    names = list(SIDES) if text == "all" else text.split(",")
    if unknown := [name for name in names if name not in SIDES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(SIDES)} and all")
    return names


def main() -> None:
    """Runs the sides and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="file or folder (default: GSM8K where it lies beside, else problems made here)")
    parser.add_argument("--map", help="columns, as question:answer")
    parser.add_argument("--sides", type=_sides, default=WITHOUT_PEERS, help="names with commas, or all")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--samples", type=int, default=16, help="samples a step")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds after which a side is stopped")
    parser.add_argument("--busy", nargs="?", const="free", choices=["free", "pinned"], help="also beside a busy core")
    parser.add_argument("--avx2", action="store_true", help="hold every library to AVX2, as on a CPU with no more")
    parser.add_argument("--peers-venv", type=Path, default=Path(".venv-peers"), help="folder of peers' environments")
    parser.add_argument("--json", type=Path, nargs="?", const=RESULTS, help=f"write the figures (to {RESULTS.name})")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        job, learned_share, name = write_job(place, given)
        figures = {
            "date": date.today().isoformat(),
            **machine(),
            **({"held_to": "AVX2"} if given.avx2 else {}),
            "data": name,
            "samples_a_step": given.samples,
            "rounds": given.rounds,
            "learned_share": round(learned_share, 4),
            **run_rounds(given, job, learned_share),
        }
    print(table({SIDES[name].label: each for name, each in figures["sides"].items()}))
    for name, each in figures["beside_a_busy_core"].items():
        print(f"{SIDES[name].label} beside a busy core: {each['times_slower']:.2f} times slower")
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if found := faults(figures):
        raise SystemExit("NOT A COMPARISON:\n" + "\n".join(found))


if __name__ == "__main__":
    main()
