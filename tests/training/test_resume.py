"""Kill a run at any instant, resume it, get the same bytes: adapter, losses, counts, answers.

A kill is an exception that nothing catches, raised where the run tells of an event; a few are real signals to a real
process. What is compared is `tiny_run.course`: every number of every step that does not depend on the clock.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from strop.errors import InputError, SaveError, Stopped, UsageError
from strop.run import disk
from strop.run.checkpoint import newest_checkpoint
from strop.run.folder import RunFolder
from strop.run.summary import summarize
from strop.training.optimizer import STATE_FILE
from strop.training.session import resume_run
from tiny_run import Tiny, course, events, rows, values, write_rows

signals = pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send to a process")


class Killed(BaseException):
    """The process is gone."""


class Listener:
    """Keeps all events, and does something at the n-th (from 0) of a kind."""

    def __init__(self, kind: str = "", number: int = 0, act: Callable[[], None] = lambda: None) -> None:
        self.kind, self.left, self.act = kind, number, act
        self.heard: list[dict[str, Any]] = []

    def on_event(self, event: dict[str, Any]) -> None:
        self.heard.append(event)
        if event["kind"] == self.kind:
            self.left -= 1
            if self.left == -1:
                self.act()


def kill() -> None:
    raise Killed


def killed(tiny: Tiny, folder: Path, kind: str, number: int) -> RunFolder:
    """A run that was killed at an event."""
    with pytest.raises(Killed):
        tiny.train(folder, listener=Listener(kind, number, kill))
    return RunFolder(folder)


@pytest.fixture(scope="module")
def whole(finished: RunFolder) -> dict[str, Any]:
    """The course of the run that nobody stopped."""
    return course(finished)


# ── killed ───────────────────────────────────────────────────────────────────────────────────────────────────────────

# A kind of event, which of them (from 0), and the step that the run continues from.
INSTANTS = [
    ("start", 0, 0),
    ("watch", 0, 0),
    ("answer", 1, 0),
    ("step", 0, 0),
    ("step", 1, 0),
    ("watch", 1, 2),
    ("answer", 4, 2),
    ("save", 0, 2),
    ("step", 2, 2),
    ("save", 1, 4),
    ("step", 5, 4),
    ("answer", 11, 6),
    ("save", 2, 6),
]


@pytest.mark.parametrize(
    ("kind", "number", "first"), INSTANTS, ids=[f"{kind} {number}" for kind, number, _ in INSTANTS]
)
def test_killed_at_any_event_it_continues_to_the_same_bytes(
    kind: str, number: int, first: int, tiny: Tiny, whole: dict[str, Any], tmp_path: Path
):
    run = killed(tiny, tmp_path / "run", kind, number)
    assert not run.adapter.exists()
    assert summarize(run)["state"] == "unfinished"
    summary = resume_run(run.path)
    assert course(run) == whole
    assert values(run, "step", "step") == [1, 2, 3, 4, 5, 6]
    assert [event["step"] for event in events(run, "start")] == ([0, first] if first else [0])
    assert summary["state"] == "finished"
    assert summary["learned_tokens"] == sum(values(run, "step", "learned_tokens"))


def test_killed_again_and_again(tiny: Tiny, whole: dict[str, Any], tmp_path: Path):
    run = killed(tiny, tmp_path / "run", "step", 2)
    for kind, number in (("start", 0), ("step", 0), ("step", 1), ("watch", 0), ("save", 0), ("step", 1)):
        with pytest.raises(Killed):
            resume_run(run.path, Listener(kind, number, kill))
    resume_run(run.path)
    assert course(run) == whole


@pytest.mark.parametrize("number", [1, 2])
def test_killed_while_a_checkpoint_is_written(
    number: int, tiny: Tiny, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    saves = []
    write = disk.write_file

    def kill_in_the_middle(path: Path, chunks: disk.Chunks) -> disk.Written:
        if path.name == STATE_FILE:
            saves.append(path)
            if len(saves) == number:
                path.write_bytes(b"half of a che")
                raise Killed
        return write(path, chunks)

    monkeypatch.setattr(disk, "write_file", kill_in_the_middle)
    with pytest.raises(Killed):
        tiny.train(tmp_path / "run")
    monkeypatch.undo()
    run = RunFolder(tmp_path / "run")
    assert [path.name for path in run.checkpoints.glob("step-*")] == ["step-000002"][: number - 1]
    resume_run(run.path)
    assert course(run) == whole
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-000004", "step-000006"]


def test_killed_in_the_middle_of_a_line(tiny: Tiny, whole: dict[str, Any], tmp_path: Path):
    run = killed(tiny, tmp_path / "run", "step", 4)
    for log in (run.events, run.samples):
        with log.open("ab") as file:
            file.write('{"kind": "step", "step": 9, "answer": "é'.encode()[:-1])
    resume_run(run.path)
    assert course(run) == whole


def test_killed_before_the_adapter_has_its_name(
    tiny: Tiny, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rename = disk.rename

    def refuse(path: Path, target: Path) -> None:
        if target.name == "adapter":
            raise Killed
        rename(path, target)

    monkeypatch.setattr(disk, "rename", refuse)
    with pytest.raises(Killed):
        tiny.train(tmp_path / "run")
    monkeypatch.undo()
    run = RunFolder(tmp_path / "run")
    assert not run.adapter.exists()
    (staging,) = run.path.glob(".staging*")
    (staging / "half of a file").write_bytes(b"")
    resume_run(run.path)
    assert course(run) == whole
    assert sorted(path.name for path in run.adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert not list(run.path.glob(".*"))


# ── damaged ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "optimizer.safetensors", "manifest.json"])
def test_a_damaged_checkpoint_is_passed_over_and_said_so(file: str, tiny: Tiny, whole: dict[str, Any], tmp_path: Path):
    run = killed(tiny, tmp_path / "run", "step", 4)
    newest = run.checkpoints / "step-000004" / file
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    listener = Listener()
    resume_run(run.path, listener)
    told = [event["text"] for event in listener.heard if event["kind"] == "note" and "skipped" in event["text"]]
    assert len(told) == 1
    assert "step-000004 is damaged" in told[0]
    assert [event["step"] for event in events(run, "start")] == [0, 2]
    assert course(run) == whole


def test_with_every_checkpoint_damaged_it_starts_over(tiny: Tiny, whole: dict[str, Any], tmp_path: Path):
    run = killed(tiny, tmp_path / "run", "step", 4)
    for folder in run.checkpoints.iterdir():
        (folder / "optimizer.safetensors").write_bytes(b"")
    # Killed once more: what it saves anew is not pushed out by the damaged ones.
    with pytest.raises(Killed):
        resume_run(run.path, Listener("save", 0, kill))
    checkpoint, skipped = newest_checkpoint(run.checkpoints)
    assert checkpoint is not None
    assert (checkpoint.step, skipped) == (2, [])
    resume_run(run.path)
    assert course(run) == whole


# ── refused ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_has_ended_cannot_be_resumed(finished: RunFolder):
    before = {path: path.read_bytes() for path in finished.path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="has ended"):
        resume_run(finished.path)
    assert {path: path.read_bytes() for path in finished.path.rglob("*") if path.is_file()} == before


def test_what_is_no_run_cannot_be_resumed(tmp_path: Path):
    with pytest.raises(InputError, match="is not a run"):
        resume_run(tmp_path)


def change_data(tiny: Tiny) -> None:
    changed = rows()
    changed[7]["answer"] += "!"
    write_rows(tiny.data, changed)


def change_weights(tiny: Tiny) -> None:
    path = tiny.model / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][5] += 1e-3
    save_file(tensors, path, metadata={"format": "pt"})


def change_config(tiny: Tiny) -> None:
    path = tiny.model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rms_norm_eps": 1e-4}))


def change_template(tiny: Tiny) -> None:
    path = tiny.model / "chat_template.jinja"
    path.write_text(path.read_text().replace("'\\n'", "'\\n\\n'"))


def change_template_without_effect(tiny: Tiny) -> None:
    path = tiny.model / "chat_template.jinja"
    path.write_text("{#- nothing -#}" + path.read_text())


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (change_data, "data"),
        (change_weights, "model"),
        (change_config, "model"),
        (change_template, "template"),
        (change_template_without_effect, "template"),
    ],
)
def test_what_it_learns_from_may_not_change(change: Callable[[Tiny], None], part: str, own_tiny: Tiny, tmp_path: Path):
    run = killed(own_tiny, tmp_path / "run", "step", 4)
    log = run.events.read_bytes()
    change(own_tiny)
    with pytest.raises(InputError) as caught:
        resume_run(run.path)
    assert caught.value.what == f"the {part} of run {run.path} has changed since it began"
    assert f"put the {part} " in caught.value.do
    assert run.events.read_bytes() == log, "a refusal leaves the run as it was"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (change_data, ["data"]),
        (change_template_without_effect, ["template"]),
        (change_template, ["template", "data"]),
    ],
)
def test_a_change_that_is_accepted_by_name(
    change: Callable[[Tiny], None], parts: list[str], own_tiny: Tiny, tmp_path: Path
):
    run = killed(own_tiny, tmp_path / "run", "step", 4)
    change(own_tiny)
    with pytest.raises(InputError) as caught:
        resume_run(run.path, accept=parts[1:])
    flags = " ".join(f"--accept {part}" for part in parts)
    assert caught.value.do.endswith(f"strop resume {run.path} {flags}")
    assert parts[0] in caught.value.found
    summary = resume_run(run.path, accept=parts)
    assert (summary["state"], summary["steps"]) == ("finished", 6)
    assert [event["difference"].partition(":")[0] for event in events(run, "accept")] == parts
    kept = newest_checkpoint(run.checkpoints)[0]
    assert kept is not None
    manifest = run.read_json("manifest.json")
    assert {part: manifest[part].items() >= kept.identity[part].items() for part in parts} == dict.fromkeys(parts, True)


@pytest.mark.parametrize(
    ("old", "new", "part", "may"),
    [("lr: 0.01", "lr: 0.02", "recipe", True), ("rank: 4", "rank: 8", "recipe", False)],
)
def test_an_edited_recipe_is_refused_field_by_field(
    old: str, new: str, part: str, may: bool, tiny: Tiny, whole: dict[str, Any], tmp_path: Path
):
    run = killed(tiny, tmp_path / "run", "step", 4)
    text = run.recipe.read_text(encoding="utf-8")
    assert old in text
    run.recipe.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        resume_run(run.path)
    assert caught.value.what == f"the {part} of run {run.path} has changed since it began"
    (before, after), name = (side.partition(": ")[2] for side in (old, new)), old.partition(":")[0]
    assert f"{name} {before} → {after}" in caught.value.found
    if may:
        resume_run(run.path, accept=["recipe"])
        assert values(run, "step", "lr")[4] == pytest.approx(2 * whole["steps"][4][5])
    else:
        assert "do not fit another adapter" in caught.value.do
        with pytest.raises(InputError, match="the adapter of run"):
            resume_run(run.path, accept=["recipe"])


def test_only_parts_are_accepted(tmp_path: Path):
    with pytest.raises(UsageError) as caught:
        resume_run(tmp_path, accept=["adapter", "data"])
    assert caught.value.found == "adapter"


# ── a disk that fails ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_save_that_fails_is_told_and_training_goes_on(
    tiny: Tiny, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    free = disk.free_bytes
    monkeypatch.setattr(disk, "free_bytes", lambda path: 1000 if len(saves(listener)) == 1 else free(path))
    listener = Listener()
    run = tiny.train(tmp_path / "run", listener=listener)
    (failed,) = events(run, "save_failed")
    assert failed["step"] == 4
    assert (failed["free_bytes"], failed["path"]) == (1000, str(run.checkpoints / "step-000004"))
    assert failed["need_bytes"] > 50_000
    assert "No space left on device; 1,000 bytes free" in failed["reason"]
    assert course(run) == {**whole, "saves": [2, 6]}


def saves(listener: Listener) -> list[dict[str, Any]]:
    return [event for event in listener.heard if event["kind"] in ("save", "save_failed")]


def test_a_stop_that_cannot_be_saved_says_so(
    tiny: Tiny, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def stop() -> None:
        monkeypatch.setattr(disk, "free_bytes", lambda _: 1000)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(SaveError, match="the checkpoint of step 3 could not be saved") as caught:
        tiny.train(tmp_path / "run", listener=Listener("step", 2, stop))
    assert (caught.value.exit_code, caught.value.free_bytes) == (5, 1000)
    monkeypatch.undo()
    resume_run(tmp_path / "run")
    assert course(RunFolder(tmp_path / "run")) == whole


# ── again and again ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_five_resumes_within_an_epoch_and_at_its_end(tiny: Tiny, tmp_path: Path):
    """36 samples, 6 a step: an epoch is 6 steps; stopped after each of them and in the next epoch."""
    changes = {"train.samples_per_step": 6, "train.steps": 9, "train.save_every": 1, "watch.every": 3}
    whole = course(tiny.train(tmp_path / "whole", changes))
    run = RunFolder(tmp_path / "run")
    with pytest.raises(Killed):
        tiny.train(run.path, changes, listener=Listener("save", 0, kill))
    for _ in range(6):  # the first save that a resumed run tells is the one it goes on from
        with pytest.raises(Killed):
            resume_run(run.path, Listener("save", 1, kill))
    assert values(run, "step", "step")[-1] == 7
    resume_run(run.path)
    assert course(run) == whole


@pytest.mark.parametrize(("kind", "number"), [("dry_run", 0), ("save", 2)], ids=["step 0", "last step"])
def test_resumed_many_times_at_either_end(kind: str, number: int, tiny: Tiny, whole: dict[str, Any], tmp_path: Path):
    run = killed(tiny, tmp_path / "run", kind, number)
    for _ in range(5):
        with pytest.raises(Killed):
            resume_run(run.path, Listener("dry_run", 0, kill))
    resume_run(run.path)
    assert course(run) == whole


# ── asked to stop ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def handlers() -> Iterator[dict[int, Any]]:
    """Handlers of a process in the foreground, for the tests' own may have been started with SIGINT ignored."""

    def unheard(number: int, _frame: object) -> None:
        raise AssertionError(f"nobody took signal {number}")

    known = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: unheard}
    before = {number: signal.signal(number, handler) for number, handler in known.items()}
    yield known
    for number, handler in before.items():
        signal.signal(number, handler)


