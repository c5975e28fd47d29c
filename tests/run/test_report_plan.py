"""The report's plan section: forecast beside fact, where memory went; runs without a forecast, or with a trap in it."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from strop.run.levers import in_words, savings
from strop.run.outcome import Compared, Facts, compare
from strop.run.report import write_report

LEVERS = {
    "device": "cpu",
    "dtype": "float32",
    "pack_tokens": 2048,
    "recompute_layers": 12,
    "recompute_elementwise": 18,
    "dense_layers": 1,
    "head": "stored",
    "embedding": "file",
    "loss_chunk": 256,
    "prefixes": "shared",
    "matmul": "openblas",
    "threads": 2,
}
FORECAST = {
    "peak_bytes": 1_000_000_000,
    "components": {"base in NF4": 400_000_000, "kept for the backward pass": 600_000_000},
    "seconds": 33.0,
    "parts": {"loading": 3.0, "steps": 20.0, "watching": 10.0},
    "step_seconds": 2.0,
    "step_parts": {"matrix products": 1.5, "attention": 0.5},
    "tokens_per_s": 500.0,
}
RECORD = {**FORECAST, "budget_bytes": 8_000_000_000, "budget_source": "--memory", "reason": "Nothing is faster."}


def events(**start: Any) -> list[dict[str, Any]]:
    """Ten steps of 2.5 s, two looks of 4 s, a peak of 1.05 GB."""
    step = {"kind": "step", "loss": 1.0, "seconds": 2.5, "tokens": 9, "learned_tokens": 5, "memory_bytes": 900_000_000}
    watch = {"kind": "watch", "held_out_loss": 1.0, "seconds": 4.0}
    return [
        {"kind": "start", "step": 0, "steps": 10, "forecast": FORECAST, **start},
        {**watch, "step": 0},
        *({**step, "step": number} for number in range(1, 11)),
        {**watch, "step": 10},
        {"kind": "end", "step": 10, "seconds": 25.0, "peak_bytes": 1_050_000_000},
    ]


def section(folder: Path, happened: list[dict[str, Any]], plan: dict[str, Any]) -> str:
    """The HTML of a report's plan section."""
    folder.mkdir()
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in happened), encoding="utf-8")
    page = write_report(folder).read_text(encoding="utf-8")
    return page[page.index('<section id="plan">') : page.index('<section id="manifest">')]


