"""The tutorial's job and its like on one GPU: Strop at several budgets beside the stacks that people use.

    python benchmarks/gpu_seed_job.py [--cases seed,…] [--sides strop-5gib,tutorial,…] [--steps 4] [--whole]

    seed      InternLM-chat-7b's sizes, LoRA of rank 8 on q, k and v, dropout 0.1, samples of at most 512 tokens with
              MATH's lengths, 64 a step: what the tutorial's PEFT script trains
    xtuner    the same with the settings of the tutorial's XTuner run: rank 64 on all projections, alpha 16
    llama3-8b-2048, llama3-8b-4096
              Llama-3-8B's sizes, rank 16 on all projections, every sample as long as that and all of it learned:
              the shape that published figures have

Weights and tokens are random (`card/made_model.py`, `card/made_samples.py`). Every side is a script of `peers/` in a
process of its own, one after another in one run, all from the same NF4 bytes, the same samples in the same order and
the same first adapter. A side whose libraries are not installed is skipped by name; one that is not done within
`--limit` seconds is stopped, and what it had done stands. Each leaves a JSON file in the folder of results; a side that
has left one is not run again (`--again` does), so that the whole can be done in several short calls, and the table is
made from the files that are there.

Tokens are those of samples; the first step, which compiles and warms up, is left out and the median of the others
taken. Memory is told twice: what torch's allocator reserved at most, and all that was in use on the card beyond what
was in use before, the context and the libraries included; the second is what a budget means. The share of the ceiling
counts the operations that the job asks for (`Sizes.step_flops`), computing again left out, over the rate of a large
product of matrices measured in this run. The time of 12,500 samples × 3 epochs follows from the rate; with `--whole`
Strop really does all of it, in parts of `--limit` seconds that take up where the last one ended.

On a CPU (`--device cpu --tiny`) the same code runs with a tiny model, to be tested; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from card.machine import bytes_in_use, results_folder
from card.made_model import SIZES
from card.seed_table import seed_table
from peers.figures import read_course
from peers.job import Job

HERE = Path(__file__).parent
SAMPLES, EPOCHS = 12_500, 3
QKV = ("q_proj", "k_proj", "v_proj")
ALL = (*QKV, "o_proj", "gate_proj", "up_proj", "down_proj")
# A part of a whole job ends so long before the limit: loading, and the step that is being done.
PART_MARGIN = 90
# A side is not begun with less time left: a 7B model is loaded in half of it.
LEAST_SECONDS = 120
STARTED = time.monotonic()


@dataclass(frozen=True)
class Case:
    """A model and a recipe.

    Attributes:
        sizes: of `SIZES`.
        rank, alpha, targets, dropout: of the adapter.
        max_tokens: the longest sample.
        samples_per_step: samples of an optimiser step.
        count: samples of the data.
        exact: every sample is as long as the longest, and all of it learned.
        micro_batch: samples of the tutorial's micro-batch.
    """

    sizes: str
    rank: int
    alpha: int
    targets: tuple[str, ...]
    dropout: float
    max_tokens: int
    samples_per_step: int
    count: int = SAMPLES
    exact: bool = False
    micro_batch: int = 4

    @property
    def adapter_weights(self) -> int:
        """Numbers of the adapter."""
        sizes = SIZES[self.sizes]
        shapes = [sum(shape) for name, shape in sizes.shapes().items() if name.split(".")[1] in self.targets]
        return sizes.layers * self.rank * sum(shapes)

    @property
    def whole_steps(self) -> int:
        """Steps of all samples, three times."""
        return -(-self.count * EPOCHS // self.samples_per_step)


CASES = {
    "seed": Case("internlm-7b", 8, 32, QKV, 0.1, 512, 64),
    "xtuner": Case("internlm-7b", 64, 16, ALL, 0.1, 512, 64, micro_batch=2),
    "llama3-8b-2048": Case("llama3-8b", 16, 32, ALL, 0.0, 2048, 8, 1024, exact=True, micro_batch=2),
    "llama3-8b-4096": Case("llama3-8b", 16, 32, ALL, 0.0, 4096, 4, 1024, exact=True, micro_batch=2),
}


@dataclass(frozen=True)
class Side:
    """A script of `peers/`, its variant, and what has to be installed for it."""

    label: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()


STOCK = ("transformers", "peft", "bitsandbytes", "accelerate")
SIDES = {
    "strop-5gib": Side("Strop, 5.0 GiB", ("strop_engine.py", str(5 << 30))),
    "strop-7.8gb": Side("Strop, 7.8 GB", ("strop_engine.py", "7800000000")),
    "strop-14.5gb": Side("Strop, 14.5 GB", ("strop_engine.py", "14500000000")),
    "strop-all": Side("Strop, all of the card", ("strop_engine.py", "default")),
    "tutorial": Side("the tutorial's PEFT script", ("tutorial.py",), STOCK),
    "trl": Side("TRL, its defaults", ("trl_sft.py", "default"), (*STOCK, "trl", "datasets")),
    "trl-packed": Side("TRL, packed, no checkpointing", ("trl_sft.py", "packed"), (*STOCK, "trl", "datasets")),
    "trl-liger": Side("TRL with Liger's kernels", ("trl_sft.py", "liger"), (*STOCK, "trl", "datasets", "liger_kernel")),
    "unsloth": Side("Unsloth", ("unsloth_sft.py",), (*STOCK, "trl", "datasets", "unsloth")),
}


def ask(script: str, *arguments: str) -> str:
    """What a script of `card/` prints. This process itself never touches the card: the sides are to have all of it."""
    command = [sys.executable, str(HERE / "card" / script), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)  # it has said why
    return done.stdout.strip().splitlines()[-1]


def model_folder(given: argparse.Namespace, case: Case) -> Path:
    """The model of a case, made where it is not there."""
    return Path(ask("made_model.py", str(given.models), case.sizes, given.device))


def write_job(place: Path, model: Path, case: Case, device: str, steps: int) -> Path:
    """The job's file, and the adapter that every side begins with."""
    from strop.model.families import read_spec
    from strop.model.lora import make_adapter, write_adapter

    spec, first = read_spec(model), place / "adapter"
    first.mkdir()
    shape = {"rank": case.rank, "alpha": float(case.alpha), "dropout": case.dropout}
    write_adapter(make_adapter(spec, **shape, targets=case.targets, seed=0), first, str(model), spec)
    made = {
        "count": case.count,
        "vocabulary": SIZES[case.sizes].vocabulary,
        "steps": steps,
        "samples_per_step": case.samples_per_step,
        "max_tokens": case.max_tokens,
        "exact": case.exact,
    }
    job = Job(
        model=str(model),
        steps=[],
        rates=[1e-4] * steps,
        first_adapter=str(first),
        rank=case.rank,
        alpha=float(case.alpha),
        targets=list(case.targets),
        dropout=case.dropout,
        device=device,
        micro_batch=case.micro_batch,
        made=made,
    )
    job.write(place / "job.json")
    return place / "job.json"


