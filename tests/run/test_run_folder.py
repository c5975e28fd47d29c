"""The run folder: made once, opened again, its logs read whatever a kill left at their end; and what a run came to."""

import json
from pathlib import Path
from typing import Any

import pytest

from strop.errors import InputError, UsageError
from strop.run.folder import RunFolder, create_run, open_run, write_text
from strop.run.journal import Journal
from strop.run.log import Log
from strop.run.summary import runs_in, summarize
from tiny_run import events, values

# ── made and opened ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_is_made_in_a_new_or_an_empty_folder(tmp_path: Path):
    assert create_run(tmp_path / "a" / "b") == RunFolder(tmp_path / "a" / "b")
    (tmp_path / "empty").mkdir()
    assert create_run(tmp_path / "empty").path.is_dir()


def test_a_folder_in_the_way_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError) as caught:
        create_run(tmp_path / "mine")
    assert caught.value.found == "1 files and folders in it"
    assert f"strop resume {tmp_path / 'mine'}" in caught.value.do
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    with pytest.raises(UsageError) as caught:
        create_run(tmp_path / "mine" / "thesis.txt")
    assert caught.value.found == "a file"
    with pytest.raises(UsageError, match="cannot be made"):
        create_run(tmp_path / "mine" / "thesis.txt" / "run")


def test_only_a_run_is_opened(tmp_path: Path):
    run = create_run(tmp_path / "run")
    for found, path in (("no such folder", tmp_path / "no"), ("neither", run.path)):
        with pytest.raises(InputError) as caught:
            open_run(path)
        assert (caught.value.what, caught.value.found) == (f"{path} is not a run", found)
    write_text(run.recipe, "model: m\n")
    with pytest.raises(InputError):
        open_run(run.path)
    run.write_json("manifest.json", {})
    assert open_run(run.path) == run
    with pytest.raises(InputError) as caught:
        open_run(run.manifest)
    assert caught.value.found == "a file"


def test_json_is_read_as_written_and_a_broken_file_is_named(tmp_path: Path):
    run = create_run(tmp_path / "run")
    value = {"text": "é 日本 \u2028", "number": 0.1, "list": [1, None]}
    run.write_json("x.json", value)
    assert run.read_json("x.json") == value
    (run.path / "x.json").write_bytes(b'{"text": "\xc3')
    for name in ("x.json", "none.json"):
        with pytest.raises(InputError, match=f"{name} cannot be read"):
            run.read_json(name)


