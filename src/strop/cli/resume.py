"""``strop resume``: continue a run from its newest whole checkpoint."""

from __future__ import annotations

from pathlib import Path

from strop.cli.app import verb


def resume(run: Path, *, json: bool = False) -> None:
    """Continue a run that was stopped.

    The run goes on from its newest whole checkpoint, with its own recipe, plan and data, and ends with the same bytes
    as if it had never been stopped.

    Args:
        run: the run's folder.
        json: print the result as one JSON object.

    Examples:
        strop resume runs/2025-01-31-my-model-data
    """
    from strop.cli.console import error_console, output_console, print_json
    from strop.cli.progress import TerminalListener
    from strop.cli.show import show_run
    from strop.training.session import resume_run

    with TerminalListener(error_console()) as listener:
        summary = resume_run(run, listener=listener)
    if json:
        print_json(summary)
    else:
        show_run(summary, output_console())


app = verb(resume)
