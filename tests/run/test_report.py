"""The report: the numbers are the events', nothing a file holds becomes markup, and what is broken is named."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from strop.errors import InputError
from strop.run.figures import byte_unit, change, duration, power_unit, significant, size, whole
from strop.run.report import write_report
from strop.run.report_files import read_run
from strop.run.report_sections import facts, lengths_chart, recipe_lines, visible

RECIPE = """\
model: smollm2-135m-instruct  # command line
data:
  train: demo/MATH/train  # command line
  eval: demo/MATH/test  # recipe.yaml:4
  map: problem:solution  # found by looking
  system: null  # default
adapter:
  rank: 16  # default
  alpha: 32.0  # default
train:
  epochs: 3.0  # default
  samples_per_step: 16  # default
  lr: 0.001  # --train.lr
watch:
  every: 20  # default
"""
QUESTIONS = [
    ("What is 47 + 38?", "tens 40 + 30 = 70, ones 7 + 8 = 15, 70 + 15 = 85. The answer is $\\boxed{85}$."),
    ("Compute 82 - 47.", "82 - 47: tens 80 - 40 = 40, ones 2 - 7 = -5, 40 - 5 = 35. The answer is $\\boxed{35}$."),
    ("If 3x + 7 = 25, what is x?", "3x = 25 - 7 = 18, x = 18 / 3 = 6. The answer is $\\boxed{6}$."),
]


def lines(path: Path, objects: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(item) + "\n" for item in objects), encoding="utf-8")


def step_event(step: int, noise: random.Random) -> dict[str, Any]:
    return {
        "kind": "step",
        "step": step,
        "epoch": step / 40,
        "loss": 0.02 + 1.5 * math.exp(-step / 14) * noise.uniform(0.75, 1.25),
        "learned_tokens": 830 + step % 7,
        "tokens": 1390 + step % 11,
        "lr": 1e-3 * min(1.0, step / 4) * 0.5 * (1 + math.cos(math.pi * step / 120)),
        "grad_norm": 0.3 + noise.random() * math.exp(-step / 30),
        "seconds": 2.5 + noise.random() / 5,
        "tokens_per_s": 520.0 + noise.uniform(-25, 25),
        "learned_tokens_per_s": 310.0,
        "memory_bytes": 1_180_000_000 + 900_000 * min(step, 9),
    }


def events(steps: int = 120) -> list[dict[str, Any]]:
    """The events of a finished run: held-out loss every 20 steps, a checkpoint every 40."""
    noise = random.Random(0)
    made: list[dict[str, Any]] = [
        {"kind": "start", "step": 0, "steps": steps, "time": "2025-11-23T17:32:00+00:00"},
        {"kind": "watch", "step": 0, "held_out_loss": 1.5234567, "held_out_tokens": 5210, "seconds": 4.0},
    ]
    for step in range(1, steps + 1):
        made.append(step_event(step, noise))
        if step % 20 == 0:
            loss = 0.0213 + 1.4 * math.exp(-step / 16)
            made.append({"kind": "watch", "step": step, "held_out_loss": loss, "held_out_tokens": 5210, "seconds": 4.0})
        if step % 40 == 0:
            made.append({"kind": "save", "step": step, "folder": f"checkpoints/step-{step:06d}"})
    made.append(
        {
            "kind": "end",
            "step": steps,
            "seconds": 308.4,
            "peak_bytes": 1_240_000_000,
            "learned_tokens": sum(event.get("learned_tokens", 0) for event in made),
            "tokens_per_s": 523.7,
            "held_out_loss": {"before": 1.5234567, "after": 0.0221},
        }
    )
    return made


def samples() -> list[dict[str, Any]]:
    """Answers of the base model, half way, and at the end; one was cut off, one has a word too long for a line."""
    made = []
    for step in (0, 60, 120):
        for place, (question, solution) in enumerate(QUESTIONS):
            rambling = "The sum of two numbers is found by adding them.\n\n1. First, we add the tens.\n" + "very" * 60
            made.append(
                {
                    "step": step,
                    "question": question,
                    "answer": rambling if step == 0 and place == 0 else ("It is 84." if step == 0 else solution),
                    "reference": None if place == 1 else solution,
                    "stopped": not (step == 0 and place == 0),
                    "tokens": 256 if step == 0 and place == 0 else 54,
                }
            )
    return made


def make_run(folder: Path, **changed: Any) -> Path:
    """Writes a run folder as a finished run leaves it; `changed` puts other content in place of a file's."""
    folder.mkdir(parents=True, exist_ok=True)
    context = "<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    content: dict[str, Any] = {
        "manifest": {
            "strop": "0.1.0",
            "created": "2025-11-23T17:32:00+00:00",
            "model": {
                "path": "/home/ada/.cache/strop/smollm2-135m-instruct",
                "sha256": "9f" * 32,
                "family": "llama",
                "parameters": 134_515_008,
                "trainable": 4_884_480,
                "nf4": {"projections": 210, "weights": 106_168_320, "bytes": 54_772_920, "bits_per_weight": 4.127},
            },
            "data": {
                "train": "demo/MATH/train",
                "fingerprint": "c0ffee" * 10,
                "read": 643,
                "learned": 640,
                "held_out": 100,
                "refused": 3,
            },
            "versions": {"python": "3.11.9", "torch": "2.13.0"},
            "device": {"kind": "cpu", "threads": 2, "memory_bytes": 25_000_000_000},
        },
        "plan": {"pack_tokens": 2048, "recompute": "none", "peak_bytes": 1_210_000_000, "seconds": 298.0},
        "data": {
            "lengths": {
                "bins": list(range(40, 130, 6)),
                "counts": [2, 9, 31, 77, 120, 150, 108, 70, 40, 21, 8, 3, 1, 0, 0],
            },
            "samples": [
                {
                    "place": f"demo/MATH/train/arithmetic/{place}.json",
                    "segments": [
                        {"text": context.format(question) + "<|im_start|>assistant\n", "kind": "context"},
                        {"text": solution, "kind": "learned"},
                        {"text": "<|im_end|>", "kind": "stop"},
                        {"text": "\n", "kind": "context"},
                    ],
                }
                for place, (question, solution) in enumerate(QUESTIONS, start=1)
            ],
        },
        "score": {"asked": 100, "base": {"right": 0, "loose": 7}, "tuned": {"right": 72, "loose": 75}},
        **changed,
    }
    for name in ("manifest", "plan", "data", "score"):
        if content[name] is not None:
            (folder / f"{name}.json").write_text(json.dumps(content[name]), encoding="utf-8")
    (folder / "recipe.yaml").write_text(changed.get("recipe", RECIPE), encoding="utf-8")
    lines(folder / "events.jsonl", changed.get("events", events()))
    lines(folder / "samples.jsonl", changed.get("samples", samples()))
    refused = [
        {"file": "demo/MATH/train/algebra/9.json", "line": 1, "reason": "no answer", "cure": "fill in the solution"},
        {"file": "demo/MATH/train/algebra/12.json", "line": 1, "reason": "no answer", "cure": "fill in the solution"},
        {"file": "demo/notes.jsonl", "line": 7, "reason": "not JSON", "cure": "mend the line, or remove it"},
    ]
    lines(folder / "refused.jsonl", changed.get("refused", refused))
    return folder


