"""The loss curve of a GPU in bfloat16 beside that of a CPU in float32, on the starter model and the demo's problems.

    python benchmarks/gpu_losses.py [--steps 60] [--folder FOLDER]

Four runs of `strop train` with one recipe (dropout on): the CPU in float32, the device in float32, the device in
bfloat16 twice under the same plan. Told are the largest and the mean difference of the steps' losses to the CPU's, the
held-out losses before and after, and whether the two equal runs have the same bits: every loss, and the adapter's file.
The order of samples and the dropout are functions of the seed, so that the runs differ in rounding alone.

Written are `losses.json`, and `losses.html` with the curves over one another and their differences.
"""

from __future__ import annotations

import argparse
import json
import sys
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from card.machine import facts
from strop.run.charts import Curve, line_chart, thinned

RUNS = ("cpu, float32", "float32", "bfloat16", "bfloat16 again")
# Colours of the curves that the page tells apart; the classes are the charts' own.
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1c1f23 }
svg { width: 100%; height: auto } .grid { stroke: #e3e5e8 } .axis { stroke: #9aa0a6 } text { font-size: 11px }
.value { text-anchor: end } .tick, .label { fill: #5f6368; text-anchor: middle } .tick.value { text-anchor: end }
polyline { fill: none; stroke-width: 1.4 } .hit { fill: transparent }
.cpu polyline { stroke: #1a56a8 } .device32 polyline { stroke: #2e8b57 } .device16 polyline { stroke: #c4541d }
table { border-collapse: collapse } td, th { padding: .2rem .8rem; text-align: right }
td:first-child { text-align: left }
"""


def train(place: Path, name: str, given: argparse.Namespace, device: str, dtype: str) -> dict[str, Any]:
    """One run, and what it left."""
    from strop.data.problems import write_problems
    from strop.recipe import resolve
    from strop.run.folder import RunFolder
    from strop.training.session import train_run

    data = place / "problems"
    if not data.is_dir():
        write_problems(data)
    values = {
        "data.eval": 16,
        "adapter.dropout": 0.05,
        "train.steps": given.steps,
        "train.samples_per_step": given.samples,
        "train.lr": 1e-3,
        "watch.every": given.steps,
        "watch.answer_tokens": 2,
    }
    resolved = resolve(
        model=str(given.model), data=str(data / "train"), overrides=[(k, str(v)) for k, v in values.items()]
    )
    folder = place / name.replace(", ", "-").replace(" ", "-")
    # Nothing of the plan is left to what is timed: two runs under one plan are to have the same bits.
    plan = {"device": device, "dtype": dtype, "pack_tokens": "2048", "recompute_layers": "0", "dense_layers": "0"}
    plan |= {"recompute_elementwise": "0", "loss_chunk": "256", "threads": str(given.threads)}
    if device == "cpu" and dtype == "float32":
        plan["matmul"] = "torch"
    print(name, file=sys.stderr, flush=True)
    train_run(resolved, folder=folder, plan_overrides=plan)
    record = RunFolder(folder)
    events = list(record.lines(record.events))
    steps = [event for event in events if event["kind"] == "step"]
    return {
        "losses": [event["loss"] for event in steps],
        "norms": [event["grad_norm"] for event in steps],
        "held_out": [event["held_out_loss"] for event in events if event["kind"] == "watch"],
        "adapter": (record.adapter / "adapter_model.safetensors").read_bytes(),
    }


def compare(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Differences of each run's losses to the CPU's, relative, and whether the equal runs are equal."""
    reference = runs[RUNS[0]]["losses"]
    found: dict[str, Any] = {}
    for name in RUNS[1:3]:
        apart = [abs(mine - theirs) / theirs for mine, theirs in zip(runs[name]["losses"], reference, strict=True)]
        found[name] = {"largest": max(apart), "mean": fmean(apart), "at_step": 1 + apart.index(max(apart))}
    first, second = (runs[name] for name in RUNS[2:])
    found["same_bits"] = all(first[key] == second[key] for key in first)
    return found


def page(known: dict[str, Any], runs: dict[str, dict[str, Any]], differences: dict[str, Any]) -> str:
    """The curves, and how far they are apart."""
    classes = dict(zip(RUNS, ("cpu", "device32", "device16"), strict=False))
    numbered = {name: list(enumerate(runs[name]["losses"], 1)) for name in classes}
    curves = [Curve(classes[name], "faint", thinned(values, f"{name}: loss")) for name, values in numbered.items()]
    apart = [
        Curve(
            classes[name],
            "faint",
            thinned([(step, loss - runs[RUNS[0]]["losses"][step - 1]) for step, loss in numbered[name]], name),
        )
        for name in RUNS[1:3]
    ]
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{differences[name]['largest']:.2e}</td>"
        f"<td>{differences[name]['mean']:.2e}</td></tr>"
        for name in RUNS[1:3]
    )
    same = "the same bits" if differences["same_bits"] else "NOT the same bits"
    return (
        f'<!doctype html><meta charset="utf-8"><title>Losses on {escape(known["card"])}</title><style>{STYLE}</style>'
        f"<h1>Losses on {escape(known['card'])} beside a CPU's</h1><p>{known['date']}, {known['steps']} steps of"
        f" {known['samples']} samples. The same plan twice: {same}.</p>"
        f"<table><tr><th></th><th>largest relative difference</th><th>mean</th></tr>{rows}</table>"
        f"<h2>Loss</h2>{line_chart('losses', curves, from_zero=True, width=900, height=320)}"
        f"<h2>Difference to the CPU</h2>{line_chart('differences', apart, from_zero=False, width=900, height=220)}"
    )


def main() -> None:
    """Trains four times, and says how far apart they are."""
    import tempfile

    from strop.errors import ModelError
    from strop.model.starter import starter_folder

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--samples", type=int, default=8, help="samples a step")
    parser.add_argument("--threads", type=int, default=8, help="of the CPU")
    parser.add_argument("--model", type=Path, help="folder of a model (default: the starter model)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a few steps: to test the code")
    parser.add_argument("--folder", type=Path, help="where losses.json and losses.html go")
    given = parser.parse_args()
    if given.tiny:
        given.steps, given.samples, given.threads = 3, 2, 1
    try:
        given.model = given.model or starter_folder()
    except ModelError as error:
        print(f"skipped: the starter model cannot be had ({error.what}); STROP_STARTER_WHEEL names a copy")
        return
    known = {**facts(given.device), "steps": given.steps, "samples": given.samples}
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in RUNS:
            device, dtype = ("cpu", "float32") if name == RUNS[0] else (given.device, name.split()[0])
            runs[name] = train(Path(folder), name, given, device, dtype)
    differences = compare(runs)
    for name in RUNS[1:3]:
        each = differences[name]
        print(f"{name}: largest {each['largest']:.2e} (step {each['at_step']}), mean {each['mean']:.2e}")
    print("the same plan twice:", "the same bits" if differences["same_bits"] else "NOT the same bits")
    if given.folder:
        given.folder.mkdir(parents=True, exist_ok=True)
        kept = {name: {key: run[key] for key in ("losses", "norms", "held_out")} for name, run in runs.items()}
        text = json.dumps({**known, "differences": differences, "runs": kept}, indent=1)
        (given.folder / "losses.json").write_text(text + "\n", encoding="utf-8")
        (given.folder / "losses.html").write_text(page(known, runs, differences), encoding="utf-8")
    if not differences["same_bits"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
