"""``strop resume``: continue a run from its newest whole checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from strop.cli.app import verb

Accepted = Annotated[tuple[Literal["recipe", "model", "template", "data"], ...], Parameter(negative="")]


def resume(run: Path, *, accept: Accepted = (), json: bool = False) -> None:
    """Continue a run that was stopped.

    The run goes on from its newest whole checkpoint, with its own recipe, plan and data, and ends with the same bytes
    as if it had never been stopped. Where one of them is another by now it is refused, and what differs is said.

    Args:
        run: the run's folder.
        accept: go on although this differs: recipe, model, template or data; may be given several times.
        json: print the result as one JSON object.

    Examples:
        strop resume runs/2025-01-31-my-model-data
        strop resume runs/2025-01-31-my-model-data --accept data
    """
    from strop.cli.console import error_console, output_console, print_json
    from strop.cli.progress import TerminalListener
    from strop.cli.show import show_run
    from strop.training.session import resume_run

    with TerminalListener(error_console()) as listener:
        summary = resume_run(run, listener, accept)
    if json:
        print_json(summary)
    else:
        show_run(summary, output_console())


app = verb(resume)