def rows(html: str) -> list[list[str]]:
    """The comparison's cells."""
    table = re.search(r'<table class="compared">.*?<tbody>(.*?)</tbody>', html, re.DOTALL)
    found = re.findall(r"<tr>(.*?)</tr>", table[1], re.DOTALL) if table else []
    return [[re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in found]


def test_forecast_and_fact_stand_side_by_side(tmp_path: Path) -> None:
    html = section(tmp_path / "run", events(), {**LEVERS, "forecast": RECORD})
    assert rows(html) == [
        ["peak memory", "1 GB", "1.05 GB", "+5 %"],
        ["a step", "2 s", "2.5 s", "+25 %"],
        ["all steps", "20 s", "25 s", "+25 %"],
        ["watching", "10 s", "8 s", "−20 %"],
        ["steps and watching", "30 s", "33 s", "+10 %"],
    ]
    assert '<data value="1050000000.0" title="1050000000.0">1.05 GB</data>' in html
    for part in ("The budget: 8 GB (--memory).", "Nothing is faster.", "kept for the backward pass", "matrix products"):
        assert part in html
    assert re.findall(r'<rect class="bar" width="([\d.]+)"', html) == ["40.00", "60.00", "75.00", "25.00"]
    assert "12 layers from the bottom computed a second time" in html
    assert "<dt>recompute_layers</dt><dd>12</dd>" in html
    assert "forecast.peak_bytes" not in html  # it has its table; the levers stand alone


def test_the_first_forecast_counts_and_shortages_are_named(tmp_path: Path) -> None:
    lean = {**FORECAST, "peak_bytes": 700_000_000}
    replan = {"kind": "replan", "step": 4, "reason": "out of <memory>", "plan": LEVERS, "forecast": lean}
    happened = [*events()[:6], replan, *events()[6:]]
    html = section(tmp_path / "run", happened, {**LEVERS, "forecast": {**RECORD, **lean}})
    assert rows(html)[0] == ["peak memory", "1 GB", "1.05 GB", "+5 %"]
    assert "At step 5: out of &lt;memory&gt;. From there a leaner plan, 700 MB by forecast." in html


def test_a_resumed_run_is_held_to_the_forecast_it_began_with(tmp_path: Path) -> None:
    again = {"kind": "start", "step": 4, "steps": 10, "forecast": {**FORECAST, "peak_bytes": 1}}
    html = section(tmp_path / "run", [*events()[:7], again, *events()[6:]], LEVERS)
    assert rows(html)[0] == ["peak memory", "1 GB", "1.05 GB", "+5 %"]


def test_a_run_that_goes_on_compares_no_sums(tmp_path: Path) -> None:
    html = section(tmp_path / "run", events()[:5], {**LEVERS, "forecast": RECORD})
    assert [row[0] for row in rows(html)] == ["peak memory", "a step"]


def test_an_older_run_shows_its_levers_alone(tmp_path: Path) -> None:
    old = {"device": "cpu", "pack_tokens": 2048, "recompute": "layer"}
    html = section(tmp_path / "run", events(forecast=None), old)
    assert rows(html) == []
    assert "up to 2,048 tokens" in html
    assert "<dt>recompute</dt><dd>layer</dd>" in html
    assert "Memory at the peak" not in html


TRAP = "<script>alert(1)</script>"


@pytest.mark.parametrize(
    "forecast",
    [
        None,
        TRAP,
        [],
        {},
        {"peak_bytes": TRAP, "components": TRAP, "parts": [TRAP], "step_parts": None, "reason": 3},
        {"peak_bytes": -5, "step_seconds": 1e400, "parts": {"steps": True, "watching": 0}, "budget_bytes": "x"},
        {
            "components": {TRAP: 5, "a": TRAP, "b": -1, "c": 10**400},
            "reason": TRAP,
            "budget_source": TRAP,
            "budget_bytes": 5,
        },
    ],
)
def test_a_strange_forecast_neither_stops_the_page_nor_becomes_markup(tmp_path: Path, forecast: Any) -> None:
    plan = dict.fromkeys(LEVERS, TRAP) | {TRAP: TRAP, "forecast": forecast}
    replans = [{"kind": "replan", "step": TRAP, "reason": TRAP, "forecast": TRAP}]
    html = section(tmp_path / "run", [*events(forecast=forecast), *replans], plan)
    assert "<script" not in html
    assert TRAP in unescape(html)


def test_what_cannot_be_compared_has_no_row() -> None:
    facts = Facts(peak_bytes=None, steps=0, step_seconds=0.0, watch_seconds=0.0, finished=True)
    assert compare(FORECAST, facts) == []
    only_steps = compare({"parts": {"steps": 20.0}}, Facts(5.0, 10, 22.0, 0.0, finished=True))
    assert only_steps == [Compared("all steps", 20.0, 22.0, "seconds")]


def test_levers_in_words() -> None:
    assert dict(in_words(LEVERS)) == {
        "processor": "cpu, float32, 2 threads, products by openblas",
        "packs": "up to 2,048 tokens, what their samples begin with alike computed once",
        "backward pass": "12 layers from the bottom computed a second time, "
        "18 layers above them with norms and gated products made a second time",
        "weights": "4 bits, 1 layer with a dequantised copy",
        "head": "as the model's file has it, widened in blocks, logits of 256 learned tokens at a time",
        "embedding": "rows read from the model's file where they are needed",
    }
    kept = {**LEVERS, "recompute_layers": 0, "recompute_elementwise": 0, "head": "dense", "embedding": "memory"}
    assert dict(in_words(kept))["backward pass"] == "all that it needs is kept, nothing is computed twice"
    assert savings(kept) == "everything kept, 1 layer dequantised in memory"
    assert savings({**kept, "recompute_elementwise": 3, "dense_layers": 0}) == (
        "3 layers with norms and gated products made twice"
    )
    assert dict(in_words({**LEVERS, "device": "cuda:0"}))["processor"] == "cuda:0, float32"
    assert in_words({}) == []
    assert in_words({name: [] for name in LEVERS}) == []
