"""``strop plan``: the curve at any width and in any encoding, the page that holds no markup of others, the JSON."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from plans import PLAN, choice, curve, forecast
from strop.cli.curve import draw_curve
from strop.cli.plan import bar, lever_flags, show_choice, train_command
from strop.errors import BudgetError, UsageError
from strop.plan import explain
from strop.plan.budget import parse_size, write_size
from strop.plan.forecast import Choice
from strop.plan.page import write_plan
from strop.plan.plan import LEVERS
from strop.run.front import Option, front_axes, front_chart, stairs

Run = Callable[..., tuple[int, str, str]]
GB = 1_000_000_000
SUBJECT = {"model": "my-model", "data": "data.jsonl"}
HOSTILE = "</p></title><script>alert(1)</script><img src=x onerror=alert(2)>\"'&lt;b&gt;"


class Screen(io.StringIO):
    """What is printed, with an encoding of its own."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding


def shown(made: Choice, width: int = 80, encoding: str = "utf-8", **more: Any) -> str:
    screen = Screen(encoding)
    console = Console(file=screen, width=width, highlight=False, emoji=False, markup=False)
    show_choice(made, console, **{"command": "strop train m d", "subject": SUBJECT, **more})
    return screen.getvalue()


# ── sizes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8 * GB),
        ("6 GiB", 6 * 2**30),
        ("500MB", 500_000_000),
        (" 1.5gb ", 1_500_000_000),
        ("8G", 8 * GB),
        ("2Ti", 2 * 2**40),
        ("512KiB", 512 * 1024),
        ("1_000 kB", 1_000_000),
        ("2.03kB", 2030),  # 2029.99… in binary fractions
        ("1024B", 1024),
        ("100 bytes", 100),
        ("2e3MB", 2 * GB),
    ],
)
def test_sizes(text: str, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8",
        "GB",
        "-8GB",
        "0GB",
        "0.5B",
        "8XB",
        "1.2.3GB",
        "8GBs",
        "nanGB",
        "8 G B",
        "1e999GB",
        "1e99999999GB",
        "8iB",
    ],
)
def test_no_sizes(text: str):
    with pytest.raises(UsageError, match="--memory is not a size") as caught:
        parse_size(text)
    assert caught.value.exit_code == 2
    assert "GB" in caught.value.do


def test_a_size_names_its_argument():
    with pytest.raises(UsageError, match="memory= is not a size") as caught:
        parse_size("8", "memory=")
    assert caught.value.do == "did you mean memory= 8GB ?"


def test_what_is_written_is_read_as_at_least_as_much():
    assert [write_size(count) for count in (0, 999, 1_236_482_048, 999_999, 8 * GB)] == [
        "1B", "999B", "1.24GB", "1000kB", "8GB",
    ]  # fmt: skip
    for count in (3**power for power in range(38)):
        assert count <= parse_size(write_size(count)) <= count * 1.01


# ── the curve ────────────────────────────────────────────────────────────────────────────────────────────────────────


OPTIONS = [Option(0.52 * GB, 900), Option(0.6 * GB, 640), Option(0.7 * GB, 600, chosen=True), Option(1.4 * GB, 500)]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("budget", [None, 0.8 * GB, 1.5 * GB, 64.0 * GB])
def test_the_plot_keeps_to_its_width_and_its_characters(width: int, ascii_only: bool, budget: float | None):
    lines = [line.plain for line in draw_curve(OPTIONS, budget, width=width, ascii_only=ascii_only)]
    assert max(len(line) for line in lines) <= width
    assert "".join(lines).isascii() == ascii_only
    chosen, other, limit = ("@", "o", ":") if ascii_only else ("●", "•", "┆")
    plot = "\n".join(re.split("[|│┤]", line, maxsplit=1)[1] for line in lines[1:13])
    assert plot.count(chosen) == 1
    assert plot.count(other) == 3
    assert (plot.count(limit) > 8) == (budget is not None and budget < 2 * GB)
    assert ("budget" in lines[-1]) == (budget is not None)


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("more", [0.0, 5.0])  # an axis that begins at 0, and one that does not
def test_points_lie_where_their_memory_and_time_are(ascii_only: bool, more: float):
    options = [replace(option, memory=option.memory + more * GB) for option in OPTIONS]
    lines = [line.plain for line in draw_curve(options, None, width=100, ascii_only=ascii_only)]
    axis = next(place for place, line in enumerate(lines) if line.lstrip()[0] in "└+")
    ticks = [
        match.start()
        for match in re.finditer("[┬+]", lines[axis])
        if match.start() > lines[axis].index(lines[axis].strip()[0])
    ]
    numbers = [float(text) for text in lines[axis + 1].split()]
    rows = {float(line.split()[0]): place for place, line in enumerate(lines[:axis]) if line[:2].strip().isdigit()}
    (row, column) = next((place, line.index(sign)) for place, line in enumerate(lines) for sign in "●@" if sign in line)
    expected = ticks[0] + (0.7 + more - numbers[0]) / (numbers[-1] - numbers[0]) * (ticks[-1] - ticks[0])
    assert column == pytest.approx(expected, abs=1)
    low, high = min(rows), max(rows)
    assert rows[high] < rows[low]  # more time is further up
    assert row == pytest.approx(rows[high] + (high - 10) / (high - low) * (rows[low] - rows[high]), abs=1)


