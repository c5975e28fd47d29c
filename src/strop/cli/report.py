"""``strop report``: a run's report as one web page."""

from __future__ import annotations

from pathlib import Path

from strop.cli.app import verb


def report(run: Path, *, json: bool = False) -> None:
    """Write a run's report again, as a web page.

    Args:
        run: the run's folder.
        json: print the page's path as one JSON object.

    Examples:
        strop report runs/2025-01-31-my-model-data
    """
    from strop.cli.console import output_console, print_json
    from strop.run.report import write_report

    page = write_report(run)
    if json:
        print_json({"run": run, "report": page})
    else:
        output_console().print(str(page), soft_wrap=True)


app = verb(report)
