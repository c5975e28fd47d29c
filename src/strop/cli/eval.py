"""``strop eval``: held-out loss, and right answers, of a run on data of the user's own."""

from __future__ import annotations

from pathlib import Path

from strop.cli.app import verb
from strop.cli.units import at_least


def evaluate(run: Path, *, data: Path | None = None, answers: int = 100, json: bool = False) -> None:
    """Measure a run on what it held out, or on data of your own.

    Args:
        run: the run's folder.
        data: a file or folder of the same shape as what the run learned from (default: what the run held out).
        answers: how many questions, from the first, to answer in full and check (default: 100; 0 for the loss alone).
        json: print the measures as one JSON object.

    Examples:
        strop eval runs/2025-01-31-my-model-data
        strop eval runs/2025-01-31-my-model-data --data ./MATH/test --answers 100 --json
    """
    at_least("--answers", answers, 0)
    from strop.cli.console import note, output_console, print_json
    from strop.evaluate.run_eval import evaluate_run

    measures = evaluate_run(run, data=data, answers=answers, note=note)
    if json:
        print_json(measures)
        return
    from strop.cli.show import show_facts

    show_facts(str(run), measures, output_console())


app = verb(evaluate, name="eval")