def test_dots_lie_where_their_memory_is():
    options = [replace(option, memory=option.memory + 5 * GB) for option in OPTIONS]
    svg = ElementTree.fromstring(front_chart("x", options, None, width=960))
    ticks = {
        float(text.text or ""): float(text.attrib["x"]) for text in svg.iter("text") if text.attrib["class"] == "tick"
    }
    low, high = min(ticks), max(ticks)
    for dot, option in zip(
        (dot for group in svg.iter("g") for dot in group.iter("circle") if dot.attrib["class"] == "dot"),
        sorted(options, key=lambda option: option.chosen),
        strict=True,
    ):
        expected = ticks[low] + (option.memory / GB - low) / (high - low) * (ticks[high] - ticks[low])
        assert float(dot.attrib["cx"]) == pytest.approx(expected, abs=0.2)
        assert 58 <= float(dot.attrib["cx"]) <= 946


def test_a_curve_of_one_plan_is_drawn():
    lines = draw_curve([Option(1.4 * GB, 500, chosen=True)], None, width=60)
    assert any("●" in line.plain for line in lines)
    assert "another plan" not in lines[-1].plain
    assert "<circle" in front_chart("x", [Option(1.4 * GB, 500)], None)


def test_the_curve_is_a_stair():
    corners = stairs([Option(1, 9), Option(2, 6), Option(4, 5)], 8)
    assert corners == [(1, 9), (2, 9), (2, 6), (4, 6), (4, 5), (8, 5)]


def test_axes_hold_the_options_and_a_budget_near_them():
    axes = front_axes(OPTIONS, 1.6 * GB)
    assert (axes.memory_unit, axes.time_unit, axes.budget, axes.beyond) == ("GB", "min", 1.6, "")
    assert axes.memory_ticks[0] <= 0.52
    assert axes.memory_ticks[-1] >= 1.6
    assert axes.time_ticks[0] * 60 <= 500
    assert axes.time_ticks[-1] * 60 >= 900
    far = front_axes(OPTIONS, 64.0 * GB)
    assert (far.budget, far.beyond) == (None, "64 GB")
    assert far.memory_ticks[-1] < 3
    below = front_axes(OPTIONS, 0.1 * GB)
    assert below.memory_ticks[0] <= 0.1
    assert front_axes([Option(5, 4.0 * 3600)], None).time_unit == "h"


def test_the_drawing_shows_each_plan_under_the_pointer():
    options = explain.options(choice())
    svg = ElementTree.fromstring(front_chart("<label>", options, 1.3 * GB))
    titles = [title.text for title in svg.iter("title")]
    assert sorted(titles) == sorted(option.text for option in options)
    assert (
        "584 MB, 8 min 39 s, 4.1 s a step: packs of 2,048 tokens, 30 layers computed twice, head widened" in titles[0]
    )
    chosen = [group for group in svg.iter("g") if "chosen" in group.attrib["class"]]
    assert [group.find("title").text for group in chosen] == [options[4].text]  # type: ignore[union-attr]
    assert [text.text for text in svg.iter("text") if "budget" in text.attrib["class"]] == ["budget 1.3 GB"]


# ── the table of the curve ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_curve_as_a_table_keeps_its_ends_and_the_chosen():
    rows = explain.rows(choice(), 4)
    assert [row.flag for row in rows if row.chosen] == ["--memory 1.18GB"]
    assert (rows[0].flag, rows[-1].flag) == ("--memory 603MB", "--memory 1.62GB")
    assert len(rows) <= 4
    assert len(explain.rows(choice())) == 6
    for row in explain.rows(choice()):
        assert row.forecast.peak_bytes <= parse_size(row.flag.removeprefix("--memory "))