@signals
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step_and_saves(
    number: signal.Signals, tiny: Tiny, whole: dict[str, Any], tmp_path: Path, handlers: dict[int, Any]
):
    with pytest.raises(Stopped) as caught:
        tiny.train(tmp_path / "run", listener=Listener("step", 2, lambda: signal.raise_signal(number)))
    assert {known: signal.getsignal(known) for known in handlers} == handlers
    run = RunFolder(tmp_path / "run")
    assert caught.value.what == f"stopped by {number.name} after step 3 of 6, and saved"
    assert caught.value.do == f"strop resume {run.path}"
    assert values(run, "step", "step") == [1, 2, 3]
    assert values(run, "save", "step") == [2, 3]
    assert [event["reason"] for event in events(run, "stop")] == [number.name]
    assert summarize(run)["state"] == "stopped"
    resume_run(run.path)
    # The checkpoint of the stop is one more than the undisturbed run has.
    assert course(run) == {**whole, "saves": [2, 3, 4, 6]}


@signals
@pytest.mark.usefixtures("handlers")
def test_a_signal_in_the_last_step_lets_the_run_end(tiny: Tiny, whole: dict[str, Any], tmp_path: Path):
    run = tiny.train(tmp_path / "run", listener=Listener("step", 5, lambda: signal.raise_signal(signal.SIGINT)))
    assert course(run) == whole


