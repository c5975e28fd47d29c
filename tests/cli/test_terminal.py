"""What people see: the training loop's events, the recipe's table, sizes and times, doctor and the list of runs."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from plans import PLAN, curve, forecast
from strop.cli import doctor as doctor_module
from strop.cli.chat import converse
from strop.cli.console import print_json, printable
from strop.cli.doctor import examine, readable
from strop.cli.main import main
from strop.cli.progress import LINE_INTERVAL, SHOWN_TEXT, TerminalListener
from strop.cli.show import show_recipe, show_run
from strop.cli.units import format_duration, format_size
from strop.recipe import FIELDS, resolve


class Screen(io.StringIO):
    """What is printed, with an encoding of its own."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def step(number: int, **more: Any) -> dict[str, Any]:
    speed = {"learned_tokens_per_s": 412.4, "memory_bytes": 1_400_000_000}
    return {"kind": "step", "step": number, "loss": 1 / number, **speed, **more}


def plain(events: list[dict[str, Any]], seconds_each: float) -> list[str]:
    out, clock = io.StringIO(), Clock()
    with TerminalListener(Console(file=out, width=200, highlight=False, markup=False), clock) as listener:
        for event in events:
            listener.on_event(event)
            clock.now += seconds_each
    return out.getvalue().splitlines()


START = {"kind": "start", "step": 0, "steps": 20}
END = {"kind": "end", "step": 20, "seconds": 200.0, "peak_bytes": 1_500_000_000, "learned_tokens": 55_523}
END |= {"tokens_per_s": 400.0, "held_out_loss": {"before": 1.52, "after": 0.02}}


def test_plain_lines_come_at_most_every_two_seconds_but_first_and_last_always():
    watch = {"kind": "watch", "step": 20, "held_out_loss": 1.0}
    lines = plain([START, *[step(k) for k in range(1, 21)], watch, END], LINE_INTERVAL / 4)
    assert lines[-2] == "step 20  held-out loss 1.0000"
    steps = [line.split()[1] for line in lines if "tok/s" in line and "/20" in line]
    assert steps == ["1/20", "5/20", "9/20", "13/20", "17/20", "20/20"]


def test_plain_lines_of_slow_steps_are_all_there():
    lines = plain([START, *[step(k) for k in range(1, 21)], END], LINE_INTERVAL)
    assert sum(line.startswith("step") for line in lines) == 20
    assert lines[0] == "training 20 steps"
    assert lines[10] == "step 10/20  loss 0.1000  412 learned tok/s  1.4 GB  20 s left"
    assert lines[-1] == (
        "done: 20 steps in 3 min 20 s  55,523 learned tokens  400 tok/s  peak 1.5 GB  held-out loss 1.5200 → 0.0200"
    )


def test_the_last_step_before_a_stop_is_told():
    lines = plain([START, step(1), step(2), {"kind": "stop", "step": 2, "reason": "asked to"}], 0.1)
    assert [line.split("  ")[0] for line in lines[1:]] == ["step 1/20", "step 2/20", "step 2"]
    assert lines[-1] == "step 2  stopped: asked to"


def test_a_resumed_run_counts_from_where_it_was():
    lines = plain([{"kind": "start", "step": 10, "steps": 20}, step(11), step(12)], 5.0)
    assert lines[0] == "training 20 steps from step 10"
    assert lines[2].endswith("40 s left")  # 2 steps in 10 s, 8 to go


def test_everything_but_steps_is_always_told():
    events = [
        START,
        {"kind": "watch", "step": 0, "held_out_loss": 1.5},
        {"kind": "watch", "step": 5, "held_out_loss": 1.25},
        {"kind": "watch", "step": 5, "held_out_loss": None},
        {"kind": "answer", "step": 5, "question": "2+2?\nThink.", "answer": "[red]4[/red]\x1b[2J", "stopped": False},
        {"kind": "save", "step": 5, "folder": "checkpoints/step-000005"},
        {"kind": "note", "text": "[bold]so[/bold]"},
        {"kind": "something new", "step": 5},
    ]
    assert plain(events, 0.0)[1:] == [
        "step 0  held-out loss 1.5000",
        "step 5  held-out loss 1.2500 (was 1.5000)",
        "step 5  asked: 2+2?",
        "    Think.",
        "  answered: [red]4[/red]\\x1b[2J … (did not stop by itself)",
        "step 5  saved checkpoints/step-000005",
        "[bold]so[/bold]",
    ]


def test_long_answers_are_cut():
    (line,) = plain([{"kind": "answer", "step": 1, "question": "?", "answer": "x" * 5000}], 0.0)[1:]
    assert line == "  answered: " + "x" * SHOWN_TEXT + " …"