def test_a_plan_beside_the_curve_is_shown_with_it():
    beside = forecast(kept=700_000_000, step=5.0)
    made = choice(forecast=beside, curve=curve()[:2])
    assert [point.seconds for point in explain.points(made)] == [curve()[0].seconds, curve()[1].seconds, beside.seconds]
    assert [option.chosen for option in explain.options(made)] == [False, False, True]


# ── the terminal ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_everything_is_shown_at_any_width(width: int, encoding: str):
    text = shown(choice(), width, encoding)
    assert max(len(line) for line in text.splitlines()) <= width
    assert text.isascii() == (encoding == "ascii")
    words = " ".join(text.split())
    for part in (
        "my-model",
        "data.jsonl",
        "120 steps of 1,390 tokens (830 learned, 1,280 computed",
        "A processor, 2 cores, 12.3 GB of 25 GB free",
        "products of float32: 134 GFLOP/s by openblas, 95 GFLOP/s by torch",
        "copying: 21 GB/s",
        "1.14 GB of a budget of 1.3 GB (--memory)",
        "kept for the backward pass 600 MB",
        "5 min 15 s (loading 3 s, steps 4 min 48 s, watching 24 s)",
        "579 tokens/s",
        "matrix products 1.92 s",
        "2,048 tokens",
        "--memory 603MB",
    ):
        assert part in words
    assert "never needed" not in words  # a component of no bytes
    why = " ".join(text[text.index("\nwhy ") :].split())
    assert why.startswith("why The fastest plan within 1.3 GB; the next faster one takes 1.56 GB and saves 36 s.")
    assert text.endswith("to train under this plan\n  strop train m d\n")


def test_bars_are_as_long_as_their_share():
    assert [bar(length, ascii_only=False) for length in (0, 0.5, 1, 2.25)] == ["▏", "▌", "█", "██▎"]
    assert [bar(length, ascii_only=True) for length in (0, 0.6, 2.4)] == ["#", "#", "##"]


def test_names_from_outside_do_not_steer_the_terminal():
    subject = {"model": "[b]\x1b]0;t\x07", "data": "abc\u202elnosj.\u2067"}
    text = shown(choice(reason="[red]x\x1b[2J"), command="strop train \x1b[2J", subject=subject)
    assert not {"\x1b", "\x07", "\u202e", "\u2067"} & set(text)
    assert "abc\\u202elnosj.\\u2067" in text
    assert "[red]x\\x1b[2J" in text
    assert "[b]\\x1b]0;t\\x07" in text


def test_the_command_is_the_one_that_was_given():
    overrides = (("train.lr", "1e-4"), ("data.system", "-x y"), ("plan.pack_tokens", "512"))
    line = train_command(["my model", "d.jsonl"], "other", overrides, "8GB")
    assert shlex.split(line) == [
        *("strop", "train", "my model", "d.jsonl", "--model", "other", "--train.lr", "1e-4"),
        *("--data.system=-x y", "--plan.pack_tokens", "512", "--memory", "8GB"),
    ]
    assert train_command(["m", "d"], None, (), None) == "strop train m d"


def test_the_help_names_every_lever():
    page = lever_flags(79)
    assert [match[1] for match in re.finditer(r"^  --plan\.(\w+) ", page, re.MULTILINE)] == list(LEVERS)
    assert max(len(line) for line in page.splitlines()[1:]) <= 79


# ── the verb ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Put a training room in place whose plans are made by hand, and which records its call."""
    call: dict[str, Any] = {}

    def plan_run(resolved: Any, **rest: Any) -> Choice:
        call.update(resolved=resolved, **rest)
        if "raise" in call:
            raise call["raise"]
        return choice()

    room = types.ModuleType("strop.training.session")
    room.plan_run = plan_run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "strop.training.session", room)
    return call


def test_the_verb_hands_over_what_was_said(run: Run, planned: dict[str, Any]):
    code, out, err = run("plan", "m", "d", "--memory", "1.3GB", "--train.lr", "1e-4", "--plan.pack-tokens", "512")
    assert (code, err) == (0, "")
    assert planned["budget_bytes"] == 1_300_000_000
    assert planned["plan_overrides"] == {"pack_tokens": "512"}
    assert planned["resolved"].recipe.train.lr == 1e-4
    assert out.rstrip().endswith("strop train m d --train.lr 1e-4 --plan.pack-tokens 512 --memory 1.3GB")
    assert max(len(line) for line in out.splitlines()) <= 120
    assert run("plan", "m", "d")[0] == 0
    assert planned["budget_bytes"] is None


