"""The demo: a real model, problems made here, and an honest before and after.

Everything goes the way of a user's own run: the problems are files in the layout of the MATH data set, the run is a
`train_run` with a recipe, and both scores are asked of the run as `strop eval` would ask it.
"""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

from strop.data.problems import write_problems
from strop.evaluate.run_eval import answer_and_score, held_out_of
from strop.evaluate.tuned import load_tuned
from strop.model.starter import STARTER_NAME
from strop.recipe import resolve
from strop.run.folder import RunFolder
from strop.run.journal import Journal, Listener
from strop.run.report import write_report
from strop.run.summary import summarize
from strop.training.session import train_run

LEARN, HELD_OUT = 640, 100

# One pass over 640 problems in 80 steps. A rate of 1e-3 is high for LoRA and right for so short a run
# (docs/log.md has what was tried).
RECIPE = (
    ("data.map", "problem:solution"),
    ("data.system", "You're a professor of mathematics."),
    ("train.epochs", "1"),
    ("train.samples_per_step", "8"),
    ("train.lr", "1e-3"),
    ("watch.every", "40"),
    ("watch.answer_tokens", "64"),
)


def run_demo(folder: Path | None = None, listener: Listener | None = None) -> dict[str, Any]:
    """Tunes the starter model on problems and asks base and tuned all held-out ones.

    Args:
        folder: the run folder; by default runs/<date>-demo, with a number where that exists.
        listener: is told every event.

    Returns:
        base_right, tuned_right, base_loose, tuned_loose, asked, seconds (all of it, the model's first fetch included),
        peak_bytes, tokens_per_s, held_out_loss, run, report.
    """
    began = time.perf_counter()
    journal = Journal(None, listener)
    folder = folder or _free_folder()
    problems = write_problems(folder.with_name(f"{folder.name}-problems"), LEARN, HELD_OUT)
    overrides = [*RECIPE, ("data.eval", str(problems / "test"))]
    resolved = resolve(model=STARTER_NAME, data=str(problems / "train"), overrides=overrides)
    train_run(resolved, folder=folder, listener=listener)

    model = load_tuned(folder)
    examples = held_out_of(model)
    journal.note(f"asking the base and the tuned model {len(examples)} held-out problems")
    base, tuned = (answer_and_score(model, examples, tuned=with_adapter) for with_adapter in (False, True))
    run = RunFolder(folder)
    run.write_json(
        "score.json",
        {
            "asked": tuned.asked,
            "base": {"right": base.right, "loose": base.loose},
            "tuned": {"right": tuned.right, "loose": tuned.loose},
        },
    )
    report = write_report(folder)
    summary = summarize(run)
    return {
        "base_right": base.right,
        "tuned_right": tuned.right,
        "base_loose": base.loose,
        "tuned_loose": tuned.loose,
        "asked": tuned.asked,
        "seconds": time.perf_counter() - began,
        "peak_bytes": summary["peak_bytes"],
        "tokens_per_s": summary["tokens_per_s"],
        "held_out_loss": summary["held_out_loss"],
        "run": str(folder),
        "report": str(report),
    }


def _free_folder() -> Path:
    name = f"{datetime.now().astimezone():%Y-%m-%d}-demo"
    number = 1
    while True:
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        if not folder.exists():
            return folder
        number += 1
