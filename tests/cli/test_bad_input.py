"""Whatever a user gets wrong ends in four parts and an exit code, without a traceback and without a half-made run.

Most lines run in this process, through `main`; a few in one of their own. At the end, the same for what goes right.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import strop
from strop.run.folder import RunFolder
from tiny_run import RECIPE, Tiny, events, rows, write_rows

Line = Callable[..., tuple[int, str, str]]
PARTS = ["error", "what", "expected", "found", "do", "exit"]

pytestmark = pytest.mark.usefixtures("restore_threads")


def fault(run: Line, *tokens: str) -> dict[str, object]:
    """A line that must fail, run twice: told in words, then as one JSON object; gives the object."""
    code, out, err = run(*tokens)
    assert out == ""
    assert "Traceback" not in err
    told = err[err.index("error: ") :]
    code_as_json, out, err = run(*tokens, "--json")
    assert "Traceback" not in err
    assert "error: " not in err
    assert out.count("\n") == 1
    parts: dict[str, object] = json.loads(out)
    assert list(parts) == PARTS
    assert parts["exit"] == code == code_as_json
    assert parts["what"]
    assert parts["do"]
    for part in ("what", "expected", "found", "do"):
        for text in str(parts[part]).splitlines():
            assert text in told
    return parts


# ── data ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def missing_data(tiny: Tiny) -> None:
    tiny.data.unlink()


def empty_data(tiny: Tiny) -> None:
    tiny.data.write_bytes(b"")


def broken_row(tiny: Tiny) -> None:
    lines = tiny.data.read_text().splitlines()
    lines[6] = lines[6][:-4]
    tiny.data.write_text("\n".join(lines))


def list_row(tiny: Tiny) -> None:
    tiny.data.write_text(tiny.data.read_text() + "[1, 2]\n")


def latin_row(tiny: Tiny) -> None:
    tiny.data.write_bytes(tiny.data.read_bytes() + '{"question": "Größe?", "answer": "5"}\n'.encode("latin-1"))


def other_columns(tiny: Tiny) -> None:
    write_rows(tiny.data, [{"questoin": row["question"], "answer": row["answer"]} for row in rows()])


def no_answers(tiny: Tiny) -> None:
    write_rows(tiny.data, [{**row, "answer": " "} for row in rows()])


# Damage to the data, flags, and what is said: (failed, found, do); {data} is the file.
DATA = {
    "missing": (missing_data, [], ("{data} does not exist", "no such file", "check the path")),
    "empty": (empty_data, [], ("{data} holds no rows", "", "rows in it")),
    "broken JSON": (broken_row, [], ("{data}:7, column", "Unterminated string", "repair line 7")),
    "no object": (list_row, [], ("{data}:41 is not a row", "a list", "named columns")),
    "not UTF-8": (latin_row, [], ("{data}:41 is not UTF-8", "0xf6", "UTF-8")),
    "unknown columns": (
        other_columns,
        [],
        ("{data}:1: the columns", "questoin, answer", "'questoin' meant to be 'que"),
    ),
    "unmapped column": (
        other_columns,
        ["--data.map", "question:answer"],
        ("{data}:1: there is no column 'question'", "questoin", "did you mean 'questoin'?"),
    ),
    "no answers": (no_answers, [], ("{data}: nothing is left to learn", "40 × the answer is empty", "fill it")),
    "all too long": (None, ["--data.max_tokens", "8"], ("{data}: nothing is left", "longer than 8", "raise data.max")),
    "all held out": (None, ["--data.eval", "40"], ("holding out 40 samples", "40 samples", "lower data.eval")),
    "no held-out file": (None, ["--data.eval", "none.jsonl"], ("none.jsonl does not exist", "no such", "path")),
}


@pytest.mark.parametrize(("damage", "flags", "said"), DATA.values(), ids=DATA)
def test_wrong_data(
    damage: Callable[[Tiny], None] | None, flags: list[str], said: tuple[str, ...], own_tiny: Tiny, run: Line
):
    if damage:
        damage(own_tiny)
    parts = fault(run, "train", str(own_tiny.model), str(own_tiny.data), "--run", "new/run", *flags)
    assert parts["exit"] == 3
    for part, text in zip(("what", "found", "do"), said, strict=True):
        assert text.format(data=own_tiny.data) in str(parts[part])
    assert not Path("new").exists()
    assert not Path("runs").exists()


# ── model ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def no_model(tiny: Tiny) -> None:
    tiny.model.rename(tiny.model.with_name("elsewhere"))


def no_file(name: str) -> Callable[[Tiny], None]:
    return lambda tiny: (tiny.model / name).unlink()


def truncated(tiny: Tiny) -> None:
    path = tiny.model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-64])


def pickled(tiny: Tiny) -> None:
    (tiny.model / "model.safetensors").rename(tiny.model / "pytorch_model.bin")


def other_family(tiny: Tiny) -> None:
    path = tiny.model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "mambo"}))


def other_shape(tiny: Tiny) -> None:
    path = tiny.model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 128}))


def no_template(tiny: Tiny) -> None:
    """Nor control tokens that a stock template would need."""
    (tiny.model / "chat_template.jinja").unlink()
    path = tiny.model / "tokenizer.json"
    path.write_text(path.read_text().replace("<|im_start|>", "<|begin|>"))


def broken_template(tiny: Tiny) -> None:
    (tiny.model / "chat_template.jinja").write_text("{% for message in messages %}")


# Damage to the model and what is said: (failed, found, do); {model} is the folder.
MODEL = {
    "missing": (no_model, ("there is no model {model}", "no such file or folder", "check the path")),
    "no config": (no_file("config.json"), ("{model} has no config.json", "tokenizer.json", "folder")),
    "truncated": (truncated, ("model.safetensors cannot be read", "bytes)", "fetch the file again")),
    "no weights": (no_file("model.safetensors"), ("has no model.safetensors", "no weights", "fetch")),
    "pickled": (pickled, ("has no model.safetensors", "pytorch_model.bin", "pickled weights can run code")),
    "no tokenizer": (no_file("tokenizer.json"), ("has no tokenizer.json", "no tokenizer", "complete model folder")),
    "no template": (no_template, ("has no chat template", "base model", "chat version")),
    "broken template": (broken_template, ("chat_template.jinja, line 1: not a Jinja", "", "repair the template")),
    "unknown family": (
        other_family,
        ("no table for the family 'mambo'", 'model_type: "mambo"', "docs/add-a-family.md"),
    ),
    "other weights": (other_shape, ("of the wrong shape", "shape [96, 64]", "of one model")),
}


@pytest.mark.parametrize(("damage", "said"), MODEL.values(), ids=MODEL)
def test_wrong_model(damage: Callable[[Tiny], None], said: tuple[str, ...], own_tiny: Tiny, run: Line):
    damage(own_tiny)
    parts = fault(run, "train", str(own_tiny.model), str(own_tiny.data), "--run", "new/run")
    assert parts["exit"] == 3
    for part, text in zip(("what", "found", "do"), said, strict=True):
        assert text.format(model=own_tiny.model) in str(parts[part])
    assert not Path("new").exists()


# ── recipe, plan and run folder ──────────────────────────────────────────────────────────────────────────────────────

USAGE = {
    "unknown field": (["--train.lrr", "1"], ("train.lrr", "", "did you mean --train.lr ?")),
    "unknown flag": (["--batch-size", "4"], ("no flag --batch-size", "--batch-size", "--train.samples_per_step")),
    "value out of range": (["--train.lr", "-1"], ("train.lr", "-1", "")),
    "unknown target": (
        ["--adapter.targets", "q_proj,w_pack"],
        ("adapter.targets names no projection", "w_pack", "--adapter.targets q_proj"),
    ),
    "broken map": (["--data.map", "question"], ("data.map is 'question'", "", "--data.map problem:solution")),
    "held-out count": (["--data.eval", "1.5"], ("data.eval is 1.5", "", "whole number")),
    "unknown lever": (["--plan.packs", "1"], ("--plan.packs is no lever", "packs", "--plan.pack_tokens 4096")),
    "lever's value": (["--plan.head", "some"], ("--plan.head cannot be", "some", "dense or stored")),
    "lever's number": (["--plan.threads", "0"], ("--plan.threads cannot be", "0", "a whole number, 1 to 1024")),
    "unknown device": (["--plan.device", "npu"], ("--plan.device npu", "npu", "leave --plan.device out")),
}


@pytest.mark.parametrize(("flags", "said"), USAGE.values(), ids=USAGE)
def test_wrong_recipe_or_plan(flags: list[str], said: tuple[str, ...], tiny: Tiny, run: Line):
    parts = fault(run, "train", str(tiny.model), str(tiny.data), "--run", "new/run", *flags)
    assert parts["exit"] == 2
    for part, text in zip(("what", "found", "do"), said, strict=True):
        assert text in str(parts[part])
    assert not Path("new").exists()


def test_a_run_folder_in_the_way_is_said_before_any_work(tiny: Tiny, run: Line, finished: RunFolder):
    before = {path: path.stat().st_mtime_ns for path in finished.path.rglob("*")}
    parts = fault(run, "train", "no-such-model", "no-such-data", "--run", str(finished.path))
    assert parts["exit"] == 2
    assert parts["what"] == f"the run folder {finished.path} exists"
    assert f"strop resume {finished.path}" in str(parts["do"])
    assert {path: path.stat().st_mtime_ns for path in finished.path.rglob("*")} == before


@pytest.mark.parametrize("verb", ["resume", "eval", "compare"])
def test_what_is_no_run_is_refused(verb: str, run: Line):
    parts = fault(run, verb, "no-run")
    assert parts["exit"] == 3
    assert parts["what"] == "no-run is not a run"
    assert not Path("no-run").exists()


def test_a_finished_run_is_not_resumed(finished: RunFolder, run: Line):
    parts = fault(run, "resume", str(finished.path))
    assert (parts["exit"], parts["what"]) == (2, f"the run {finished.path} has ended")


@pytest.mark.parametrize("as_json", [False, True])
def test_a_process_of_its_own_leaves_with_the_same_code_and_words(tiny: Tiny, tmp_path: Path, as_json: bool):
    command = [sys.executable, "-m", "strop", "train", str(tiny.model), "none.jsonl", *(["--json"] if as_json else [])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ}, check=False)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    if as_json:
        assert list(json.loads(done.stdout)) == PARTS
    else:
        assert done.stdout == ""
        assert "error: none.jsonl does not exist\n  expected: a .json, .jsonl" in done.stderr
    assert list(tmp_path.iterdir()) == []


# ── what goes right ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_train_prints_its_result_as_one_object(tiny: Tiny, tmp_path: Path):
    model, data = str(tiny.model), str(tiny.data)
    flags = [f"--{name}={value}" for name, value in {**RECIPE, "train.steps": 3, "plan.threads": 1}.items()]
    command = [sys.executable, "-m", "strop", "train", model, data, "--json", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    result = json.loads(done.stdout)
    assert {"run", "adapter", "steps", "learned_tokens", "tokens_per_s", "peak_bytes", "held_out_loss"} <= set(result)
    assert (result["steps"], result["state"]) == (3, "finished")
    assert result["learned_tokens"] > 100
    assert result["tokens_per_s"] > 0
    assert result["peak_bytes"] > 10_000_000
    assert result["held_out_loss"]["after"] < result["held_out_loss"]["before"]
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.endswith("-model-data")
    assert tmp_path / result["run"] == run
    assert (tmp_path / result["adapter"] / "adapter_model.safetensors").is_file()
    assert "flag --train.lr" in done.stderr, "the resolved recipe is shown"


def test_eval_prints_its_measures_as_one_object(finished: RunFolder, run: Line):
    code, out, _ = run("eval", str(finished.path), "--answers", "3", "--json")
    assert code == 0
    assert out.count("\n") == 1
    measures = json.loads(out)
    assert {"loss", "learned_tokens", "right", "asked"} <= set(measures)
    assert measures["loss"] == pytest.approx(events(finished, "watch")[-1]["held_out_loss"], rel=1e-5)
    assert measures["asked"] == 3


def test_compare_and_chat_answer_on_standard_output(finished: RunFolder, run: Line):
    code, out, _ = run("compare", str(finished.path), "--ask", "What is 3 + 8?", "--json")
    assert code == 0
    (answer,) = json.loads(out)["answers"]
    assert set(answer) == {"question", "reference", "base", "tuned"}
    code, out, _ = run("chat", str(finished.path), "--ask", "What is 3 + 8?", "--max-tokens", "5")
    from strop.cli.console import printable

    assert (code, out) == (0, printable(answer["tuned"]) + "\n")


def test_runs_lists_the_run(finished: RunFolder, run: Line):
    code, out, _ = run("runs", str(finished.path.parent), "--json")
    assert code == 0
    (listed,) = json.loads(out)["runs"]
    assert (listed["run"], listed["state"], listed["steps"]) == (str(finished.path), "finished", 6)


def test_the_same_from_python(tiny: Tiny, tmp_path: Path):
    data = {name.partition(".")[2]: value for name, value in RECIPE.items() if name.startswith("data.")}
    recipe = strop.Recipe(
        model=str(tiny.model),
        data={"train": str(tiny.data), **data},
        adapter={"rank": 2},
        train={"steps": 3, "samples_per_step": 5, "lr": 0.01},
        watch={"answer_tokens": 4},
    )
    heard = []

    class Listener:
        def on_event(self, event: dict[str, object]) -> None:
            heard.append(event["kind"])

    run = strop.train(recipe, run=tmp_path / "run", plan={"threads": "1"}, listener=Listener())
    assert isinstance(run, strop.Run)
    assert (run.folder, run.adapter, run.steps) == (tmp_path / "run", tmp_path / "run" / "adapter", 3)
    assert run.loss_before is not None
    assert run.loss_after is not None
    assert run.loss_after < run.loss_before
    assert heard.count("step") == 3
    model = strop.load(run.folder)
    assert isinstance(model, strop.TunedModel)
    first, second = model.ask(["What is 3 + 8?", "Why?"], max_tokens=4)
    assert first.tokens <= 4
    assert second == model.ask(["Why?"], max_tokens=4)[0]
    with pytest.raises(strop.StropError, match="exists"):
        strop.train(recipe, run=tmp_path / "run")


def test_train_is_a_call_whatever_was_imported_before(tmp_path: Path):
    """The room is called training, so that no import binds the name `train` to it."""
    script = """
import strop
for before in ("strop.Run", "__import__('strop.training.session')", "strop.training", "strop.load"):
    eval(before)
    try:
        strop.train(strop.Recipe(model="none", data={"train": "none"}))
    except strop.StropError as error:
        print(error.what)
from strop import train
print(callable(train), train is strop.train, set(dir(strop)) >= set(strop.__all__))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout == "there is no model none\n" * 4 + "True True True\n", done.stderr


def test_a_plan_from_python_is_checked_as_well(tiny: Tiny, tmp_path: Path):
    recipe = strop.Recipe(model=str(tiny.model), data={"train": str(tiny.data)})
    with pytest.raises(strop.StropError, match="is no lever"):
        strop.train(recipe, run=tmp_path / "run", plan={"batch": "1"})
    assert not (tmp_path / "run").exists()