def on_terminal(events: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    console = Console(file=out, width=140, force_terminal=True, color_system=None, legacy_windows=False)
    with TerminalListener(console, Clock()) as listener:
        for event in events:
            listener.on_event(event)
    return out.getvalue()


def test_a_terminal_shows_one_bar_and_the_rest_above_it():
    answer = {"kind": "answer", "step": 1, "question": "[b]Q[/b]", "answer": "[i]A[/i]\x1b]0;title\x07"}
    shown = on_terminal([START, step(1), step(2), answer, END])
    last_bar = shown.rpartition("\x1b[2K")[2]
    assert "2/20" in last_bar
    assert "loss 0.5000  412 learned tok/s  1.4 GB" in last_bar
    assert "[b]Q[/b]" in shown
    assert "[i]A[/i]\\x1b]0;title\\x07" in shown
    assert "\x07" not in shown
    assert shown.rstrip().endswith("held-out loss 1.5200 → 0.0200")


def test_preparation_is_one_line_or_a_bar_that_goes():
    steps = [{"kind": "progress", "what": "reading [data]", "done": done, "total": 3} for done in range(4)]
    assert plain([*steps, START], 0.0) == ["reading [data]", "training 20 steps"]
    shown = on_terminal(steps)
    assert "reading [data]" in shown
    assert "3/3" in shown
    assert shown.endswith("\x1b[1A\x1b[2K")  # erased


def test_a_failure_takes_the_bar_down():
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, color_system=None, legacy_windows=False)
    with pytest.raises(ValueError, match="boom"), TerminalListener(console) as listener:
        listener.on_event(START)
        raise ValueError("boom")
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") == 1  # the cursor is back


# ── the plan's part of a run ─────────────────────────────────────────────────────────────────────────────────────────


def start_with_plan(**more: Any) -> dict[str, Any]:
    found = forecast()
    facts = {"plan": found.plan.as_dict(), "forecast": found.as_dict(), "budget_bytes": 8_000_000_000}
    return {**START, **facts, **more}


def test_the_plan_is_told_before_the_first_step():
    assert plain([start_with_plan()], 0.0) == [
        "plan  1.14 GB of memory (budget 8 GB), about 5 min 15 s, 2.4 s a step",
        "      cpu, float32, 2 threads, products by openblas; everything kept",
        "training 20 steps",
    ]
    lean = {**PLAN.as_dict(), "recompute_layers": 30, "recompute_elementwise": 1, "head": "stored", "embedding": "file"}
    lines = plain([start_with_plan(plan=lean, reason="[b]memory\x1b[2J")], 0.0)
    assert lines[1].endswith(
        "; 30 layers computed twice, 1 layer with norms and gated products made twice, head widened in blocks, "
        "embedding read from the file"
    )
    assert lines[2] == "      why: [b]memory\\x1b[2J"
    shown = on_terminal([start_with_plan()])
    assert "about 5 min 15 s" in shown.rpartition("\x1b[2K")[2]  # until a step is done the bar shows the forecast


def test_the_largest_pack_and_a_leaner_plan_are_told():
    lean = curve()[0]
    events = [
        START,
        {"kind": "dry_run", "step": 0, "tokens": 2048, "seconds": 1.94, "memory_bytes": 1_430_000_000},
        {"kind": "replan", "step": 3, "reason": "no memory", "plan": lean.plan.as_dict(), "forecast": lean.as_dict()},
    ]
    assert plain(events, 0.0)[1:] == [
        "step 0  tried the largest pack, 2,048 tokens: 1.9 s, 1.4 GB in use",
        "step 3  memory fell short: no memory",
        "  going on under a leaner plan: 584 MB, 30 layers computed twice, head widened in blocks, "
        "embedding read from the file",
    ]


def test_the_time_left_is_reckoned_from_the_steps():
    dry_run = {"kind": "dry_run", "step": 0, "tokens": 9, "seconds": 1.0, "memory_bytes": 1}
    watch = {"kind": "watch", "step": 0, "held_out_loss": None}
    lines = plain([START, dry_run, watch, step(1), step(2)], 5.0)
    assert lines[-1].endswith("1 min 30 s left")  # 2 steps in 10 s, 18 to go


