"""Putting a recipe together: values, precedence, sources, paths, and the four parts of every error."""

import subprocess
import sys
from pathlib import Path

import pytest

from strop.errors import UsageError
from strop.recipe import FIELDS, from_yaml, resolve
from strop.recipe.tree import MAX_BYTES

WHOLE = """\
model: internlm/internlm-chat-7b
data:    {train: ./MATH/train, eval: 0.02, map: problem:solution, system: You're a professor of mathematics.,
          max_tokens: 1024, overlong: refuse}
adapter: {rank: 16, alpha: 32, dropout: 0.0, targets: all-linear}
train:   {epochs: 3, samples_per_step: 64, lr: 2.0e-4, schedule: cosine, warmup: 0.03, clip: 1.0, save_every: 100,
          seed: 0}
watch:   {every: 50, ask: ["The distance between two cities on a map is 15 inches. …"]}
"""


def flags(*overrides: tuple[str, str]):
    return resolve(model="m", data="d", overrides=overrides)


def refused(*overrides: tuple[str, str]) -> UsageError:
    with pytest.raises(UsageError) as caught:
        flags(*overrides)
    return caught.value


def refused_text(text: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        from_yaml(text)
    return caught.value


def test_a_whole_recipe():
    recipe = from_yaml(WHOLE).recipe
    assert recipe.model == "internlm/internlm-chat-7b"
    assert recipe.data.system == "You're a professor of mathematics."
    assert recipe.data.map == "problem:solution"
    assert recipe.data.max_tokens == 1024
    assert recipe.train.samples_per_step == 64
    assert recipe.train.lr == 2e-4
    assert recipe.watch.ask == ("The distance between two cities on a map is 15 inches. …",)


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("train.lr", "1e-4", 1e-4),
        ("train.lr", "1.5E-4", 1.5e-4),
        ("train.lr", "1", 1.0),
        ("train.steps", "60", 60),
        ("train.steps", "1_000", 1000),
        ("train.steps", "1e3", 1000),
        ("train.steps", "none", None),
        ("train.steps", "NULL", None),
        ("train.steps", "~", None),
        ("data.system", "no", "no"),
        ("data.system", "12:30", "12:30"),
        ("data.map", "question:answer", "question:answer"),
        ("data.eval", "0.1", 0.1),
        ("data.eval", "100", 100.0),
        ("data.eval", "held-out.jsonl", "held-out.jsonl"),
        ("data.eval", "none", 0.0),
        ("data.eval", "nan", "nan"),
        ("adapter.targets", "q_proj, v_proj", "q_proj,v_proj"),
        ("adapter.targets", "[q_proj, v_proj]", "q_proj,v_proj"),
        ("train.seed", "7", 7),
    ],
)
def test_a_value_means_the_same_in_a_file_and_on_the_command_line(path: str, text: str, value: object):
    section, name = path.split(".")
    required = "  train: d\n" if section == "data" else ""
    rest = "" if section == "data" else "data: {train: d}\n"
    in_file = from_yaml(f"model: m\n{rest}{section}:\n{required}  {name}: {text}\n")
    by_flag = flags((path, text))
    for resolved in (in_file, by_flag):
        found = {row.path: row.value for row in resolved.rows()}[path]
        assert found == value
        assert type(found) is type(value)


def test_quotes_make_a_word_of_none():
    assert from_yaml('model: m\ndata: {train: d, system: "none"}').recipe.data.system == "none"
    assert from_yaml('model: m\ndata: {train: d, eval: "100"}').recipe.data.eval == "100"
    assert from_yaml('model: m\ndata: {train: d}\ntrain: {lr: "1e-4"}').recipe.train.lr == 1e-4


def test_an_empty_system_prompt_on_the_command_line_is_none():
    assert flags(("data.system", "")).recipe.data.system is None


