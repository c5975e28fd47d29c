"""What safety costs: seconds of a checkpoint of 300 MB, and the share of a run's wall time at the default interval.

    python benchmarks/checkpoint_cost.py [--megabytes 300] [--folder DIR] [--run RUN] [--json FILE]

The first part writes checkpoints as a run does: an adapter and twice its size of moments, hashed, synced, read back,
with two kept; beside it a bare write of the same bytes with one fsync a file, which is the least that a disk asks for.
The second part, with --run, reads a finished run: the seconds from the event before every save to the save, over all
seconds from the first event to the last. From the rate of the first part follows what a checkpoint of a model of seven
billion parameters takes under the default adapter, and how long a step has to be for it to cost one hundredth.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from strop.model.tensor_bytes import safetensors_file
from strop.recipe.schema import AdapterSection, TrainSection
from strop.run.checkpoint import write_checkpoint
from strop.run.disk import File


def cost_of_a_checkpoint(folder: Path, megabytes: int, rounds: int) -> list[float]:
    """Seconds of each save."""
    third = megabytes * 1_000_000 // 3 // 4
    parts = 60  # matrices of an adapter
    tensors = {f"layer.{part}.lora": torch.randn(third // parts) for part in range(parts)}
    moments = {f"{name}.{moment}": tensor for name, tensor in tensors.items() for moment in ("m", "v")}
    seconds = []
    for step in range(rounds):
        files = {
            "adapter_model.safetensors": File(*safetensors_file(tensors)),
            "optimizer.safetensors": File(*safetensors_file(moments)),
        }
        began = time.perf_counter()
        write_checkpoint(folder, step, files)
        seconds.append(time.perf_counter() - began)
    return seconds


def cost_of_bare_writes(folder: Path, megabytes: int, rounds: int) -> list[float]:
    """Seconds of writing as many bytes into two files and syncing each."""
    seconds = []
    content = os.urandom(1_000_000)
    for number in range(rounds):
        began = time.perf_counter()
        for part, count in ((0, megabytes // 3), (1, megabytes - megabytes // 3)):
            with (folder / f"bare-{number}-{part}").open("wb") as file:
                for _ in range(count):
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
        seconds.append(time.perf_counter() - began)
        for path in folder.glob("bare-*"):
            path.unlink()
    return seconds


def share_of_a_run(run: Path) -> dict[str, Any]:
    """Seconds of saving over all seconds, by the times of a run's events."""
    events: list[dict[str, Any]] = [
        json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    times = [datetime.fromisoformat(event["time"]).timestamp() for event in events]
    saving = sum(times[at] - times[at - 1] for at, event in enumerate(events) if event["kind"] == "save")
    saves = [event["step"] for event in events if event["kind"] == "save"]
    steps = [event["seconds"] for event in events if event["kind"] == "step"]
    recipe = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["recipe"]["fields"]
    size = sum(file.stat().st_size for file in (run / "checkpoints" / f"step-{saves[-1]:06d}").iterdir())
    return {
        "model": json.loads((run / "manifest.json").read_text(encoding="utf-8"))["model"]["path"],
        "recipe": {name: recipe[name] for name in recipe if name.startswith(("train.", "adapter."))},
        "saves": saves,
        "checkpoint_bytes": size,
        "median_step_s": statistics.median(steps),
        "saving_s": saving,
        "whole_s": times[-1] - times[0],
        "share": saving / (times[-1] - times[0]),
    }


def seven_billion(seconds: float, megabytes: int) -> dict[str, float]:
    """What the default adapter of Llama-2-7B costs, at the rate that was measured."""
    hidden, inner, layers = 4096, 11008, 32
    section = AdapterSection()
    columns = 4 * (hidden + hidden) + 3 * (hidden + inner)  # rows and columns of a layer's seven projections
    size = layers * section.rank * columns * 4 * 3  # adapter and two moments in float32
    needed = seconds * size / (megabytes * 1e6)
    return {
        "checkpoint_bytes": size,
        "checkpoint_s": needed,
        "step_s_for_one_percent": needed / TrainSection().save_every * 100,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="on the disk that is meant (default: here)")
    parser.add_argument("--run", type=Path, help="a finished run")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder or Path()))
    try:
        bare = cost_of_bare_writes(folder, arguments.megabytes, arguments.rounds)
        saves = cost_of_a_checkpoint(folder / "checkpoints", arguments.megabytes, arguments.rounds)
    finally:
        shutil.rmtree(folder)
    for name, seconds in (("checkpoint", saves), ("bare writes", bare)):
        print(f"{name}: median {statistics.median(seconds):.2f} s, most {max(seconds):.2f} s, {arguments.megabytes} MB")
    found = {
        "machine": {"system": platform.platform(), "cores": os.cpu_count()},
        "checkpoint": {"megabytes": arguments.megabytes, "seconds": saves, "bare_writes_seconds": bare},
        "seven_billion": seven_billion(statistics.median(saves), arguments.megabytes),
    }
    if arguments.run:
        found["run"] = share_of_a_run(arguments.run)
    print(json.dumps(found, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
