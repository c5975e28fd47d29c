"""The table of `gpu_seed_job.py`, from the files that its sides have left in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

COLUMNS = (
    "side",
    "tokens/s",
    "learned tokens/s",
    "× the script",
    "memory on the card",
    "torch's allocator",
    "forecast memory",
    "forecast step",
    "of the ceiling",
    "all samples × 3",
)
# What is published for such jobs: label, tokens/s, memory. On other machines, so that they stand apart.
PUBLISHED = {
    "llama3-8b-2048": ("torchtune's README: QLoRA, RTX 4090", "2,413", "7.4 GiB"),
    "llama3-8b-4096": ("NeMo AutoModel's summary: LoRA in bfloat16, H100", "12,473", "–"),
}


def seed_table(folder: Path, order: list[str]) -> str:
    """A Markdown table for every case that there is anything of, its sides in an order."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    sides = [each for each in found if "side" in each and "parts" not in each]
    wholes = {(each["case"], each["side"]): each for each in found if "parts" in each}
    text = []
    for case in dict.fromkeys(each["case"] for each in sides):
        mine = sorted((each for each in sides if each["case"] == case), key=lambda each: order.index(each["side"]))
        first = mine[0]
        text.append(
            f"### {case}\n\n{first['date']}, {first['card']}; ceilings measured in this run:"
            f" {first['flops_per_s'] / 1e12:.3g} TFLOP/s, {first['bytes_per_s'] / 1e9:.3g} GB/s.\n"
        )
        text.append("| " + " | ".join(COLUMNS) + " |\n|---" + "|---:" * (len(COLUMNS) - 1) + "|")
        script = next((each for each in mine if each["side"] == "tutorial" and _rate(each)), None)
        rows = [_row(each, script, wholes.get((case, each["side"]))) for each in mine]
        if case in PUBLISHED:
            label, rate, memory = PUBLISHED[case]
            rows.append([f"published: {label}", rate, "–", "–", memory, *["–"] * (len(COLUMNS) - 5)])
        text += ["| " + " | ".join(row) + " |" for row in rows]
        text.append("")
    return "\n".join(text) + "\n" if text else "nothing measured yet\n"


def _rate(side: dict[str, Any]) -> float:
    return float(side.get("figures", {}).get("read_per_s", 0.0))


def _row(side: dict[str, Any], script: dict[str, Any] | None, whole: dict[str, Any] | None) -> list[str]:
    rate, figures = _rate(side), side.get("figures", {})
    if not rate:
        why = str(side.get("why", "")).replace("|", "/")
        return [f"{side['label']}", f"{side['end']}: {why}", *["–"] * (len(COLUMNS) - 2)]
    label = side["label"] + (f" ({side['end']})" if side["end"] != "done" else "")
    forecast = side["ready"].get("settings", {}).get("forecast")
    return [
        label,
        f"{rate:,.0f}",
        f"{figures['learned_per_s']:,.0f}",
        f"{rate / _rate(script):.2f}" if script else "–",
        _gib(figures["card_mib"]) if "card_mib" in figures else "–",
        _gib(figures["peak_mib"]),
        _memory_forecast(forecast, figures),
        _off(forecast["step_seconds"], figures.get("seconds")) if forecast else "–",
        f"{rate * side['flops_per_token'] / side['flops_per_s']:.0%}",
        _whole(side, rate, whole),
    ]


def _memory_forecast(forecast: dict[str, Any] | None, figures: dict[str, Any]) -> str:
    if not forecast:
        return "–"
    measured = figures.get("card_mib", figures["peak_mib"]) * 2**20
    return f"{forecast['peak_bytes'] / 2**30:.2f} GiB ({forecast['peak_bytes'] / measured - 1:+.0%})"


def _off(forecast: float, measured: float | None) -> str:
    return f"{forecast:.2f} s ({forecast / measured - 1:+.0%})" if measured else f"{forecast:.2f} s"


def _whole(side: dict[str, Any], rate: float, whole: dict[str, Any] | None) -> str:
    """Time of all steps: as it follows from the rate, and as far as it was really done."""
    steps = side["steps"][1:] or side["steps"]
    tokens = sum(line["read"] for line in steps) / len(steps) * side["whole_steps"]
    said = _time(tokens / rate)
    if whole is None:
        return said
    seconds = [second for part in whole["parts"] for second in part["seconds"]]
    done, total = len(seconds), whole["whole_steps"]
    if done >= total:
        return f"{said}; measured {_time(sum(seconds))}"
    return f"{said}; measured {_time(sum(seconds))} for {done} of {total} steps"


def _gib(mib: float) -> str:
    return f"{mib / 1024:.2f} GiB"


def _time(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60:02} min" if hours else f"{rest // 60} min {rest % 60:02} s"