def test_questions_gather_and_keep_their_commas():
    asked = flags(("watch.ask", "Why, and how?"), ("watch.ask", '["A, b?", "C: d?"]'), ("watch.ask", "none"))
    assert asked.recipe.watch.ask == ("Why, and how?", "A, b?", "C: d?", "none")
    assert flags(("watch.ask", "[]")).recipe.watch.ask == ()
    assert from_yaml("model: m\ndata: {train: d}\nwatch: {ask: Why?}").recipe.watch.ask == ("Why?",)
    assert from_yaml("model: m\ndata: {train: d}\nwatch:\n  ask:\n").recipe.watch.ask == ()


def test_the_last_flag_counts():
    assert flags(("train.lr", "1"), ("train.lr", "2")).recipe.train.lr == 2.0


def test_dashes_in_a_flag_count_as_underscores():
    resolved = flags(("train.samples-per-step", "4"))
    assert resolved.recipe.train.samples_per_step == 4
    assert resolved.sources["train.samples_per_step"] == "flag --train.samples-per-step"


def test_default_below_file_below_argument_below_flag(tmp_path: Path):
    file = tmp_path / "r.yaml"
    file.write_text("model: from-file\ndata:\n  train: d\n\n  eval: 5\ntrain: {lr: 1, seed: 3}\n", encoding="utf-8")
    resolved = resolve(file, model="argued", overrides=[("train.lr", "2"), ("watch.ask", "Q")])
    assert (resolved.recipe.model, resolved.recipe.train.lr, resolved.recipe.train.seed) == ("argued", 2.0, 3)
    assert resolved.sources["model"] == "argument MODEL"
    assert resolved.sources["data.eval"] == f"{file}:5"
    assert resolved.sources["train.lr"] == "flag --train.lr"
    assert resolved.sources["train.seed"] == f"{file}:6"
    assert resolved.sources["train.epochs"] == "default"
    assert list(resolved.sources) == [field.path for field in FIELDS]


def test_flags_replace_the_questions_of_the_file(tmp_path: Path):
    file = tmp_path / "r.yaml"
    file.write_text("model: m\ndata: {train: d}\nwatch: {ask: [A, B]}\n", encoding="utf-8")
    assert resolve(file, overrides=[("watch.ask", "C")]).recipe.watch.ask == ("C",)


def test_paths_in_a_file_are_beside_it_when_they_exist_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = tmp_path / "recipes"
    (home / "model").mkdir(parents=True)
    (home / "held.jsonl").touch()
    file = home / "r.yaml"
    file.write_text("model: ./model\ndata: {train: ../data.jsonl, eval: held.jsonl}\n", encoding="utf-8")
    (tmp_path / "data.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    recipe = resolve("recipes/r.yaml").recipe
    assert Path(recipe.model) == Path("recipes/model")
    assert Path(recipe.data.train) == Path("data.jsonl")
    assert Path(str(recipe.data.eval)) == Path("recipes/held.jsonl")
    again = resolve("recipes/r.yaml", model="./model", overrides=[("data.train", "other.jsonl")]).recipe
    assert (again.model, again.data.train) == ("./model", "other.jsonl")  # the command line: the current folder


def test_paths_that_are_not_beside_the_file_stay(tmp_path: Path):
    file = tmp_path / "r.yaml"
    file.write_text("model: some/name\ndata: {train: data.jsonl, eval: 0.5}\n", encoding="utf-8")
    recipe = resolve(file).recipe
    assert (recipe.model, recipe.data.train, recipe.data.eval) == ("some/name", "data.jsonl", 0.5)


def test_a_tilde_is_the_home_folder():
    assert Path(flags(("data.eval", "~/x")).recipe.data.eval) == Path.home() / "x"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("overrides", "what", "expected", "found", "do"),
    [
        (("train.lr", "-1"), "flag --train.lr: train.lr", "a number above 0", "-1", "--train.lr 0.0002"),
        (("train.lr", "fast"), "flag --train.lr: train.lr", "a number above 0", "fast", "--train.lr 0.0002"),
        (("train.lr", "nan"), "flag --train.lr: train.lr", "a number above 0", "nan", "--train.lr"),
        (("train.lr", "none"), "flag --train.lr: train.lr", "a number above 0", "none", "leave it out"),
        (("adapter.rank", "2000"), "adapter.rank", "an integer from 1 to 1024", "2000", "--adapter.rank 16"),
        (("adapter.rank", "1.5"), "adapter.rank", "an integer", "1.5", "--adapter.rank 16"),
        (("adapter.rank", "1e999"), "adapter.rank", "an integer", "1e999", "--adapter.rank 16"),
        (("train.seed", "9" * 5000), "train.seed", "an integer", "999", "--train.seed 0"),
        (("train.schedule", "cosin"), "train.schedule", "cosine, linear, constant", "cosin", "--train.schedule cosine"),
        (("data.eval", "-0.5"), "data.eval", "a number of 0 or more, or text", "-0.5", "--data.eval 0.02"),
        (("watch.ask", "[1, 2"), "flag --watch.ask: this begins with [", "a list", "", "inside a list"),
        (("lr", "1"), "flag --lr: a recipe has no field lr", "train.lr", "", "did you mean --train.lr ?"),
        (("train.lrr", "1"), "flag --train.lrr", "train.lr", "", "--train.lr"),
        (("train.zzzzqq", "1"), "flag --train.zzzzqq", "a field of train: epochs,", "", "strop train --help"),
        (("model", "x"), "model is given twice", "flag --model", "both", "leave one"),
        (("data.system", "\ud800"), "data.system", "text", "UTF-8", "--data.system"),
    ],
)
def test_a_wrong_flag_is_told_in_four_parts(overrides: tuple[str, str], what: str, expected: str, found: str, do: str):
    error = refused(overrides)
    assert what in error.what
    assert expected in error.expected
    assert found in error.found
    assert do in error.do
    assert error.exit_code == 2
    assert "pydantic" not in str(error)
    assert "http" not in str(error)
    assert error.__cause__ is None