def run_side(
    side: Side, job: Path, case: Case, given: argparse.Namespace, part: Path | None, limit: float
) -> dict[str, Any]:
    """Runs a side to its end or to the limit; what it did, or why it did not."""
    if missing := [name for name in side.needs if importlib.util.find_spec(name) is None]:
        return {"end": "skipped", "why": f"not installed: {', '.join(missing)}"}
    course, log = job.with_name("course.jsonl"), job.with_name("log.txt")
    course.write_text("", encoding="utf-8")
    script, *variant = side.command
    if given.tiny and variant and variant[0].isdecimal():
        variant = ["low"]  # the budgets of a 7B model are none to a tiny one
    before = bytes_in_use() if given.device != "cpu" else 0
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if part is not None:
        seconds = limit - PART_MARGIN if given.part is None else given.part
        environment |= {"STROP_PART_FOLDER": str(part), "STROP_PART_SECONDS": str(seconds)}
    with log.open("wb") as output:
        command = [sys.executable, str(HERE / "peers" / script), str(job), str(course), *variant]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        try:
            end = "done" if process.wait(limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            end = "stopped"
        finally:
            process.kill()
            process.wait()
    run = read_course(course, end, log.read_text(encoding="utf-8", errors="replace"))
    if run.refused:
        return {"end": "refused", "why": run.refused}
    figures = run.figures()
    if "card_mib" in figures:
        figures["card_mib"] -= before / 2**20
    counted = run.steps[1:] or run.steps
    return {
        "end": end,
        **({"why": last_words(run.log)} if end == "failed" else {}),
        "figures": figures,
        "ready": run.ready,
        "steps": [{key: line[key] for key in ("seconds", "read", "learned", "computed", "loss")} for line in run.steps],
        **step_work(case, job, counted[0] if counted else None, run.ready),
        "warnings": run.warnings(),
    }


def step_work(case: Case, job: Path, line: dict[str, Any] | None, ready: dict[str, Any]) -> dict[str, Any]:
    """Operations that a step asks for, a token: the second step's samples stand for all."""
    if line is None:
        return {}
    from peers.job import learned_tokens, read_job

    steps = read_job(job).steps
    samples = steps[min(ready.get("settings", {}).get("first_step", 0) + 1, len(steps) - 1)]
    lengths, learned = [len(tokens) for tokens, _ in samples], sum(map(learned_tokens, samples))
    return {"flops_per_token": SIZES[case.sizes].step_flops(lengths, learned, case.adapter_weights) / sum(lengths)}


def last_words(log: str) -> str:
    """The end of what a process printed: its error."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return " | ".join(lines[-3:])[:600]


class OutOfTime(Exception):
    """`--total` does not allow another side."""


def allowed(given: argparse.Namespace) -> float:
    """Seconds that the next side may take.

    Raises:
        OutOfTime: too few are left to begin with one.
    """
    left = given.total - (time.monotonic() - STARTED)
    if left < min(LEAST_SECONDS, given.limit):
        raise OutOfTime
    return min(given.limit, left)


def run_case(name: str, given: argparse.Namespace, folder: Path, known: dict[str, Any]) -> None:
    """All sides of a case that have left nothing yet, one after another."""
    case = tiny_case(CASES[name]) if given.tiny else CASES[name]
    wanted = [side for side in given.sides if given.again or not (folder / f"{name}-{side}.json").is_file()]
    if not wanted:
        return
    model = model_folder(given, case)
    for side_name in wanted:
        limit = allowed(given)
        print(f"{name}: {side_name}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as place:
            job = write_job(Path(place), model, case, given.device, given.steps)
            found = run_side(SIDES[side_name], job, case, given, None, limit)
        if found["end"] == "stopped" and limit < given.limit:
            raise OutOfTime  # it had less than its time: that is no result
        record = {**known, "case": name, **asdict(case), "side": side_name}
        record |= {"label": SIDES[side_name].label, "whole_steps": case.whole_steps, **found}
        (folder / f"{name}-{side_name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def run_whole(name: str, given: argparse.Namespace, folder: Path, known: dict[str, Any]) -> None:
    """A part of the whole job by each of Strop's sides that are asked for; what is done is added up."""
    case = tiny_case(CASES[name]) if given.tiny else CASES[name]
    model = model_folder(given, case)
    for side_name in [side for side in given.sides if side.startswith("strop")]:
        record, part = folder / f"{name}-{side_name}-whole.json", given.models / "parts" / f"{name}-{side_name}"
        parts = json.loads(record.read_text(encoding="utf-8"))["parts"] if record.is_file() and not given.again else []
        if sum(len(each["seconds"]) for each in parts) >= case.whole_steps:
            continue
        if not parts and (part / "done.json").is_file():
            (part / "done.json").unlink()
        limit = allowed(given)
        print(f"{name}, whole: {side_name}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as place:
            job = write_job(Path(place), model, case, given.device, case.whole_steps)
            found = run_side(SIDES[side_name], job, case, given, part, limit)
        if found["end"] in ("done", "stopped") and found["steps"]:
            steps = found["steps"]
            if found["end"] == "stopped":
                raise SystemExit(f"{name}-{side_name}: a part did not end in time; give a longer --limit")
            begun = {"load_seconds": found["ready"]["load_seconds"], "forecast": found["ready"]["settings"]["forecast"]}
            begun |= {"seconds": [line["seconds"] for line in steps], "read": sum(line["read"] for line in steps)}
            parts.append({**begun, "card_mib": found["figures"].get("card_mib")})
        else:
            raise SystemExit(f"{name}-{side_name}: {found.get('why', found['end'])}")
        kept = {**known, "case": name, "side": side_name, "whole_steps": case.whole_steps, "parts": parts}
        record.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def tiny_case(case: Case) -> Case:
    """The same recipe on a tiny model: to run the code where there is no card."""
    longest = min(case.max_tokens, 300)
    return replace(case, sizes="tiny", rank=4, max_tokens=longest, samples_per_step=4, count=16)


def _names(known: dict[str, Any]) -> Any:
    def read(text: str) -> list[str]:
        names = list(known) if text == "all" else text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)} and all")
        return names

    return read