@signals
@pytest.mark.usefixtures("handlers")
def test_ctrl_c_before_the_first_step_leaves_a_run_that_can_be_resumed(
    tiny: Tiny, whole: dict[str, Any], tmp_path: Path
):
    with pytest.raises(Stopped, match="stopped before another step was done"):
        tiny.train(tmp_path / "run", listener=Listener("watch", 0, lambda: signal.raise_signal(signal.SIGINT)))
    resume_run(tmp_path / "run")
    assert course(RunFolder(tmp_path / "run")) == whole


# Sends itself signals inside the gradients of a step: real ones, to a real process, at a known place. What each process
# is to be struck with comes from standard input; all are forks of one that has imported everything.
STRUCK = """
import json, os, signal, sys
from strop.cli.main import main
from strop.training import loop, session

def strike(strikes, line, said):
    def struck(*arguments, **named):
        if named["step"] == 3:
            for name in strikes.split():
                os.kill(os.getpid(), getattr(signal, name))
        return accumulate_gradients(*arguments, **named)

    accumulate_gradients, loop.accumulate_gradients = loop.accumulate_gradients, struck
    for stream, place in ((1, said + ".out"), (2, said + ".err")):
        os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT), stream)
    code = main(line)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

for strikes, line, said in json.load(sys.stdin):
    child = os.fork()
    if child == 0:
        strike(strikes, line, said)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
STRIKES = {"SIGINT": (5, [2, 4]), "SIGINT SIGINT": (130, [2]), "SIGKILL": (-9, [2])}


@pytest.fixture(scope="module")
def struck(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[RunFolder, int, str, str]]:
    """The run of each process, its code, and what it said."""
    root = tmp_path_factory.mktemp("struck")
    runs = {strikes: RunFolder(root / f"run-{number}") for number, strikes in enumerate(STRIKES)}
    orders = [(strikes, tiny.flags(run.path), str(run.path)) for strikes, run in runs.items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-c", STRUCK]
    done = subprocess.run(line, input=json.dumps(orders), capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    codes = map(int, done.stdout.split())
    return {
        strikes: (run, code, *(Path(f"{run.path}.{stream}").read_text() for stream in ("out", "err")))
        for (strikes, run), code in zip(runs.items(), codes, strict=True)
    }


@signals
@pytest.mark.parametrize("strikes", STRIKES)
def test_a_struck_process_is_resumed_by_another_to_the_same_bytes(
    strikes: str, struck: dict[str, tuple[RunFolder, int, str, str]], whole: dict[str, Any]
):
    code, saved = STRIKES[strikes]
    run, left_with, out, err = struck[strikes]
    assert left_with == code, err
    assert out == ""
    assert "Traceback" not in err
    assert values(run, "save", "step") == saved
    if code == 5:
        assert f"stopped: stopped by SIGINT after step 4 of 6, and saved\n        do: strop resume {run.path}" in err
    if code != 5:
        resume_run(run.path)
    else:
        line = [sys.executable, "-m", "strop", "resume", str(run.path), "--json"]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["steps"] == 6
    assert course(run) == whole


@signals
def test_a_signal_from_outside_stops_the_command_line(tiny: Tiny, tmp_path: Path):
    run = RunFolder(tmp_path / "run")
    changes = {"train.steps": 20_000, "watch.every": 20_000, "train.save_every": 20_000}
    line = [sys.executable, "-m", "strop", *tiny.flags(run.path, changes)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not events(run, "step"):
            time.sleep(0.02)
        process.terminate()
        out, err = process.communicate()
    assert process.returncode == 5, err
    assert out == ""
    assert "Traceback" not in err
    assert "stopped by SIGTERM" in err
    done = values(run, "step", "step")
    assert done == list(range(1, len(done) + 1))
    assert (values(run, "save", "step"), summarize(run)["state"]) == ([len(done)], "stopped")
    assert newest_checkpoint(run.checkpoints)[0] is not None