@pytest.mark.parametrize(
    ("text", "what", "do"),
    [
        ("model: m\ndata: {train: d}\ntrain:\n  lr: fast\n", "recipe.yaml:4: train.lr", "lr: 0.0002"),
        ("model: m\ndata: {train: d}\ntrain:\n  lr:\n", "recipe.yaml:4: train.lr", "lr: 0.0002"),
        (
            "model: m\ndata: {train: d}\ntrain: {learning_rate: 1}\n",
            "recipe.yaml:3: a recipe has no field",
            "mean lr: ?",
        ),
        ("model: m\ndata: {train: d}\nseed: 1\n", "recipe.yaml:3:", "seed: below train:"),
        ("model: m\ndata: {train: d, model: x}\n", "recipe.yaml:2:", "model: at the top"),
        (
            "model: m\ndata: {train: d}\ntrain.lr: 1\n",
            "recipe.yaml:3: a recipe has no field train.lr",
            "lr: below train:",
        ),
        ("model: m\ndata: {train: d}\nlora: {r: 1}\n", "recipe.yaml:3: a recipe has no section lora", "adapter:"),
        ("model: m\ndata: {train: d}\nbf16: true\n", "recipe.yaml:3:", "--plan.recompute"),
        ("model: m\ndata: x.jsonl\n", "recipe.yaml:2: data is a section", "data: {train: x.jsonl}"),
        ("model: m\ndata: {train: d}\ntrain: [1]\n", "recipe.yaml:3: train is a section", "train: {epochs: …}"),
        ("model: [m]\ndata: {train: d}\n", "recipe.yaml:1: model", "give model: FILE"),
        ("model: m\ndata: {train: d, rows: {a: 1}}\n", "recipe.yaml:2: data.rows", "leave it out"),
        ("model: m\ndata: {train: d}\nwatch: {ask: {What: b}}\n", "recipe.yaml:3: watch.ask", "leave it out"),
        ("model: m\ndata: {train: d}\nwatch: {ask: [[a]]}\n", "recipe.yaml:3: watch.ask", "leave it out"),
        ("- model\n", "recipe.yaml:1: a recipe is a mapping", "begin the recipe"),
        ("model\n", "recipe.yaml:1: a recipe is a mapping", "begin the recipe"),
        ("model: m\n", "recipe.yaml: no data is given", "data: {train: FILE}"),
        ("model: m\ndata:\n", "recipe.yaml: no data is given", "data: {train: FILE}"),
        ("data: {train: d}\n", "recipe.yaml: no model is given", "model: FOLDER"),
        ("# nothing\n", "recipe.yaml: no model and no data are given", "model: FOLDER and data: {train: FILE}"),
        ("model: m\ndata: {train: ''}\n", "recipe.yaml:2: data.train", "train: FILE"),
    ],
)
def test_a_wrong_file_is_told_with_its_line(text: str, what: str, do: str):
    error = refused_text(text)
    assert error.what.startswith(what)
    assert do in error.do
    assert error.expected


