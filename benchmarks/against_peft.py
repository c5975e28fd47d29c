"""Strop beside transformers + PEFT + bitsandbytes: the same model, the same samples, the same steps, in turn.

    python benchmarks/against_peft.py [--data FILE --map question:answer] [--steps 20] [--samples 16] [--json FILE]

Both sides are a process of their own, so that peak memory is each one's own, and both read the same list of steps:
token ids, what is learned, the adapter's first A, the learning rates. float32, dropout 0, no checkpointing on the
stock side, its padded micro-batches of four sorted by length, its loss summed over learned tokens and divided once by
those of the step. Reported: largest difference of a loss, median seconds a step, CPU seconds a step, peak memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

MICRO_BATCH = 4


@dataclass(frozen=True)
class Job:
    """What both sides are given."""

    model: Path
    steps: list[list[tuple[list[int], list[bool]]]]
    rates: list[float]
    rank: int = 16
    alpha: float = 32.0
    clip: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Course:
    """What a side found: loss, wall and CPU seconds of each step, and the process's peak memory."""

    losses: list[float]
    seconds: list[float]
    cpu_seconds: list[float]
    peak_bytes: int


def make_job(model: Path, data: str, mapping: str | None, steps: int, samples: int) -> Job:
    """Reads and orders the data as `strop train` does."""
    from strop.data.examples import prepare
    from strop.data.order import step_samples
    from strop.data.tokenizer import Tokenizer
    from strop.recipe.schema import DataSection, TrainSection
    from strop.training.schedule import learning_rate

    section = DataSection(train=data, map=mapping, eval=0.0)
    learned = prepare(section, Tokenizer.from_folder(model), seed=0, context_tokens=2048).learned
    chosen = [[learned[index] for index in step_samples(0, step, len(learned), samples)] for step in range(steps)]
    train = TrainSection(samples_per_step=samples, steps=steps)
    return Job(
        model,
        [[(example.tokens.tolist(), example.learned.tolist()) for example in step] for step in chosen],
        [learning_rate(train, step, steps) for step in range(steps)],
    )


def strop_side(job: Job) -> Course:
    """Strop's engine over the job's steps."""
    import numpy as np

    from strop.data.packing import Pack, pack
    from strop.data.records import Example, Place
    from strop.model.families import read_spec
    from strop.model.load import load_decoder
    from strop.model.lora import make_adapter
    from strop.model.spec import PROJECTIONS
    from strop.plan.apply import make_engine, use_processor
    from strop.plan.choose import default_plan
    from strop.plan.machine import probe
    from strop.training.optimizer import Optimizer
    from strop.training.step import accumulate_gradients

    plan = default_plan(read_spec(job.model), probe())
    use_processor(plan)
    decoder = load_decoder(job.model)
    adapter = make_adapter(
        decoder.spec, rank=job.rank, alpha=job.alpha, dropout=0.0, targets=PROJECTIONS, seed=job.seed
    )
    optimizer = Optimizer(adapter, 0.0)

    def packs_of(number: int) -> list[Pack]:
        examples = [
            Example(np.array(tokens, dtype=np.int32), np.array(learned), index, Place("job"))
            for index, (tokens, learned) in enumerate(job.steps[number])
        ]
        return pack(examples, plan.pack_tokens, plan.shares_prefixes(0.0))

    every = [one for number in range(len(job.steps)) for one in packs_of(number)]
    tokens, learned = max(map(len, every)), max(one.learned_tokens for one in every)
    work = plan.work(tokens=tokens, learned=learned, targets=PROJECTIONS, rank=job.rank, dropout=0.0)
    engine = make_engine(decoder, plan, work)

    def step(number: int) -> float:
        packs = packs_of(number)
        result = accumulate_gradients(engine, adapter, packs, seed=job.seed, step=number, clip=job.clip)
        optimizer.step(job.rates[number])
        return result.loss

    return _timed(step, len(job.steps))