def summary(**more: Any) -> dict[str, Any]:
    facts = {"run": "runs/x", "state": "finished", "steps": 120, "peak_bytes": 1_200_000_000, "seconds": 300.0}
    return {**facts, "watch_seconds": 20.0, "forecast": forecast().as_dict(), **more}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_forecast_and_fact_stand_side_by_side(encoding: str):
    out = Screen(encoding)
    show_run(summary(), Console(file=out, width=80))
    minus = "−" if encoding == "utf-8" else "-"
    table = [line.split("  ") for line in out.getvalue().splitlines()[:6]]
    assert [[cell.strip() for cell in row if cell.strip()] for row in table] == [
        ["forecast", "fact", "difference"],
        ["peak memory", "1.14 GB", "1.2 GB", "+4.9 %"],
        ["a step", "2.4 s", "2.5 s", "+4.2 %"],
        ["all steps", "4 min 48 s", "5 min 0 s", "+4.2 %"],
        ["watching", "24 s", "20 s", f"{minus}17 %"],
        ["steps and watching", "5 min 12 s", "5 min 20 s", "+2.6 %"],
    ]
    assert out.getvalue().isascii() == (encoding == "ascii")


def test_a_run_that_has_not_ended_compares_what_it_can_and_an_older_one_nothing():
    out = Screen()
    show_run(summary(state="stopped"), Console(file=out, width=80))
    assert "a step" in out.getvalue()
    assert "all steps" not in out.getvalue()
    older = Screen()
    show_run({"run": "runs/x"}, Console(file=older, width=80))
    show_run(summary(forecast=None), Console(file=older, width=80))
    assert "forecast" not in older.getvalue()
    assert older.getvalue().count("strop chat") == 2


# ── the recipe's table ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_recipe_is_shown_with_its_sources():
    out = io.StringIO()
    overrides = [("train.lr", "3e-4"), ("data.system", "[b]x[/b] \x1b[2J"), ("watch.ask", "A?"), ("watch.ask", "B?")]
    show_recipe(resolve(model="m", data="d", overrides=overrides), Console(file=out, width=100))
    rows = [line.split(None, 1) for line in out.getvalue().splitlines()[1:]]
    assert [row[0] for row in rows if row[0] != "B?"] == [field.path for field in FIELDS]
    shown = {row[0]: row[1].strip() for row in rows if len(row) > 1}
    assert shown["train.lr"].split() == ["*", "0.0003", "flag", "--train.lr"]
    assert shown["train.epochs"].split() == ["3", "default"]
    assert "[b]x[/b] \\x1b[2J" in shown["data.system"]
    assert "\x1b" not in out.getvalue()


def test_what_differs_stands_out_on_a_terminal():
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, color_system="standard", legacy_windows=False)
    show_recipe(resolve(model="m", data="d", overrides=[("train.lr", "3e-4")]), console)
    lines = out.getvalue().splitlines()
    changed = next(line for line in lines if "train.lr" in line)
    default = next(line for line in lines if "train.epochs" in line)
    assert "\x1b[1m" in changed
    assert "\x1b[1m" not in default


# ── sizes and times ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_sizes_and_times_in_words():
    sizes = [format_size(size) for size in (0, 950, 1_000, 7_812_000_000, 99_960_000, 999_700, 25_276_502_016)]
    assert sizes == ["0 B", "950 B", "1.0 kB", "7.8 GB", "100 MB", "1.0 MB", "25.3 GB"]
    times = [format_duration(seconds) for seconds in (0.25, 9.96, 45.2, 59.7, 200, 3599.6, 7500, float("inf"))]
    assert times == ["0.2 s", "10 s", "45 s", "1 min 00 s", "3 min 20 s", "1 h 00 min", "2 h 05 min", "?"]


def test_printable_keeps_what_people_write():
    assert printable("a\tb\né 中 👩\u200d💻 نمی\u200cدانم") == "a\tb\né 中 👩\u200d💻 نمی\u200cدانم"
    assert printable("\x1b[31m\r\x07\u202e") == "\\x1b[31m\\r\\x07\\u202e"


def test_json_is_one_ascii_line(capsys: pytest.CaptureFixture[str]):
    print_json({"a": float("inf"), "b": [float("nan"), 1.5], "c": Path("x"), "d": "é\n", "e": {"f": None}})
    out = capsys.readouterr().out
    assert out.isascii()
    assert out.count("\n") == 1
    assert json.loads(out) == {"a": None, "b": [None, 1.5], "c": "x", "d": "é\n", "e": {"f": None}}


# ── runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def make_run(folder: Path, *events: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").touch()
    (folder / "manifest.json").write_text("{}", encoding="utf-8")
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")


