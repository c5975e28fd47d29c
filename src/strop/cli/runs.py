"""``strop runs``: what became of the runs in a folder."""

from __future__ import annotations

from pathlib import Path

from strop.cli.app import verb
from strop.errors import UsageError


def runs(folder: Path = Path("runs"), *, json: bool = False) -> None:
    """List the runs in a folder.

    A run is finished, stopped (strop resume continues it) or unfinished: still at work, or killed.

    Args:
        folder: the folder that holds the runs (default: runs).
        json: print the list as one JSON object.

    Examples:
        strop runs
        strop runs /data/runs --json
    """
    from strop.cli.console import output_console, print_json, printable
    from strop.run.summary import runs_in

    if not folder.is_dir():
        raise UsageError(
            f"there is no folder {folder}",
            expected="a folder of runs",
            found="a file" if folder.exists() else "nothing",
            do="strop train MODEL DATA makes the first run; or name the folder: strop runs FOLDER",
        )
    summaries = runs_in(folder)
    if json:
        print_json({"folder": folder, "runs": summaries})
        return
    from rich.table import Table
    from rich.text import Text

    console = output_console()
    if not summaries:
        console.print(f"no runs in {printable(str(folder))}", soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("run", "state", "steps", "held-out loss"):
        table.add_column(heading, overflow="fold")
    for summary in summaries:
        losses = [summary["held_out_loss"][when] for when in ("before", "after")]
        cells = (
            summary["run"],
            summary["state"],
            f"{summary['steps']} of {summary['total_steps']}",
            " → ".join(f"{loss:.4f}" for loss in losses if loss is not None) or "–",
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console.print(table)


app = verb(runs)
