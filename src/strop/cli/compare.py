"""``strop compare``: the same questions to the base model and to the tuned one."""

from __future__ import annotations

from pathlib import Path

from strop.cli.app import verb


def compare(run: Path, *, ask: tuple[str, ...] = (), json: bool = False) -> None:
    """Ask the base model and the tuned one the same questions.

    Args:
        run: the run's folder.
        ask: a question; may be repeated (default: the questions that the run watched itself by).
        json: print the answers as one JSON object.

    Examples:
        strop compare runs/2025-01-31-my-model-data
        strop compare runs/2025-01-31-my-model-data --ask "What is 12 × 7?" --json
    """
    from strop.cli.console import note, output_console, print_json
    from strop.evaluate.compare import compare as compare_models

    answers = compare_models(run, ask=ask, note=note)
    if json:
        print_json({"run": run, "answers": answers})
        return
    from strop.cli.show import show_facts

    console = output_console()
    for answer in answers:
        facts = {name: answer[name] for name in ("reference", "base", "tuned") if answer[name] is not None}
        show_facts(answer["question"], facts, console)
        console.print()


app = verb(compare)