class Page(HTMLParser):
    """A page's tags with their attributes, its text, and what its <data> elements carry."""

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

    def names(self) -> set[str]:
        return {tag for tag, _ in self.tags}

    def values(self) -> list[str]:
        return [str(attributes["value"]) for tag, attributes in self.tags if tag == "data"]

    def charts(self) -> list[ElementTree.Element]:
        found = re.findall(r"<svg\b.*?</svg>", self.source, re.DOTALL)
        return [ElementTree.fromstring(svg) for svg in found]


def page_of(folder: Path) -> Page:
    return Page(write_report(folder))


def titles(chart: ElementTree.Element) -> list[str]:
    return [title.text or "" for title in chart.iter("title")]


def test_the_summary_shows_the_events_numbers(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"))
    tiles = page.values()[:8]
    learned = sum(event.get("learned_tokens", 0) for event in events() if event["kind"] == "step")
    assert tiles == ["1.5234567", "0.0221", "0", "72", "308.4", "523.7", "1240000000", str(learned)]
    for shown in ("1.523", "0.0221", "−98.5 %", "of 100", "in whatever form: 7 → 75", "5 min 8 s", "120 of 120 steps"):
        assert shown in page.text
    for shown in ("524", "1.24 GB", whole(learned), "Finished", "demo/MATH/train", "4.884 M", "3.6 %", "643 read"):
        assert shown in page.text


def test_what_is_in_four_bits_is_said(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"))
    assert "106.2 M of them in NF4, 4.127 bits each" in page.text


def test_the_charts_marks_carry_every_steps_values(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"))
    loss, narrow, rate, _, memory, speed, lengths, lengths_narrow = page.charts()
    for step in (event for event in events() if event["kind"] == "step"):
        place = f"step {step['step']}: "
        assert f"{place}training loss {significant(step['loss'])}" in titles(loss)
        assert f"{place}learning rate {significant(step['lr'])}" in titles(rate)
        assert f"{place}memory {size(step['memory_bytes'])}" in titles(memory)
        assert f"{place}tokens/s {significant(step['tokens_per_s'])}" in titles(speed)
    for watch in (event for event in events() if event["kind"] == "watch"):
        assert f"step {watch['step']}: held-out loss {significant(watch['held_out_loss'])}" in titles(loss)
        assert repr(watch["held_out_loss"]) in page.values()
    assert titles(narrow) == titles(loss)
    assert "52 to 58: 31" in titles(lengths)
    assert titles(lengths_narrow) == titles(lengths)


def test_marks_lie_where_their_values_are(tmp_path: Path) -> None:
    rate = page_of(make_run(tmp_path / "run")).charts()[2]
    ticks = {
        float(text.text or ""): float(text.attrib["y"]) - 4
        for text in rate.iter("text")
        if text.attrib["class"] == "tick value"
    }
    low, high = min(ticks), max(ticks)
    for mark in (circle for circle in rate.iter("circle") if circle.attrib["class"] == "hit"):
        value = float(titles(mark)[0].split()[-1]) / 1e-4  # the axis is in units of 10⁻⁴
        expected = ticks[low] + (value - low) / (high - low) * (ticks[high] - ticks[low])
        assert float(mark.attrib["cy"]) == pytest.approx(expected, abs=0.2)


def test_a_long_run_is_thinned_to_means_and_largest(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", events=events(1000)))
    loss, memory, speed = (page.charts()[place] for place in (0, 4, 5))
    assert len([title for title in titles(loss) if "training" in title]) <= 240
    made = [event for event in events(1000) if event["kind"] == "step"]
    mean = sum(event["loss"] for event in made[:5]) / 5
    assert f"steps 1 to 5: mean training loss {significant(mean)}" in titles(loss)
    mean = sum(event["tokens_per_s"] for event in made[5:10]) / 5
    assert f"steps 6 to 10: mean tokens/s {significant(mean)}" in titles(speed)
    assert f"steps 6 to 10: largest memory {size(made[8]['memory_bytes'])}" in titles(memory)


TRAP = "</p></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'><a href='http://evil.example/'>"


def test_nothing_a_file_holds_becomes_markup(tmp_path: Path) -> None:
    clean = page_of(make_run(tmp_path / "clean"))
    trapped = [{**sample, "question": TRAP, "answer": TRAP, "reference": TRAP} for sample in samples()]
    segments = [{"text": TRAP, "kind": kind} for kind in ("context", "learned", "stop", TRAP)]
    folder = make_run(
        tmp_path / "&lt;b&gt;run",
        samples=trapped,
        refused=[{"file": TRAP, "line": TRAP, "reason": TRAP, "cure": TRAP}],
        data={"lengths": {"bins": [TRAP], "counts": [TRAP]}, "samples": [{"place": TRAP, "segments": segments}]},
        recipe=f"model: {TRAP}  # {TRAP}\n{TRAP}\n{TRAP}: x\n",
        plan={TRAP: TRAP, "list": [TRAP], "deep": {"er": [{TRAP: TRAP}]}},
        manifest={"created": TRAP, "model": {"path": TRAP, "family": TRAP}, "data": {"train": TRAP}, TRAP: TRAP},
        score={"asked": TRAP, "base": {"right": TRAP}, "tuned": TRAP},
        events=[{"kind": "start", "step": 0, "time": TRAP, "steps": TRAP}, {"kind": TRAP, "step": TRAP}],
    )
    page = page_of(folder)
    assert page.text.count("alert(1)") >= 15
    assert "&lt;b&gt;run" in page.text
    assert page.names() <= clean.names() | {"a"}
    assert not page.names() & {"script", "img", "iframe", "object", "link", "b"}
    attributes = [(name, value) for _, found in page.tags for name, value in found.items()]
    assert not [name for name, _ in attributes if name.startswith("on")]
    assert {value for name, value in attributes if name in ("src", "href")} <= hrefs(clean)


def hrefs(page: Page) -> set[str | None]:
    return {value for _, found in page.tags for name, value in found.items() if name in ("src", "href", "xlink:href")}


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"))
    assert hrefs(page) == {"#course", "#answers", "#learned", "#refused", "#recipe", "#plan", "#manifest"}
    identifiers = {f"#{found['id']}" for _, found in page.tags if "id" in found}
    assert hrefs(page) <= identifiers
    assert not re.search(r"url\(|@import|<script|<link", page.source)
    policy = next(found["content"] for tag, found in page.tags if tag == "meta" and "http-equiv" in found)
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_base_and_tuned_answers_stand_side_by_side(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"))
    articles = re.findall(r'<article class="card question">(.*?)</article>', page.source, re.DOTALL)
    assert len(articles) == len(QUESTIONS)
    assert "cut off at 256 tokens" in articles[0]
    assert "ended by itself after 54 tokens" in articles[0]
    for article, (question, solution) in zip(articles, QUESTIONS, strict=True):
        parts = article.split("<h4>")
        assert question in parts[0]
        assert parts[1].startswith("Base")
        assert parts[2].startswith("Tuned")
        assert "step 120" in parts[2]
        assert solution in parts[2]
    assert ["Reference" in article for article in articles] == [True, False, True]


def test_learned_text_is_told_from_context_and_hidden_characters_show(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"))
    solution = QUESTIONS[0][1]
    assert f'<span class="seg learned">{solution}</span>' in page.source
    assert '<span class="seg stop">&lt;|im_end|&gt;</span>' in page.source
    assert '<span class="seg context"><span class="mark">↵</span>\n</span>' in page.source
    pieces = [piece.text for piece in visible(" a  b\u200b\u202ec\u00a0d\t\né→\\frac \n", "learned")]
    marked = [
        "·",
        "a",
        "··",
        "b",
        "⟨U+200B⟩",
        "⟨U+202E⟩",
        "c",
        "⟨U+00A0⟩",
        "d",
        "⇥",
        "↵",
        "\n",
        "é→\\frac",
        "·",
        "↵",
        "\n",
    ]
    assert pieces == marked


def test_refusals_are_counted_by_reason_and_the_first_fifty_named(tmp_path: Path) -> None:
    refused = [
        {"file": f"f{place}.json", "line": place, "reason": f"reason {place % 3}", "cure": "mend it"}
        for place in range(70)
    ]
    page = page_of(make_run(tmp_path / "run", refused=refused))
    assert "70 records were read and not learned" in page.text
    assert [page.source.count(f"{count} ×</td><td>reason {which}") for which, count in enumerate((24, 23, 23))] == [
        1,
        1,
        1,
    ]
    assert "The first 50" in page.text
    assert "f49.json:49" in page.text
    assert "f50.json:50" not in page.text


def test_a_run_that_only_started(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    lines(folder / "events.jsonl", [{"kind": "start", "step": 0, "steps": 120, "time": "2025-11-23T17:32:00Z"}])
    page = page_of(folder)
    assert "Running, or cut off, at step 0 of 120" in page.text
    assert "No step has been taken yet." in page.text
    assert "recipe.yaml is not there." in page.text
    assert page.charts() == []
    assert page.values() == []


@pytest.mark.parametrize(
    ("kept", "added", "state"),
    [
        (30, [], "Running, or cut off, at step"),
        (30, [{"kind": "stop", "step": 28}], "Stopped at step 28 of 120; can be resumed"),
        (
            30,
            [{"kind": "stop", "step": 28}, {"kind": "start", "step": 28, "steps": 120}],
            "Running, or cut off, at step 28",
        ),
    ],
)
def test_the_state_of_a_run_that_has_not_ended(
    tmp_path: Path, kept: int, added: list[dict[str, Any]], state: str
) -> None:
    page = page_of(make_run(tmp_path / "run", events=events()[:kept] + added, score=None))
    assert state in page.text
    assert "in steps so far" in page.text
    assert "Right answers" not in page.text


def test_a_resumed_run_shows_each_step_once_as_it_was_taken_last(tmp_path: Path) -> None:
    noise = random.Random(1)
    first = [{"kind": "start", "step": 0, "steps": 10}, *(step_event(step, noise) for step in range(1, 9))]
    again = [{"kind": "start", "step": 4, "steps": 10}, *(step_event(step, noise) for step in range(5, 7))]
    folder = make_run(tmp_path / "run", events=first + again, score=None)
    assert [step for step, _ in read_run(folder).course.values("loss")] == [1, 2, 3, 4, 5, 6]
    loss = titles(page_of(folder).charts()[0])
    assert f"step 5: training loss {significant(again[1]['loss'])}" in loss
    assert f"step 5: training loss {significant(first[5]['loss'])}" not in loss


def test_broken_lines_are_left_out_with_a_note(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    whole_page = page_of(folder)
    with (folder / "events.jsonl").open("ab") as file:
        file.write(
            b'[1, 2]\n"text"\n{"kind": 3}\n{"kind": "step", "step": "x"}\n\xff\xfe\n'
            + b"[" * 100_000
            + b'\n{"kind": "st'
        )
    (folder / "manifest.json").write_text("{", encoding="utf-8")
    (folder / "plan.json").write_text("[]", encoding="utf-8")
    page = page_of(folder)
    assert "events.jsonl: 5 lines hold no JSON object and are left out" in page.text
    assert "events.jsonl: 2 events of no known shape are left out." in page.text
    assert "manifest.json is not JSON" in page.text
    assert "plan.json holds no object" in page.text
    assert page.values() == whole_page.values()


def test_losses_that_are_not_finite_are_named_and_not_drawn(tmp_path: Path) -> None:
    made = events(12)
    for step, value in ((3, math.nan), (4, math.inf), (5, None), (6, 10**400), (7, True)):
        next(event for event in made if event.get("step") == step and event["kind"] == "step")["loss"] = value
    page = page_of(make_run(tmp_path / "run", events=made))
    assert "5 steps have no finite loss" in page.text
    loss = titles(page.charts()[0])
    assert not [title for title in loss if re.match(r"step [34567]: training", title)]
    assert "nan" not in ElementTree.tostring(page.charts()[0], encoding="unicode")


def test_over_fitting_is_said(tmp_path: Path) -> None:
    made = events(60)
    made[-1]["held_out_loss"]["after"] = 0.9
    page = page_of(make_run(tmp_path / "run", events=made))
    lowest = min(event["held_out_loss"] for event in made if event["kind"] == "watch")
    assert f"lowest at step 60: {significant(lowest)}" in page.text


def test_odd_values_do_not_stop_the_page(tmp_path: Path) -> None:
    step = {"kind": "step", "step": 1, "loss": -0.0, "lr": 1e-300, "memory_bytes": 5, "tokens_per_s": -3, "seconds": -2}
    folder = make_run(
        tmp_path / "run",
        events=[
            step,
            {"kind": "watch", "step": 1, "held_out_loss": 1e17},
            {"kind": "end", "seconds": -5, "step": None},
        ],
        samples=[
            {"step": None},
            {"step": 0, "question": 5, "answer": ["a"], "tokens": "x"},
            {"step": 2, "question": "q\ud800"},
        ],
        data={"samples": {"a": 1}, "lengths": {"bins": [1, 1, 1], "counts": [1, 2]}},
        manifest={"model": "x", "data": None, "versions": {}},
        score={"asked": None, "base": 3, "tuned": None},
        recipe="\ud800: x".encode("utf-8", "replace").decode() + "\n- a\n:\n # b\n",
    )
    assert len(page_of(folder).charts()) >= 4


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="is no run folder"):
            write_report(folder)
    assert list(tmp_path.iterdir()) == []


def test_links_out_of_the_folder_are_neither_shown_nor_written_through(tmp_path: Path) -> None:
    secret = tmp_path / "secret.yaml"
    secret.write_text("password: hunter2\n", encoding="utf-8")
    folder = make_run(tmp_path / "run")
    (folder / "recipe.yaml").unlink()
    try:
        (folder / "recipe.yaml").symlink_to(secret)
        (folder / "report.html").symlink_to(secret)
    except OSError:
        pytest.skip("this system does not let this user make links")
    page = page_of(folder)
    assert "hunter2" not in page.source
    assert "recipe.yaml points out of the run folder" in page.text
    assert secret.read_text(encoding="utf-8") == "password: hunter2\n"


def test_recipe_lines_keep_value_and_source() -> None:
    rows = [(line.depth, line.key, line.value, line.source) for line in recipe_lines(RECIPE)[:4]]
    assert rows == [
        (0, "model", "smollm2-135m-instruct", "command line"),
        (0, "data", "", ""),
        (1, "train", "demo/MATH/train", "command line"),
        (1, "eval", "demo/MATH/test", "recipe.yaml:4"),
    ]
    odd = recipe_lines("system: You're a #1: professor  # recipe.yaml:2\n# a comment\n- item\n")
    assert [(line.key, line.value, line.source) for line in odd] == [
        ("system", "You're a #1: professor", "recipe.yaml:2"),
        ("", "# a comment", ""),
        ("", "- item", ""),
    ]


def test_facts_are_flat_and_bytes_have_a_unit() -> None:
    rows = facts({"a": {"b": 1, "peak_bytes": 1_500_000_000}, "c": None, "d": [1, "x"], "e": True, "f": {}})
    assert rows == [
        ("a.b", "1"),
        ("a.peak_bytes", "1.5 GB (1,500,000,000 bytes)"),
        ("c", "–"),
        ("d", "1, x"),
        ("e", "yes"),
        ("f", "{}"),
    ]


@pytest.mark.parametrize(
    ("bins", "counts", "drawn"),
    [
        ([0, 10, 20], [3, 4], 2),
        ([0, 10], [3, 4], 2),
        ([0, 10, 5], [3, 4], 0),
        ([], [], 0),
        ([0, 1], ["x"], 0),
        ([0, 9], [-1], 0),
    ],
)
def test_lengths_are_drawn_from_edges_or_left_edges(bins: list[Any], counts: list[Any], drawn: int) -> None:
    svg = lengths_chart({"lengths": {"bins": bins, "counts": counts}}, 480, 260)
    assert (svg or "").count("<rect") == drawn
    if svg is not None:
        tops = [
            (float(bar.attrib["y"]), float(bar.attrib["height"])) for bar in ElementTree.fromstring(svg).iter("rect")
        ]
        assert all(0 < top < 260 and height > 0 for top, height in tops)
        assert tops[0][1] / tops[1][1] == pytest.approx(counts[0] / counts[1], rel=0.01)


def test_how_numbers_are_written() -> None:
    assert [significant(value) for value in (0, 1.5234567, 0.02131, 12345.6, -0.5, 2e-5, 9.9996, 0.50001)] == [
        "0", "1.523", "0.02131", "12,346", "-0.5", "2e-5", "10.000", "0.5000",
    ]  # fmt: skip
    assert [duration(value) for value in (0, 41.23, 59.99, 308.4, 3599.6, 7380, 273_600)] == [
        "0 s", "41.2 s", "60.0 s", "5 min 8 s", "1 h 0 min", "2 h 3 min", "3 d 4 h",
    ]  # fmt: skip
    assert [size(value) for value in (0, 999, 1000, 1_240_000_000, 13_900_000_000)] == [
        "0 bytes", "999 bytes", "1 kB", "1.24 GB", "13.9 GB",
    ]  # fmt: skip
    assert [byte_unit(5e8), power_unit(2e-4), power_unit(0.5)] == [(1e6, "MB"), (1e-4, "× 10⁻⁴"), (1.0, "")]
    assert [change(2, 1), change(1, 1.5), change(0, 1)] == ["−50 %", "+50 %", ""]
