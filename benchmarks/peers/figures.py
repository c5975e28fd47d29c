"""From what the sides wrote down to the figures, the check of their losses, and the table.

course.jsonl ─▶ Run (one process) ─▶ summarize (its rounds) ─▶ table
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_KINDS = ("read", "learned", "computed")
_COLUMNS = (
    "tokens/s",
    "× tuned",
    "learned tokens/s",
    "s a step",
    "CPU s a step",
    "peak MiB",
    "computed ÷ read",
    "of the limit",
)


@dataclass(frozen=True)
class Run:
    """What one process left in its course file.

    Attributes:
        ready: its threads, versions and settings; empty if it never came so far.
        steps: one line a step.
        begun: sums over the micro-batches of the step in which it was stopped; empty if there is none.
        end: "done", "stopped" at the time limit, or "failed".
        log: what it printed.
        refused: why it does not do the job; empty where it does.
    """

    ready: dict[str, Any]
    steps: list[dict[str, Any]]
    begun: dict[str, Any]
    end: str
    log: str
    refused: str = ""

    def figures(self) -> dict[str, Any]:
        """Medians over the steps after the first; over what there is, where it was stopped before."""
        counted = self.steps[1:] or self.steps or ([self.begun] if self.begun else [])
        if not counted:
            return {}
        figures = {f"{kind}_per_s": _median(line[kind] / line["seconds"] for line in counted) for kind in _KINDS}
        figures["computed_per_read"] = sum(line["computed"] for line in counted) / sum(line["read"] for line in counted)
        figures["peak_mib"] = counted[-1]["peak_bytes"] / 2**20
        if "card_bytes" in counted[-1]:
            figures["card_mib"] = counted[-1]["card_bytes"] / 2**20
        if self.steps:
            figures["seconds"] = _median(line["seconds"] for line in counted)
            figures["cpu_seconds"] = _median(line["cpu_seconds"] for line in counted)
        return figures

    def losses(self) -> list[float]:
        """The loss of every step that ended."""
        return [line["loss"] for line in self.steps if line["loss"] is not None]

    def warnings(self) -> list[str]:
        """Lines of the log that warn, each once."""
        lines = [line.strip() for line in self.log.splitlines() if "warn" in line.lower() or "flash" in line.lower()]
        return list(dict.fromkeys(lines))[:8]


def read_course(course: Path, end: str, log: str) -> Run:
    """What a process left behind."""
    ready: dict[str, Any] = {}
    begun: dict[str, Any] = {}
    steps: list[dict[str, Any]] = []
    refused = ""
    for text in course.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break  # stopped while it was written
        match line.pop("kind"):
            case "ready":
                ready = line
            case "pass":
                begun = line
            case "step":
                steps.append(line)
                begun = {}
            case "loss" if steps:
                steps[-1]["loss"] = line["loss"]
            case "refused":
                refused = line["reason"]
    return Run(ready, steps, begun, end, log, refused)


def summarize(runs: Sequence[Run], tuned: Sequence[Run], limit: Mapping[str, float]) -> dict[str, Any]:
    """One side's figures over its rounds.

    Its share of the limit: the operations that its computed and its learned tokens ask for, over its time, beside the
    best matrix rate. The limit is float32's; a side in bfloat16 has no share of it.
    """
    figures = [run.figures() for run in runs]
    names = dict.fromkeys(name for round_ in figures for name in round_)
    summary: dict[str, Any] = {name: _median(each[name] for each in figures if name in each) for name in names}
    ratios = [
        mine["read_per_s"] / theirs["read_per_s"]
        for mine, theirs in zip(figures, (run.figures() for run in tuned), strict=False)
        if mine and theirs
    ]
    low = any(run.ready.get("settings", {}).get("dtype") == "bfloat16" for run in runs)
    if names:
        summary["best_read_per_s"] = max(each["read_per_s"] for each in figures if each)
        flops = 1e6 * (
            summary["computed_per_s"] * limit["mflop_per_computed_token"]
            + summary["learned_per_s"] * limit["mflop_per_learned_token"]
        )
        if not low:
            summary["share_of_limit"] = flops / (1e9 * limit["best_gflop_per_s"])
    if ratios:
        summary["times_tuned"] = statistics.median(ratios)
    summary = {name: _rounded(value) for name, value in summary.items()}
    return {
        **summary,
        "ends": [run.end for run in runs],
        "steps": [len(run.steps) for run in runs],
        **next((run.ready for run in runs if run.ready), {}),
        "losses": [round(loss, 6) for loss in runs[0].losses()],
        "warnings": runs[0].warnings(),
    }


def slowdown(busy: Sequence[Run], quiet: Sequence[Run]) -> dict[str, Any]:
    """A side's speed beside a busy core, and how many times slower that is than its quiet run of the same round."""
    pairs = [(a.figures(), b.figures()) for a, b in zip(busy, quiet, strict=True)]
    known = [(a["read_per_s"], b["read_per_s"]) for a, b in pairs if a and b]
    return {
        "read_per_s": _rounded(statistics.median(slow for slow, _ in known)),
        "times_slower": _rounded(statistics.median(fast / slow for slow, fast in known)),
        "ends": [run.end for run in busy],
    }


def loss_differences(rounds: Sequence[Run], reference: Run) -> dict[str, Any]:
    """How far a side's losses and counts of tokens are from the reference's, at most, over all rounds and steps."""
    pairs = [(mine, theirs) for run in rounds for mine, theirs in zip(run.steps, reference.steps, strict=False)]
    return {
        "largest_loss_difference": max((abs(a["loss"] - b["loss"]) for a, b in pairs), default=None),
        "most_tokens_apart": max((abs(a[kind] - b[kind]) for a, b in pairs for kind in _KINDS[:2]), default=None),
        "steps_compared": len(pairs),
    }


def table(sides: Mapping[str, Mapping[str, Any]]) -> str:
    """The Markdown table of the README: label of a side → its summary."""
    lines = ["| | " + " | ".join(_COLUMNS) + " |", "|---" + "|---:" * len(_COLUMNS) + "|"]
    for label, each in sides.items():
        cells = [
            label,
            _cell(each, "read_per_s", ".0f" if each.get("read_per_s", 0) >= 100 else ".1f"),
            _cell(each, "times_tuned", ".2f"),
            _cell(each, "learned_per_s", ".0f" if each.get("learned_per_s", 0) >= 100 else ".1f"),
            _cell(each, "seconds", ".1f", "> limit" if "stopped" in each["ends"] else "failed"),
            _cell(each, "cpu_seconds", ".1f"),
            _cell(each, "peak_mib", ",.0f"),
            _cell(each, "computed_per_read", ".2f"),
            _cell(each, "share_of_limit", ".0%"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: dict[str, Any], name: str, form: str, otherwise: str = "–") -> str:
    return format(values[name], form) if values.get(name) is not None else otherwise


def _median(values: Any) -> float:
    return statistics.median(list(values))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