def test_a_text_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.txt"
    write_text(path, "old\n")

    def fail(_handle: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_text(path, "new\n")
    assert path.read_bytes() == b"old\n"
    monkeypatch.undo()
    write_text(path, "new\n")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.txt", b"new\n")]


# ── logs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

LINES: list[dict[str, Any]] = [
    {"kind": "start", "step": 0},
    {"step": 1, "answer": "line\u2028separator\u2029, next\x85line, tab\x0b\x0c, é, 🙂, \\n"},
    {"kind": "step", "step": 2, "loss": 0.1},
    {"kind": "stop", "step": 2},
]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with lines in both logs."""
    run = create_run(tmp_path / "run")
    for log in (run.events, run.samples):
        for line in LINES:
            add(log, line)
    return run


def add(log: Path, value: dict[str, Any]) -> None:
    """Add a line."""
    writer = Log(log)
    writer.append(value)
    writer.close()


def test_lines_come_back_as_they_were(run: RunFolder):
    assert list(run.lines(run.events)) == LINES
    assert run.events.read_bytes().count(b"\n") == len(LINES)
    assert list(run.lines(run.path / "none.jsonl")) == []


def test_a_last_line_cut_anywhere_is_left_out(run: RunFolder):
    whole = run.events.read_bytes()
    last = json.dumps({"step": 3, "answer": "日本"}, ensure_ascii=False).encode()
    for length in range(len(last)):
        run.events.write_bytes(whole + last[:length])
        assert list(run.lines(run.events)) == LINES
    run.events.write_bytes(whole + last)
    assert len(list(run.lines(run.events))) == len(LINES) + 1


def test_a_line_that_holds_no_object_is_left_out(run: RunFolder):
    run.events.write_bytes(b"\0\0\0\n[1]\n3\n" + run.events.read_bytes())
    assert list(run.lines(run.events)) == LINES


def test_logs_are_cut_back_to_a_mark(run: RunFolder):
    marks = {}
    for log in (run.events, run.samples):
        marks[log.name] = Log(log).sync()
        with log.open("ab") as file:
            file.write(b'{"kind": "step", "step": 3}\n{"kind": "step", "step": 4, "lo')
    assert run.cut_logs(2, marks) == []
    for log in (run.events, run.samples):
        assert list(run.lines(log)) == LINES
    add(run.events, {"kind": "step", "step": 3})
    assert list(run.lines(run.events)) == [*LINES, {"kind": "step", "step": 3}]
    assert run.cut_logs(0, {}) == []
    assert (run.events.read_bytes(), run.samples.read_bytes()) == (b"", b"")
    assert run.cut_logs(2, marks) == ["events.jsonl", "samples.jsonl"], "what a mark counts is gone"


def test_a_log_that_is_not_what_it_was_keeps_its_whole_lines_up_to_the_step(run: RunFolder):
    marks = {log.name: Log(log).sync() for log in (run.events, run.samples)}
    content = run.events.read_bytes()
    run.events.write_bytes(content.replace(b"0.1", b"0.3") + b'{"kind": "step", "step": 3}\n{"step": 2, "lo')
    assert run.cut_logs(2, marks) == ["events.jsonl"]
    assert list(run.lines(run.events)) == [*LINES[:2], {**LINES[2], "loss": 0.3}], "a stop is forgotten"
    assert list(run.lines(run.samples)) == LINES


# ── journal ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_journal_tells_all_and_keeps_what_happened(tmp_path: Path):
    class Listener:
        def __init__(self) -> None:
            self.heard: list[dict[str, Any]] = []

        def on_event(self, event: dict[str, Any]) -> None:
            self.heard.append(event)

    run, listener = create_run(tmp_path / "run"), Listener()
    journal = Journal(run, listener)
    journal.event("step", 1, loss=0.5)
    journal.sample({"step": 1, "answer": "42"})
    journal.note("slow")
    journal.progress("reading")(3, 9)
    (kept,) = run.lines(run.events)
    assert (kept["kind"], kept["step"], kept["loss"]) == ("step", 1, 0.5)
    assert kept["time"].endswith("+00:00")
    assert list(run.lines(run.samples)) == [{"step": 1, "answer": "42"}]
    assert listener.heard == [
        kept,
        {"kind": "answer", "step": 1, "answer": "42"},
        {"kind": "note", "text": "slow"},
        {"kind": "progress", "what": "reading", "done": 3, "total": 9},
    ]
    Journal(None, None).event("step", 1)


# ── what a run came to ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_summary_adds_up_its_steps(finished: RunFolder):
    summary = summarize(finished)
    seconds = sum(values(finished, "step", "seconds"))
    assert summary == {
        "run": str(finished.path),
        "adapter": str(finished.adapter),
        "state": "finished",
        "steps": 6,
        "total_steps": 6,
        "skipped_steps": 0,
        "learned_tokens": sum(values(finished, "step", "learned_tokens")),
        "tokens_per_s": pytest.approx(sum(values(finished, "step", "tokens")) / seconds),
        "peak_bytes": max(*values(finished, "step", "memory_bytes"), *values(finished, "end", "peak_bytes")),
        "seconds": pytest.approx(seconds),
        "watch_seconds": pytest.approx(sum(values(finished, "watch", "seconds"))),
        "forecast": events(finished, "start")[0]["forecast"],
        "held_out_loss": {
            "before": events(finished, "watch")[0]["held_out_loss"],
            "after": events(finished, "watch")[-1]["held_out_loss"],
        },
    }
    assert summary["held_out_loss"]["after"] < summary["held_out_loss"]["before"] - 1


def step(number: int) -> dict[str, Any]:
    return {"kind": "step", "step": number, "learned_tokens": 2, "tokens": 5, "seconds": 0.5, "memory_bytes": 100}


START = {"kind": "start", "step": 0, "steps": 9}


@pytest.mark.parametrize(
    ("happened", "state", "steps"),
    [
        ([], "unfinished", 0),
        ([START], "unfinished", 0),
        ([START, step(1)], "unfinished", 1),
        ([START, step(1), {"kind": "stop", "step": 1}], "stopped", 1),
        ([START, step(1), {**START, "step": 1}, step(2)], "unfinished", 2),
        ([START, step(1), {"kind": "end", "step": 1, "peak_bytes": 400}], "finished", 1),
    ],
)
def test_the_summary_says_how_far_a_run_is(happened: list[dict[str, Any]], state: str, steps: int, tmp_path: Path):
    run = create_run(tmp_path / "run")
    for event in happened:
        add(run.events, event)
    summary = summarize(run)
    assert (summary["state"], summary["steps"], summary["total_steps"]) == (state, steps, 9 if happened else 0)
    assert (summary["learned_tokens"], summary["seconds"]) == (2 * steps, 0.5 * steps)
    assert summary["tokens_per_s"] == (10 if steps else 0)
    assert summary["peak_bytes"] == (400 if state == "finished" else 100 if steps else 0)
    assert summary["held_out_loss"] == {"before": None, "after": None}
    assert summary["adapter"] is None


def test_the_summary_keeps_the_first_forecast(tmp_path: Path):
    run = create_run(tmp_path / "run")
    for event in (
        {**START, "forecast": {"peak_bytes": 100}},
        step(1),
        {"kind": "watch", "step": 1, "held_out_loss": None, "seconds": 2.0},
        {**START, "step": 1, "forecast": {"peak_bytes": 70}},
        {"kind": "watch", "step": 2, "held_out_loss": 1.5, "seconds": 3.0},
    ):
        add(run.events, event)
    summary = summarize(run)
    assert summary["forecast"] == {"peak_bytes": 100}
    assert summary["watch_seconds"] == 5.0
    older = create_run(tmp_path / "older")
    add(older.events, START)
    assert summarize(older)["forecast"] is None


def test_runs_are_listed_by_name(tmp_path: Path):
    for name in ("b", "a", "not a run"):
        run = create_run(tmp_path / name)
        if name != "not a run":
            run.write_json("manifest.json", {})
    assert [Path(summary["run"]).name for summary in runs_in(tmp_path)] == ["a", "b"]
    assert runs_in(tmp_path / "none") == []
