"""What a run came to, read from its events: the object that `train --json` prints, and a line for `strop runs`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from strop.run.folder import RunFolder
from strop.run.report_files import mapping, number


def summarize(run: RunFolder) -> dict[str, Any]:
    """Figures of a run.

    Returns:
        run, adapter (None before the end), state ("finished", "stopped" or "unfinished"), steps done, those of
        them whose loss leapt and that were passed over (skipped_steps), learned_tokens,
        tokens_per_s (all tokens over the seconds of steps), peak_bytes, seconds (of the steps), watch_seconds,
        held_out_loss {before, after}, forecast (as it was before the first step; None in runs that had none).
    """
    steps = watches = skipped = 0
    learned_tokens = tokens = 0
    seconds, watch_seconds, peak = 0.0, 0.0, 0
    forecast: dict[str, Any] | None = None
    losses: dict[str, float | None] = {"before": None, "after": None}
    state, total = "unfinished", 0
    for event in run.lines(run.events):
        kind = event.get("kind")
        if kind == "start":
            total, state = int(fact(event, "steps")), "unfinished"
            forecast = forecast or mapping(event.get("forecast")) or None
        elif kind == "step":
            steps = int(fact(event, "step"))
            learned_tokens += int(fact(event, "learned_tokens"))
            tokens += int(fact(event, "tokens"))
            seconds += fact(event, "seconds")
            peak = max(peak, int(fact(event, "memory_bytes")))
        elif kind == "skip":
            steps = int(fact(event, "step"))
            seconds += fact(event, "seconds")
            skipped += 1
        elif kind == "watch":
            watch_seconds += fact(event, "seconds")
            if (loss := number(event.get("held_out_loss"))) is not None:
                losses["before" if watches == 0 else "after"] = loss
                watches += 1
        elif kind == "stop":
            state = "stopped"
        elif kind == "end":
            state, peak = "finished", max(peak, int(fact(event, "peak_bytes")))
    return {
        "run": str(run.path),
        "adapter": str(run.adapter) if (run.adapter / "adapter_model.safetensors").is_file() else None,
        "state": state,
        "steps": steps,
        "skipped_steps": skipped,
        "total_steps": total,
        "learned_tokens": learned_tokens,
        "tokens_per_s": tokens / seconds if seconds else 0.0,
        "peak_bytes": peak,
        "seconds": seconds,
        "watch_seconds": watch_seconds,
        "held_out_loss": losses,
        "forecast": forecast,
    }


def fact(event: dict[str, Any], name: str) -> float:
    """A number of an event; 0 where a stranger's log has none."""
    return number(event.get(name)) or 0.0


def runs_in(folder: Path) -> list[dict[str, Any]]:
    """The runs of a folder, oldest first, each as `summarize` gives it."""
    found = sorted(path.parent for path in folder.glob("*/manifest.json")) if folder.is_dir() else []
    return [summarize(RunFolder(path)) for path in found]
