"""The command line's frame: exit codes, errors in four parts or as JSON, nearest names, help pages, light imports."""

import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cyclopts import CycloptsError

from strop.cli.app import VERBS, build_app, examples
from strop.cli.faults import usage_error
from strop.cli.overrides import sort_arguments, split_overrides, split_plan
from strop.errors import BudgetError, DataError, Stopped, StropError, UsageError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Put a training room in place that records its call, and raises ``trained["raise"]`` if that is set."""
    call: dict[str, Any] = {}

    def train_run(resolved: Any, **rest: Any) -> dict[str, Any]:
        call.update(resolved=resolved, **rest)
        if "raise" in call:
            raise call["raise"]
        return {"run": "runs/x", "loss": float("nan")}

    room = types.ModuleType("strop.training.session")
    room.train_run = train_run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "strop.training.session", room)
    return call


# ── failures: exit codes and their four parts ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StropError("w", expected="e", found="f", do="d"), 1),
        (UsageError("w", expected="e", found="f", do="d"), 2),
        (DataError("w", expected="e", found="f", do="d"), 3),
        (BudgetError("w", expected="e", found="f", do="d"), 4),
        (Stopped("w", expected="e", found="f", do="d"), 5),
    ],
)
def test_every_error_has_its_exit_code_and_four_parts(run: Run, trained: dict[str, Any], error: StropError, code: int):
    trained["raise"] = error
    assert run("train", "m", "d")[0] == code
    returned, out, err = run("train", "m", "d")
    assert (returned, out) == (code, "")
    assert ("stopped: w" if code == 5 else "error: w") in err
    assert "expected: e\n     found: f\n        do: d\n" in err
    assert "Traceback" not in err
    returned, out, err = run("train", "m", "d", "--json")
    assert returned == code
    assert json.loads(out) == error.as_dict()
    assert out.count("\n") == 1
    assert "error: w" not in err


def test_a_fault_of_ours_is_one_line_and_says_so(run: Run, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    trained["raise"] = ValueError("first\nsecond [red]line[/red]")
    code, _, err = run("train", "m", "d")
    assert code == 1
    assert "error: ValueError: first second [red]line[/red]\n" in err
    assert "fault in Strop; run again with STROP_TRACEBACK=1" in err
    assert "Traceback" not in err
    assert json.loads(run("train", "m", "d", "--json")[1])["exit"] == 1
    monkeypatch.setenv("STROP_TRACEBACK", "1")
    code, _, err = run("train", "m", "d")
    assert code == 1
    assert "Traceback" in err
    assert 'raise call["raise"]' in err


@pytest.mark.parametrize("verb", ["chat", "resume", "report", "runs", "eval"])
def test_a_path_that_no_file_can_have_is_no_fault_of_ours(run: Run, verb: str):
    code, out, err = run(verb, "x" * 300)
    assert (code, out) == (2, "")
    assert f"the path {'x' * 20}" in err
    assert "found: File name too long" in err
    assert "fault in Strop" not in err


@pytest.mark.parametrize("name", ["y" * 300, "/".join(["z" * 200] * 30), "~nobody-of-this-name/x"])
def test_data_models_and_recipes_of_such_a_name_are_not_there(run: Run, name: str, tmp_path: Path):
    assert "error: there is no model" in run("plan", name, "d")[2]
    assert "no such file" in run("plan", f"{name}.yaml")[2]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {name}\ndata:\n  train: [{name}, {name}*2]\n")
    code, _, err = run("plan", str(recipe))
    assert code == 3
    assert "there is no model" in err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read anywhere")
def test_a_path_that_may_not_be_reached_is_no_fault_of_ours(run: Run, tmp_path: Path):
    (tmp_path / "locked").mkdir(mode=0)
    code, _, err = run("plan", str(tmp_path / "locked" / "model"), "d")
    assert code == 2
    assert "found: Permission denied" in err


def test_a_fault_of_the_system_that_is_not_of_a_path_is_ours(run: Run, trained: dict[str, Any]):
    for error in (OSError(5, "Input/output error"), PermissionError(13, "Permission denied")):
        trained["raise"] = error
        assert run("train", "m", "d")[0] == 1


def test_an_interrupt_where_nothing_is_saved_is_130(run: Run, trained: dict[str, Any]):
    trained["raise"] = KeyboardInterrupt()
    code, _, err = run("train", "m", "d")
    assert code == 130
    assert "interrupted" in err
    assert json.loads(run("train", "m", "d", "--json")[1])["exit"] == 130


def test_a_reader_that_went_away_is_no_error(tmp_path: Path):
    script = "import sys\nfrom strop.cli.main import main\nsys.stdin.readline()\nsys.exit(main(['--help']))"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdout.close()
        process.stdin.write("go\n")
        process.stdin.close()
        assert process.stderr.read() == ""
        assert process.wait() == 141


def test_control_characters_in_an_error_are_seen_not_obeyed(run: Run, trained: dict[str, Any]):
    trained["raise"] = DataError("bad \x1b[2J name", do="fix\nit")
    _, _, err = run("train", "m", "d")
    assert "bad \\x1b[2J name" in err
    assert "\x1b" not in err
    assert "do: fix\n            it\n" in err


# ── wrong command lines ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("line", "what", "do"),
    [
        (["trian"], "strop has no command trian", "did you mean strop train ?"),
        (["qqqq"], "strop has no command qqqq", "strop --help"),
        (["--versio"], "strop has no flag --versio", "--version"),
        (["train"], "strop train: MODEL is missing", "for example: strop train"),
        (["train", "m"], "no data is given", "strop train MODEL DATA"),
        (["train", "m", "d", "e"], "too many arguments", "strop train --help"),
        (["train", "m", "d", "--rum", "x"], "strop train has no flag --rum", "did you mean --run ?"),
        (["train", "m", "d", "--lr", "1"], "strop train has no flag --lr", "did you mean --train.lr ?"),
        (["train", "m", "d", "--lora-r=8"], "no flag --lora-r", "did you mean --adapter.rank ?"),
        (
            ["train", "m", "d", "--gradient-checkpointing"],
            "no flag --gradient-checkpointing",
            "--plan.recompute_layers 30",
        ),
        (["plan", "m", "d", "--lr", "1"], "strop plan has no flag --lr", "did you mean --train.lr ?"),
        (["train", "m", "d", "--memroy", "8GB"], "strop train has no flag --memroy", "did you mean --memory ?"),
        (["train", "m", "d", "--memory", "8"], "--memory is not a size", "did you mean --memory 8GB ?"),
        (["plan", "m", "d", "--memory", "lots"], "--memory is not a size", "write --memory 8GB"),
        (["plan", "m", "d", "--html", "no/where.html"], "there is no folder no", "--html plan.html"),
        (["train", "m", "d", "--train.lrr", "1"], "flag --train.lrr", "did you mean --train.lr ?"),
        (["train", "m", "d", "--train.lr"], "flag --train.lr has no value", "--train.lr=VALUE"),
        (["train", "m", "d", "--train.lr", "--run", "x"], "flag --train.lr has no value", "--train.lr=VALUE"),
        (["train", "m", "d", "--train.lr", "fast"], "flag --train.lr: train.lr", "0.0002"),
        (["train", "m", "d", "--model", "n"], "model is given twice", "leave one of the two out"),
        (["train", "a.yaml", "b.yaml"], "two recipes are given", "strop train a.yaml"),
        (["train", "nowhere.yaml"], "the recipe nowhere.yaml cannot be read", "check the path"),
        (["resume", "r", "--train.lr", "1"], "strop resume takes no recipe", "strop train"),
        (["chat", "r", "--max-tokens", "many"], "strop chat: --max-tokens does not take this value", "chat --help"),
        (["chat", "r", "--max-tokens", "0"], "--max-tokens does not take this value", "1 or more"),
        (["chat", "r", "--temperature=nan"], "--temperature does not take this value", "0 or more"),
        (["chat", "r", "--ask"], "flag --ask has no value", "for example: strop chat"),
        (["chat", "r", "--aks", "x"], "strop chat has no flag --aks", "did you mean --ask ?"),
        (["eval"], "strop eval: RUN is missing", "for example: strop eval"),
        (["eval", "r", "--data", "d", "--answers", "-1"], "--answers does not take this value", "0 or more"),
        (["runs", "nowhere"], "there is no folder nowhere", "strop train MODEL DATA"),
    ],
)
def test_a_wrong_command_line_is_told_with_its_cure(run: Run, line: list[str], what: str, do: str):
    code, out, err = run(*line)
    assert (code, out) == (2, "")
    first, *rest = err[err.index("error: ") :].splitlines()
    assert what in first
    cures = [part for part in rest if part.startswith("        do: ")]
    assert len(cures) == 1
    assert do in cures[0]
    assert "Traceback" not in err
    assert "overrides" not in err


def test_a_wrong_command_line_is_json_when_asked(run: Run):
    for line in (["trian", "--json"], ["train", "m", "d", "--json", "--lr", "1"], ["train", "--train.lr", "--json"]):
        code, out, err = run(*line)
        parts = json.loads(out)
        assert (code, parts["exit"], parts["error"], err) == (2, 2, "UsageError", "")
        assert parts["what"]
        assert parts["do"]


def test_json_after_the_end_of_the_flags_is_an_argument(run: Run):
    code, out, _ = run("resume", "r", "--", "--json")
    assert (code, out) == (2, "")


def test_every_parser_error_has_a_cure():
    for line in (["train", "m", "--json=maybe"], ["chat"], ["chat", "r", "-xyz"], ["doctor", "x", "y"], ["-q"]):
        with pytest.raises(CycloptsError) as caught:
            build_app(line).parse_args(line, print_error=False, exit_on_error=False)
        error = usage_error(caught.value)
        assert error.what
        assert error.expected
        assert error.do
        assert "cyclopts" not in str(error).lower()


# ── overrides ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_dotted_flags_are_taken_out():
    line = ["train", "m", "--train.lr", "-1", "d", "--watch.ask=a=b, c", "--json", "--data.system=", "--", "--a.b", "c"]
    rest, overrides = split_overrides(line)
    assert rest == ["train", "m", "d", "--json", "--", "--a.b", "c"]
    assert overrides == (("train.lr", "-1"), ("watch.ask", "a=b, c"), ("data.system", ""))


def test_a_value_may_have_any_text_but_that_of_a_flag():
    assert split_overrides(["--a.b", "x\ny"])[1] == (("a.b", "x\ny"),)
    assert split_overrides(["--a.b", ""])[1] == (("a.b", ""),)
    assert split_overrides(["--a.b=--x"])[1] == (("a.b", "--x"),)
    assert split_overrides(["./--a.b", "--memory=1.5GB", "-1.5"]) == (["./--a.b", "--memory=1.5GB", "-1.5"], ())
    for line in (["--a.b"], ["--a.b", "--c"], ["--a.b", "--c.d", "1"], ["--a.b", "-x"], ["--a.b", "--"]):
        with pytest.raises(UsageError, match=r"flag --a\.b has no value"):
            split_overrides(line)


def test_the_plans_overrides_go_their_own_way():
    recipe, plan = split_plan([("train.lr", "1"), ("plan.pack-length", "512"), ("plan.x", "1"), ("plan.x", "2")])
    assert recipe == [("train.lr", "1")]
    assert plan == {"pack_length": "512", "x": "2"}


# ── train ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_train_hands_over_what_was_said(run: Run, trained: dict[str, Any]):
    line = ["m", "d", "--run", "my run", "--train.lr", "1e-4", "--plan.pack", "512"]
    code, out, err = run("train", *line, "--watch.ask", "A, b?", "--watch.ask", "C?")
    assert code == 0
    assert "strop chat runs/x" in " ".join(out.replace("\\", "/").split())
    recipe = trained["resolved"].recipe
    assert (recipe.model, recipe.data.train, recipe.train.lr) == ("m", "d", 1e-4)
    assert recipe.watch.ask == ("A, b?", "C?")
    assert trained["folder"] == Path("my run")
    assert trained["plan_overrides"] == {"pack": "512"}
    assert trained["budget_bytes"] is None
    assert hasattr(trained["listener"], "on_event")
    assert "flag --train.lr" in err  # the resolved recipe is shown before anything starts


def test_train_needs_nothing_more_than_model_and_data(run: Run, trained: dict[str, Any]):
    assert run("train", "m", "d")[0] == 0
    assert trained["folder"] is None
    assert trained["plan_overrides"] == {}


def test_train_hands_over_the_budget_in_bytes(run: Run, trained: dict[str, Any]):
    assert run("train", "m", "d", "--memory", "6GiB")[0] == 0
    assert trained["budget_bytes"] == 6 * 2**30


def test_what_does_not_fit_is_told_with_its_cure_and_exit_code_4(run: Run, trained: dict[str, Any]):
    trained["raise"] = BudgetError(
        "no plan fits into 300 MB", expected="583 MB or more", found="--memory 300MB", do="give --memory 584MB"
    )
    code, out, err = run("train", "m", "d", "--memory", "300MB")
    assert (code, out) == (4, "")
    told = err[err.index("error: ") :]
    assert told == (
        "error: no plan fits into 300 MB\n"
        "  expected: 583 MB or more\n"
        "     found: --memory 300MB\n"
        "        do: give --memory 584MB\n"
    )
    code, out, _ = run("train", "m", "d", "--memory", "300MB", "--json")
    assert (code, json.loads(out)["exit"]) == (4, 4)


def test_the_result_is_one_json_object_and_the_rest_is_elsewhere(run: Run, trained: dict[str, Any]):
    code, out, err = run("train", "m", "d", "--json")
    assert code == 0
    assert json.loads(out) == {"run": "runs/x", "loss": None}  # JSON has no NaN
    assert out.count("\n") == 1
    assert "data.train" in err


def test_train_takes_a_recipe(run: Run, trained: dict[str, Any], tmp_path: Path):
    (tmp_path / "r.yml").write_text("model: m\ndata: {train: d}\ntrain: {lr: 1e-4}\n", encoding="utf-8")
    assert run("train", "r.yml", "--train.seed", "3")[0] == 0
    resolved = trained["resolved"]
    assert (resolved.recipe.model, resolved.recipe.train.lr, resolved.recipe.train.seed) == ("m", 1e-4, 3)
    assert resolved.sources["train.lr"] == "r.yml:3"
    assert run("train", "r.yml", "--model", "other")[0] == 0
    assert trained["resolved"].recipe.model == "other"
    assert trained["resolved"].sources["model"] == "flag --model"
    assert run("train", "r.yml", "other.jsonl")[0] == 0
    assert trained["resolved"].recipe.data.train == "other.jsonl"


def test_one_of_the_two_arguments_may_be_a_recipe():
    assert sort_arguments("m", "d") == (None, "m", "d")
    assert sort_arguments("m", None) == (None, "m", None)
    assert sort_arguments("R.YAML", None) == ("R.YAML", None, None)
    assert sort_arguments("r.yml", "d") == ("r.yml", None, "d")
    assert sort_arguments("m", "r.yaml") == ("r.yaml", "m", None)


# ── help ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", VERBS)
def test_every_commands_help_has_an_example_that_parses(run: Run, name: str):
    code, out, err = run(name, "--help")
    assert (code, err) == (0, "")
    assert f"Examples:\n  strop {name}" in out
    assert VERBS[name] in " ".join(out.split())
    function = build_app([name])[name].default_command
    assert function is not None
    for line in examples(function).splitlines()[1:]:
        import shlex

        rest, _ = split_overrides(shlex.split(line)[1:])
        build_app(rest).parse_args(rest, print_error=False, exit_on_error=False)


def test_the_root_lists_the_commands_in_order(run: Run):
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    places = [out.index(f"│ {name} ") for name in VERBS]
    assert places == sorted(places)
    assert "Examples:\n  strop train" in out
    assert run()[1] == out


def test_the_help_of_train_lists_every_field_of_the_recipe(run: Run):
    from strop.recipe import FIELDS

    out = run("train", "--help")[1]
    for field in FIELDS:
        assert field.path in ("model", "data.train") or f"  --{field.path} " in out
    assert max(len(line) for line in out.splitlines()) <= 80
    assert run("train", "--train.lr", "3", "--help")[0] == 0


def test_version(run: Run):
    from importlib.metadata import version

    assert run("--version") == (0, f"strop {version('strop')}\n", "")


def test_the_short_pages_import_nothing_heavy():
    heavy = {"torch", "transformers", "pydantic", "numpy", "psutil", "ruamel", "rapidfuzz", "jinja2"}
    for argument, allowed in (
        ("--help", set()),
        ("chat --help", set()),
        ("plan --help", set()),
        ("train --help", {"pydantic"}),
    ):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "strop.cli.main", *argument.split()],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        )
        imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
        assert "cyclopts" in imported
        assert imported & heavy <= allowed