def test_json_is_the_whole_choice(run: Run, planned: dict[str, Any]):
    code, out, _ = run("plan", "m", "d", "--json")
    assert (code, out.count("\n")) == (0, 1)
    found = json.loads(out)
    assert list(found) == [
        *("model", "data", "peak_bytes", "components", "seconds", "parts", "step_seconds", "step_parts"),
        *("tokens_per_s", "plan", "budget_bytes", "budget_source", "reason", "curve", "machine", "workload", "command"),
    ]
    assert found["peak_bytes"] == sum(found["components"].values()) == 1_144_000_000
    assert found["seconds"] == pytest.approx(sum(found["parts"].values()))
    assert found["plan"] == PLAN.as_dict()
    assert [set(point) for point in found["curve"]] == [{"peak_bytes", "seconds", "plan"}] * 6
    assert [point["peak_bytes"] for point in found["curve"]] == [point.peak_bytes for point in curve()]
    assert found["machine"]["name"] == "A processor"
    assert found["workload"]["steps"] == 120


def test_the_verb_writes_the_page(run: Run, planned: dict[str, Any], tmp_path: Path):
    code, out, _ = run("plan", "m", "d", "--html", "plan.html", "--json")
    assert code == 0
    assert json.loads(out)
    assert "<svg" in (tmp_path / "plan.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.html"]


def test_what_does_not_fit_ends_with_exit_code_4(run: Run, planned: dict[str, Any]):
    planned["raise"] = BudgetError("no plan fits", expected="583 MB", found="300 MB", do="give --memory 603MB")
    code, out, err = run("plan", "m", "d", "--memory", "300MB")
    assert (code, out) == (4, "")
    assert err == "error: no plan fits\n  expected: 583 MB\n     found: 300 MB\n        do: give --memory 603MB\n"


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Page(HTMLParser):
    """A page's tags and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page(folder: Path, made: Choice, **names: str) -> Page:
    target = folder / "plan.html"
    write_plan(made, target, **{**SUBJECT, "command": "strop train m d", **names})
    return Page(target)


def test_the_page_says_what_the_terminal_says(tmp_path: Path):
    found = page(tmp_path, choice())
    assert [(attributes["value"]) for tag, attributes in found.tags if tag == "data"][:3] == [
        "1144000000",
        "315.0",
        "2.4",
    ]
    for part in ("my-model", "1.14 GB", "5 min 15 s", "kept for the backward pass", "saves 36 s", "strop train m d"):
        assert part in found.text
    table = re.findall(r"<tr[^>]*><td>(--memory \w.*?)</td>", found.source)
    assert table == [row.flag for row in explain.rows(choice())]
    assert found.source.count('chosen-row"><td>--memory 1.18GB') == 1
    charts = [ElementTree.fromstring(svg) for svg in re.findall(r'<svg [^>]*class="chart".*?</svg>', found.source)]
    assert [len(list(chart.iter("title"))) for chart in charts] == [6, 6]


def test_the_page_is_self_contained(tmp_path: Path):
    found = page(tmp_path, choice())
    assert not re.search(r"url\(|@import|<script|<link|\bsrc=|\bhref=|<img", found.source)
    policy = next(attributes["content"] for tag, attributes in found.tags if attributes.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_nothing_from_outside_becomes_markup(tmp_path: Path):
    plain = page(tmp_path, choice())
    trapped = page(
        tmp_path, choice(reason=HOSTILE, budget_source=HOSTILE), model=HOSTILE, data=HOSTILE, command=HOSTILE
    )
    assert {tag for tag, _ in trapped.tags} == {tag for tag, _ in plain.tags}
    assert trapped.text.count("alert(1)") >= 5
    assert not [name for _, attributes in trapped.tags for name in attributes if name.startswith("on")]


def test_nothing_from_outside_steers_how_the_page_is_read(tmp_path: Path):
    turning = "a\u202eb\u2066c\x1b[2Jd\x00\r\u200fe"
    found = page(tmp_path, choice(reason=turning, budget_source=turning), model=turning, data=turning, command=turning)
    assert not set("\u202e\u2066\x1b\x00\r") & set(found.source)
    assert found.text.count("a⟨U+202E⟩b⟨U+2066⟩c⟨U+001B⟩[2Jd⟨U+0000⟩⟨U+000D⟩\u200fe") >= 5


def test_a_page_that_cannot_be_written_says_so(tmp_path: Path):
    (tmp_path / "plan.html").mkdir()
    with pytest.raises(UsageError, match="cannot be written") as caught:
        page(tmp_path, choice())
    assert caught.value.do == "name another file"
    assert [path.name for path in tmp_path.iterdir()] == ["plan.html"]