def main() -> None:
    """Runs what is asked for and not yet there, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=_names(CASES), default=list(CASES), help="names with commas, or all")
    parser.add_argument("--sides", type=_names(SIDES), default=list(SIDES), help="names with commas, or all")
    parser.add_argument("--steps", type=int, default=4, help="steps that are measured, the first left out")
    parser.add_argument("--limit", type=float, default=540.0, help="seconds after which a side is stopped")
    parser.add_argument("--total", type=float, default=float("inf"), help="seconds after which no side is begun")
    parser.add_argument(
        "--whole", action="store_true", help="do all steps by Strop's sides, in parts of --limit seconds"
    )
    parser.add_argument("--part", type=float, help=f"seconds of steps in a part (default: --limit less {PART_MARGIN})")
    parser.add_argument("--again", action="store_true", help="run sides that have left a result once more")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: to test the code")
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "strop-made-models")
    parser.add_argument("--results", type=Path, help="folder of results (default: one of today and this card)")
    given = parser.parse_args()
    known = json.loads(ask("machine.py", given.device, "--roof", *(["--tiny"] if given.tiny else [])))
    folder = given.results or results_folder(HERE / "results", known)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name in given.cases:
            if given.whole:
                run_whole(name, given, folder, known)
            else:
                run_case(name, given, folder, known)
    except OutOfTime:
        print("the time of --total is over; the same command goes on from here", file=sys.stderr)
    table = seed_table(folder, list(SIDES))
    (folder / "seed_job.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