def peft_side(job: Job) -> Course:
    """The stock stack over the same steps."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.nn.functional import cross_entropy

    from strop.model.families import read_spec
    from strop.model.lora import make_adapter
    from strop.model.spec import PROJECTIONS

    base = load_with_bitsandbytes(job.model)
    config = LoraConfig(
        r=job.rank, lora_alpha=job.alpha, lora_dropout=0.0, target_modules=list(PROJECTIONS), task_type="CAUSAL_LM"
    )
    model: Any = get_peft_model(base, config)
    model.train()
    ours = make_adapter(
        read_spec(job.model), rank=job.rank, alpha=job.alpha, dropout=0.0, targets=PROJECTIONS, seed=job.seed
    ).named()
    trained = {
        name.replace(".default", ""): matrix for name, matrix in model.named_parameters() if matrix.requires_grad
    }
    with torch.no_grad():
        for name, matrix in trained.items():
            matrix.copy_(ours[name])
    optimizer = torch.optim.AdamW(trained.values(), lr=0.0, weight_decay=0.0, fused=True)

    def step(number: int) -> float:
        samples = sorted(job.steps[number], key=lambda sample: -len(sample[0]))
        total = sum(sum(learned[1:]) for _, learned in samples)
        loss_sum = 0.0
        for start in range(0, len(samples), MICRO_BATCH):
            ids, mask, labels = padded(samples[start : start + MICRO_BATCH])
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].flatten(0, 1)
            loss = cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")
            loss_sum += loss.item()
            (loss / total).backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), job.clip)
        for group in optimizer.param_groups:
            group["lr"] = job.rates[number]
        optimizer.step()
        optimizer.zero_grad()
        return loss_sum / total

    return _timed(step, len(job.steps))


def peft_held_out_loss(model: Path, adapter: Path, samples: Sequence[tuple[list[int], list[bool]]]) -> float:
    """Mean loss over learned tokens, by PEFT on the base that bitsandbytes quantised.

    In training mode, with dropout off: in evaluation mode bitsandbytes multiplies in bfloat16 on CPUs that can, which
    moves SmolLM2's logits by 0.6 %.
    """
    from peft import PeftModel
    from torch.nn.functional import cross_entropy

    tuned: Any = PeftModel.from_pretrained(load_with_bitsandbytes(model), adapter, is_trainable=True)
    tuned.train()
    total, count = 0.0, 0
    for start in range(0, len(samples), MICRO_BATCH):
        ids, mask, labels = padded(samples[start : start + MICRO_BATCH])
        logits = tuned(input_ids=ids, attention_mask=mask).logits[:, :-1].flatten(0, 1)
        targets = labels[:, 1:].flatten()
        total += cross_entropy(logits.detach(), targets, ignore_index=-100, reduction="sum").item()
        count += int((targets != -100).sum())
    return total / count


def load_with_bitsandbytes(folder: Path) -> Any:
    """transformers' model of a folder with bitsandbytes' NF4 layers, float32."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=quantization, dtype=torch.float32, device_map="cpu"
    )


def padded(samples: Sequence[tuple[list[int], list[bool]]]) -> tuple[Any, Any, Any]:
    """Token ids, attention mask and labels of samples, padded on the right."""
    import torch

    longest = max(len(tokens) for tokens, _ in samples)
    ids = torch.zeros(len(samples), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, (tokens, learned) in enumerate(samples):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
        labels[row, : len(tokens)] = torch.where(torch.tensor(learned), torch.tensor(tokens), -100)
    return ids, mask, labels


def _timed(step: Callable[[int], float], steps: int) -> Course:
    losses, seconds, cpu = [], [], []
    for number in range(steps):
        wall, process = time.perf_counter(), time.process_time()
        losses.append(step(number))
        seconds.append(time.perf_counter() - wall)
        cpu.append(time.process_time() - process)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Course(losses, seconds, cpu, peak if sys.platform == "darwin" else peak * 1024)


def run_alone(side: Callable[[Job], Course], job: Job) -> Course:
    """Runs a side in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(side, (job,))


def main() -> None:
    """Runs both sides and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="file or folder (default: problems made on the spot)")
    parser.add_argument("--map", help="columns, as question:answer")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    from strop.data.problems import write_problems
    from strop.model.starter import starter_folder

    with tempfile.TemporaryDirectory() as place:
        data = arguments.data or str(write_problems(Path(place) / "problems") / "train")
        job = make_job(starter_folder(), data, arguments.map, arguments.steps, arguments.samples)
    ours, stock = run_alone(strop_side, job), run_alone(peft_side, job)
    tokens = [sum(len(tokens) for tokens, _ in step) for step in job.steps]
    largest = max(abs(a - b) for a, b in zip(ours.losses, stock.losses, strict=True))
    figures = {
        "date": date.today().isoformat(),
        "machine": _machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")},
        "data": (arguments.data and Path(arguments.data).name) or "demo problems",
        "steps": arguments.steps,
        "samples_per_step": arguments.samples,
        "median_tokens_per_step": statistics.median(tokens),
        "largest_loss_difference": largest,
        "strop": _figures(ours, tokens),
        "transformers+peft+bitsandbytes": _figures(stock, tokens),
    }
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _machine() -> str:
    import psutil
    import torch

    instructions = torch.backends.cpu.get_cpu_capability()
    return f"{psutil.cpu_count(logical=False)} cores, {platform.machine()} {instructions}, {platform.system()}"


def _figures(course: Course, tokens: Sequence[int]) -> dict[str, Any]:
    # The first step pays for warming up on either side.
    speed = [count / seconds for count, seconds in zip(tokens[1:], course.seconds[1:], strict=True)]
    cpu_speed = [count / seconds for count, seconds in zip(tokens[1:], course.cpu_seconds[1:], strict=True)]
    return {
        "tokens_per_s": round(statistics.median(speed), 1),
        "tokens_per_cpu_s": round(statistics.median(cpu_speed), 1),
        "peak_mib": round(course.peak_bytes / 2**20),
        "losses": [round(loss, 6) for loss in course.losses],
    }


if __name__ == "__main__":
    main()