def test_the_list_of_runs_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)  # short paths, so that the table's rows stay on one line
    assert main(["runs", "."]) == 0
    assert "no runs in" in capsys.readouterr().out
    done = step(2, learned_tokens=5, tokens=7, seconds=1.0)
    make_run(tmp_path / "a", START, {"kind": "watch", "step": 0, "held_out_loss": 1.5}, done)
    make_run(tmp_path / "b", START, done, {"kind": "stop", "step": 2, "reason": "x"})
    assert main(["runs", str(tmp_path), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["runs"]
    assert [Path(run["run"]).name for run in listed] == ["a", "b"]
    assert main(["runs", "."]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].rstrip().endswith("unfinished  2 of 20  1.5000")
    assert lines[2].rstrip().endswith("stopped     2 of 20  –")


# ── chat ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Parrot:
    """A conversation that answers in pieces, one of them steering the terminal."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def say(self, text: str, on_text: Any) -> None:
        self.heard.append(text)
        for piece in ("[b]you ", "said\x1b[2J ", text):
            on_text(piece)


def test_a_conversation_ends_with_an_empty_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo \n\nthree\n"))
    parrot = Parrot()
    converse(parrot)  # type: ignore[arg-type]
    assert parrot.heard == ["one", "two"]
    captured = capsys.readouterr()
    assert captured.out == "[b]you said\\x1b[2J one\n[b]you said\\x1b[2J two\n"
    assert captured.err == "> > > "


# ── doctor ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_doctor_looks_at_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("STROP_CACHE", str(tmp_path / "cache"))
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert findings["problems"] == []
    assert findings["versions"]["strop"]
    assert findings["versions"]["torch"]
    assert findings["machine"]["memory_bytes"] > 0
    assert findings["machine"]["usable_cores"] >= 1
    assert findings["device"]["kind"] in ("cpu", "cuda", "mps")
    on_gpu = {"gpu_operations", "gpu_attention"} if findings["device"]["kind"] == "cuda" else set()
    assert set(findings["kernels"]) == {"operations", "matrix_products", "cpu_dtype"} | on_gpu
    assert all(findings["kernels"].values())
    assert findings["cache"] == findings["cache"] | {"folder": str(tmp_path / "cache"), "writable": True}
    assert list((tmp_path / "cache").iterdir()) == []


def test_doctor_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("STROP_CACHE", str(tmp_path / "file" / "cache"))
    findings = examine()
    assert not findings["cache"]["writable"]
    assert "STROP_CACHE" in findings["problems"][0]
    assert main(["doctor"]) == 1
    captured = capsys.readouterr()
    assert "missing: the cache" in captured.err
    assert "Everything" not in captured.out


def test_doctor_looks_at_a_card(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The card, its memory, what its kernels are, and what is missing there."""
    import torch

    from strop.kernels.triton import found

    card = SimpleNamespace(name="A card", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (60 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(found, "reason", lambda device: "Triton is not installed")
    findings = examine()
    assert findings["device"]["kind"] == "cuda"
    assert findings["device"]["memory_bytes"] == 80 << 30
    assert findings["kernels"]["gpu_operations"] == "torch (no Triton kernels: Triton is not installed)"
    assert findings["kernels"]["gpu_attention"].endswith("sdpa, plain")
    assert main(["doctor"]) == 0
    assert "gpu attention" in capsys.readouterr().out


def test_doctor_says_why_a_card_is_not_used(monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor_module, "_has_nvidia_driver", lambda: True)
    for cuda, words in ((None, "was built for CPUs"), ("13.0", "(CUDA 13.0) finds no device")):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        assert words in examine()["device"]["unused"]


def test_memory_of_a_gpu_is_called_so():
    gpu_plan = {**PLAN.as_dict(), "device": "cuda:0", "dtype": "bfloat16", "attention": "varlen", "base": "host"}
    forecasts = {"plan": gpu_plan, "forecast": forecast().as_dict(), "budget_bytes": 5 << 30, "reason": "r"}
    tried = {"kind": "dry_run", "step": 0, "tokens": 8192, "seconds": 1.0, "memory_bytes": 3_000_000_000}
    lines = plain([{**START, **forecasts}, tried, step(1), END], 1.0)
    said = "\n".join(lines)
    assert "of a GPU's memory (budget 5.37 GB)" in said
    assert "cuda:0, bfloat16, attention by varlen" in said
    assert "base in the machine's memory" in said
    assert "3.0 GB in use on the GPU" in said
    assert "1.4 GB on the GPU" in said


def test_doctor_in_words():
    assert readable({"free_memory_bytes": 16_800_000_000, "bfloat16": True, "cpu_threads": 2}) == {
        "free memory": "16.8 GB",
        "bfloat16": "yes",
        "cpu threads": 2,
    }
