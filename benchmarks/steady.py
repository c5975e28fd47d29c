"""Whether a run stays as it began: memory over 500 steps, and time per token over the length of packs.

    python benchmarks/steady.py [--steps 500] [--json FILE]

Memory: `strop train` on the demo's problems, one sample a step, with looks, sample answers and checkpoints on the way;
what the process holds after each step is in its events. Growth is that of the last tenth's median over that of the
second tenth's (the first look and the first checkpoint come in the first).

Time: SmolLM2-135M, LoRA of rank 8 on q, k and v, packs of 512 to 8,192 tokens, half of them learned, under one plan
(no recompute, dequantised copies, chunks of 256). Once in documents of 256 tokens, where a token costs the same in
every pack, and once as one document, where attention grows with its length: what is left when its share, timed inside
the same steps, is taken off should not grow. Lengths are taken in turn, each several times; medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

# Before torch is imported, as the command line has it.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_NUM_THREADS"):
    if os.environ.pop(name, None):
        os.execv(sys.executable, [sys.executable, *sys.argv])

LENGTHS = (512, 1024, 2048, 4096, 8192)
DOCUMENT = 256
ROUNDS = 4


def memory_course(steps: int) -> dict[str, Any]:
    """Resident memory after each step of a run."""
    import strop
    from strop.data.problems import write_problems

    with tempfile.TemporaryDirectory() as folder:
        data = write_problems(Path(folder) / "problems") / "train"
        recipe = strop.Recipe(
            model="smollm2-135m-instruct",
            data={"train": str(data)},
            train={"samples_per_step": 1, "steps": steps, "save_every": max(1, steps // 10)},
            watch={"every": max(1, steps // 5), "answer_tokens": 16},
        )
        run = strop.train(recipe, run=Path(folder) / "run")
        lines = [json.loads(line) for line in (Path(run.folder) / "events.jsonl").read_text().splitlines()]
    held = [line["memory_bytes"] for line in lines if line["kind"] == "step"]
    seconds = [line["seconds"] for line in lines if line["kind"] == "step"]
    tenth = max(1, steps // 10)
    early, late = statistics.median(held[tenth : 2 * tenth]), statistics.median(held[-tenth:])
    return {
        "steps": steps,
        "bytes_in_the_second_tenth": early,
        "bytes_in_the_last_tenth": late,
        "growth": late / early - 1,
        "least": min(held),
        "most": max(held),
        "step_seconds_second_and_last_tenth": [
            statistics.median(seconds[tenth : 2 * tenth]),
            statistics.median(seconds[-tenth:]),
        ],
    }


def time_course() -> list[dict[str, Any]]:
    """Milliseconds a token, by length of the pack and of its documents."""
    import torch

    from strop.model import attention_block
    from strop.model.batch import Batch
    from strop.model.families import read_spec
    from strop.model.load import load_decoder
    from strop.model.lora import make_adapter
    from strop.model.starter import starter_folder
    from strop.plan.apply import make_engine, use_processor
    from strop.plan.choose import default_plan
    from strop.plan.machine import probe

    folder = starter_folder()
    spec = read_spec(folder)
    plan = default_plan(spec, probe())
    use_processor(plan)
    targets = ("q_proj", "k_proj", "v_proj")
    adapter = make_adapter(spec, rank=8, alpha=16, dropout=0.0, targets=targets, seed=0)
    work = plan.work(tokens=max(LENGTHS), learned=max(LENGTHS) // 2, targets=targets, rank=8, dropout=0.0)
    engine = make_engine(load_decoder(folder), plan, work)
    spent = [0.0]

    def timed(function: Any) -> Any:
        def run(*given: Any) -> Any:
            began = time.perf_counter()
            result = function(*given)
            spent[0] += time.perf_counter() - began
            return result

        return run

    attention_block.attend = timed(attention_block.attend)
    attention_block.attend_backward = timed(attention_block.attend_backward)

    def batch(tokens: int, document: int) -> Batch:
        starts = tuple(range(0, tokens + 1, document))
        return Batch(
            torch.randint(10, spec.vocabulary, (tokens,)),
            torch.arange(tokens) % document,
            torch.zeros(tokens, dtype=torch.int64),
            starts,
            torch.arange(0, tokens, 2),
            torch.randint(10, spec.vocabulary, (tokens // 2,)),
            tuple((start, start + document, start, start) for start in starts[:-1]),
        )

    cases = [(tokens, document) for tokens in LENGTHS for document in (DOCUMENT, tokens)]
    found: dict[tuple[int, int], list[tuple[float, float]]] = {case: [] for case in cases}
    for number in range(ROUNDS + 1):
        for case in cases:
            given = batch(*case)
            adapter.zero_gradients()
            spent[0], began = 0.0, time.perf_counter()
            engine.gradients(given, adapter, len(given.rows_N), 0)
            seconds = time.perf_counter() - began
            if number:  # the first round touches the memory
                found[case].append((seconds, spent[0]))
    return [
        {
            "pack_tokens": tokens,
            "document_tokens": document,
            "ms_per_token": 1000 * statistics.median(whole for whole, _ in times) / tokens,
            "ms_per_token_without_attention": 1000 * statistics.median(whole - part for whole, part in times) / tokens,
        }
        for (tokens, document), times in found.items()
    ]


def main() -> None:
    """Measures both and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    times = time_course()
    print("| pack | documents | ms a token | without attention |\n|---:|---:|---:|---:|")
    for row in times:
        print(
            f"| {row['pack_tokens']:,} | {row['document_tokens']:,} | {row['ms_per_token']:.3f} |"
            f" {row['ms_per_token_without_attention']:.3f} |",
            flush=True,
        )
    memory = memory_course(given.steps)
    print(
        f"{memory['steps']} steps: {memory['bytes_in_the_second_tenth'] / 1e6:.1f} MB in the second tenth,"
        f" {memory['bytes_in_the_last_tenth'] / 1e6:.1f} MB in the last: {memory['growth']:+.2%}"
    )
    if given.json:
        facts = {"date": date.today().isoformat(), "time": times, "memory": memory}
        given.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