def test_all_faults_are_told_at_once():
    error = refused_text("data: {train: d}\ntrain: {lr: 0, epoch: 3, steps: x}\n")
    assert error.what == "4 things are wrong with the recipe"
    for part in ("train.epoch", "did you mean epochs:", "no model is given", "train.steps", "found x", "train.lr"):
        assert part in error.found


def test_arguments_that_are_missing():
    with pytest.raises(UsageError, match="no data is given") as caught:
        resolve(model="m")
    assert caught.value.do == "strop train MODEL DATA"
    with pytest.raises(UsageError, match="no model and no data are given"):
        resolve()


def test_a_recipe_file_that_cannot_be_read(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text("model: m\n", encoding="utf-8")
    with pytest.raises(UsageError, match="no such file") as caught:
        resolve(tmp_path / "recipes.yaml")
    assert str(tmp_path / "recipe.yaml") in caught.value.do
    with pytest.raises(UsageError, match="a folder"):
        resolve(tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        resolve(tmp_path / "nowhere" / "recipe.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(UsageError, match="too large"):
        resolve(tmp_path / "large.yaml")


def test_nothing_heavy_is_imported():
    for module, absent in (
        ("strop.recipe", ("torch", "transformers", "numpy")),
        ("strop", ("torch", "pydantic", "rich")),
    ):
        code = f"import sys, {module}; print(*[name for name in {absent!r} if name in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([("data.train", "a.jsonl")], "a.jsonl"),
        ([("data.train", "a.jsonl, b.jsonl*2")], ("a.jsonl", "b.jsonl*2")),
        ([("data.train", "a.jsonl"), ("data.train", "b.jsonl#10")], ("a.jsonl", "b.jsonl#10")),
        ([("data.train", "[a.jsonl, 'b,c.jsonl']")], ("a.jsonl", "b,c.jsonl")),
        ([("data.train", "[a.jsonl]")], "a.jsonl"),
    ],
)
def test_several_sources_are_a_list_commas_or_a_flag_repeated(overrides, expected):
    assert resolve(model="m", overrides=overrides).recipe.data.train == expected


def test_a_file_with_a_comma_in_its_name_is_one_source(tmp_path, monkeypatch):
    (tmp_path / "a,b.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    assert resolve(model="m", data="a,b.jsonl").recipe.data.train == "a,b.jsonl"


def test_sources_in_a_file_are_beside_it_amounts_and_globs_included(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes" / "data").mkdir(parents=True)
    (tmp_path / "recipes" / "data" / "a.jsonl").touch()
    (tmp_path / "recipes" / "r.yaml").write_text(
        "model: m\ndata: {train: ['data/a.jsonl*2', 'data/*.jsonl', 'none.jsonl#5', 'hf:owner/name']}\n"
    )
    resolved = resolve("recipes/r.yaml")
    expected = ("recipes/data/a.jsonl*2", "recipes/data/*.jsonl", "none.jsonl#5", "hf:owner/name")
    assert tuple(Path(source).as_posix() for source in resolved.recipe.data.train) == expected
    assert from_yaml(resolved.to_yaml()).recipe == resolved.recipe


@pytest.mark.parametrize("train", ["[]", "['']", "{path: a.jsonl, weight: 2}", "'a.jsonl,,b.jsonl'"])
def test_what_is_no_source_is_refused(train):
    with pytest.raises(UsageError, match=r"data\.train"):
        from_yaml(f"model: m\ndata: {{train: {train}}}\n")
