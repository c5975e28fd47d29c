"""``strop data``: one line at a time; what it prints, at any width and in any encoding, and how it ends."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from strop.cli.samples import show_packs, show_samples
from strop.cli.survey import percent, show_prompts, show_survey, show_verdict
from strop.data.findings import Finding, Instance
from strop.data.prompts import PromptPair
from strop.data.records import Place
from strop.recipe import resolve
from strop.review.survey import Survey, select, take_survey
from strop.run.journal import Journal
from tiny_tokenizers import KINDS, LLAMA3, write_folder

Run = Callable[..., tuple[int, str, str]]
GSM8K = Path("/work/shared/data/gsm8k/train.jsonl")

ROWS: list[dict[str, Any]] = [
    *({"question": f"What is {n} + 1?", "answer": f"It is {n + 1}."} for n in range(30)),
    {"question": "小明有三个苹果,妈妈又给了他五个,他一共有几个苹果?", "answer": "一共 八个\t苹果 🙂"},
    {"question": "[bold]x[/bold] \x1b[2J", "answer": "<|im_end|> is text here"},
    {"question": "long " * 60, "answer": "word " * 400},
    {"question": "no answer", "answer": " "},
]


class Screen(io.StringIO):
    """What is printed, with an encoding of its own."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data-command") / "model", "chatml")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return file


@pytest.fixture
def survey(model: Path, data: Path) -> Survey:
    overrides = [("data.eval", "2"), ("data.max_tokens", "1500"), ("data.overlong", "cut_end")]
    return take_survey(
        resolve(model=str(model), data=str(data), overrides=overrides).recipe, journal=Journal(None, None)
    )


def console_of(width: int = 80, encoding: str = "utf-8", **more: Any) -> tuple[Console, Screen]:
    screen = Screen(encoding)
    return Console(file=screen, width=width, highlight=False, emoji=False, markup=False, **more), screen


# ── the verb ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_shown_without_flags(run: Run, model: Path, data: Path) -> None:
    code, out, err = run("data", str(data), "--model", str(model), "--data.eval", "2")
    assert code == 0
    assert "34 records = 31 learned + 2 held out + 1 refused" in out
    assert "1 × the answer is empty" in out
    assert f"{data}:34" in out
    assert "equal, token for token, in 33 of 33 samples" in out
    assert out.count("── sample ") == 3
    assert "reading data" in err
    assert "\x1b" not in out
    order = [
        out.index(text)
        for text in ("data ", "lengths of", "max_tokens", "packs of", "── sample 1", "refused:", "findings")
    ]
    assert order == sorted(order)


def test_json_is_one_object_with_the_account(run: Run, model: Path, data: Path) -> None:
    code, out, _ = run("data", str(data), "--model", str(model), "--data.eval", "2", "--json")
    assert (code, out.count("\n")) == (0, 1)
    found = json.loads(out)
    account = ("read", "learned", "held_out", "refused", "tokens", "learned_tokens", "findings")
    assert all(name in found for name in account)
    assert found["read"] == found["learned"] + found["held_out"] + found["refused"] == 34
    assert (found["data"], found["model"], found["prompt_equal"]) == (str(data), str(model), True)


def test_fields_of_the_recipe_are_flags(run: Run, model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "own.jsonl"
    rows.write_text('{"q": "one", "a": "two"}\n{"q": "three", "a": "four"}\n', encoding="utf-8")
    line = ("data", str(rows), "--model", str(model), "--data.eval", "0", "--json")
    assert run(*line)[0] == 3
    code, out, _ = run(*line, "--data.map", "q:a", "--data.system", "Be exact.", "--data.max_tokens", "400")
    assert code == 0
    found = json.loads(out)
    assert (found["learned"], found["max_tokens"]) == (2, 400)
    without = json.loads(run(*line, "--data.map", "q:a", "--data.system", "")[1])
    assert found["tokens"] != without["tokens"]


def test_a_recipe_is_data_and_model(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {model}\ndata: {{train: {data}, eval: 3}}\n", encoding="utf-8")
    code, out, _ = run("data", "recipe.yaml", "--json")
    assert (code, json.loads(out)["held_out"]) == (0, 3)
    recipe.write_text(f"data: {{train: {data}}}\n", encoding="utf-8")
    assert run("data", "recipe.yaml", "--model", str(model))[0] == 0
    code, _, err = run("data", "recipe.yaml")
    assert (code, "no model is given" in err) == (2, True)


@pytest.mark.parametrize(
    ("line", "code", "what", "do"),
    [
        ([], 2, "DATA is missing", "for example: strop data"),
        (["D"], 2, "no model is given", "--model smollm2-135m-instruct"),
        (["D", "--model", "M", "--step", "0"], 2, "--step does not take this value", "1 or more"),
        (["D", "--model", "M", "--show", "-1"], 2, "--show does not take this value", "0 or more"),
        (["D", "--model", "M", "--sample", "34", "--sample", "99"], 2, "--sample 99: there is no such", "--search"),
        (["D", "--model", "M", "--step", "1", "--pack", "9"], 2, "step 1 has no such pack", "leave --pack out"),
        (["D", "--model", "M", "--html", "no/where.html"], 2, "there is no folder no", "--html where.html"),
        (["D", "--model", "M", "--max-tokens", "5"], 2, "no flag --max-tokens", "--data.max_tokens"),
        (["D", "--model", "M", "--plan.pack_token", "5"], 2, "no lever of the plan", "--plan.pack_tokens 4096"),
        (["D", "--model", "nowhere"], 3, "there is no model nowhere", "check the path"),
        (["nowhere.jsonl", "--model", "M"], 3, "nowhere.jsonl does not exist", "check the path"),
        (["D", "--model", "M", "--data.map", "q:a"], 3, "there is no column 'q'", "--data.map"),
    ],
)
def test_what_is_wrong_is_told(
    run: Run, model: Path, data: Path, line: list[str], code: int, what: str, do: str
) -> None:
    line = [{"D": str(data), "M": str(model)}.get(word, word) for word in line]
    found, out, err = run("data", *line)
    assert (found, out) == (code, "")
    assert what in err
    assert do in err.partition("do: ")[2]
    assert "Traceback" not in err


def test_samples_are_asked_for_alone(run: Run, model: Path, data: Path) -> None:
    _, out, _ = run("data", str(data), "--model", str(model), "--sample", "32", "--sample", "34")
    assert out.count("── sample ") == 1
    assert "sample 32, " in out
    assert f"{data}:34: refused" in out
    assert "max_tokens" not in out
    _, out, _ = run("data", str(data), "--model", str(model), "--search", "IT IS", "--show", "2")
    assert "the first 2 of 30 samples that say 'IT IS'" in out
    assert "no samples that say 'xyz'" in run("data", str(data), "--model", str(model), "--search", "xyz")[1]


def test_packs_of_a_step_have_borders(run: Run, model: Path, data: Path) -> None:
    line = ("data", str(data), "--model", str(model), "--data.eval", "0", "--train.samples_per_step", "4")
    _, out, _ = run(*line, "--step", "2", "--plan.pack_tokens", "120")
    packs = [text for text in out.splitlines() if text.startswith("step 2, pack ")]
    assert packs
    assert out.count("── document ") == 4 == sum(int(text.split(", ")[-1].split()[0]) for text in packs)
    one = run(*line, "--step", "2", "--pack", "1", "--plan.pack_tokens", "120")[1]
    assert one.count("step 2, pack ") == 1
    assert run(*line, "--pack", "1", "--plan.pack_tokens", "120")[1].startswith("\nstep 1, pack 1 of")


def test_every_token_on_a_line(run: Run, model: Path, data: Path) -> None:
    _, out, _ = run("data", str(data), "--model", str(model), "--data.eval", "0", "--sample", "1", "--tokens")
    rows = [line.split() for line in out.splitlines() if line.strip()[:1].isdigit()]
    assert [int(row[0]) for row in rows] == list(range(len(rows)))
    assert rows[0][2] == "'<|im_start|>'"
    assert [row[-1] for row in rows if row[-1] != "read"][-1] == "stop"


def test_the_page_is_written(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    code, out, _ = run("data", str(data), "--model", str(model), "--html", "page.html", "--json")
    assert (code, out.count("\n")) == (0, 1)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "\x1b" not in page
    assert "written: page.html" in run("data", str(data), "--model", str(model), "--html", "page.html")[1]


def test_where_nothing_is_left_all_is_shown(run: Run, model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "empty.jsonl"
    rows.write_text('{"question": "q", "answer": ""}\n' * 4, encoding="utf-8")
    line = ("data", str(rows), "--model", str(model))
    code, out, err = run(*line, "--html", "page.html")
    assert code == 3
    assert "4 records = 0 learned + 0 held out + 4 refused" in out
    assert "4 × the answer is empty" in out
    assert "nothing is left to learn [nothing-left]" in out
    assert "max_tokens" not in out
    assert "error: a run on this data would be refused" in err
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "A run on this data would be refused" in page
    assert "There is nothing to learn" in page
    assert "<svg" not in page
    code, out, _ = run(*line, "--json")
    found = json.loads(out)
    assert (code, found["read"], found["refused"], found["learned"]) == (3, 4, 4, 0)
    assert [finding["kind"] for finding in found["findings"]] == ["nothing-left"]
    code, out, err = run(*line, "--step", "1")
    assert (code, out, "there are no steps" in err) == (3, "", True)
    code, _, err = run("plan", str(model), str(rows))
    assert (code, "[nothing-left]" in err) == (3, False)


def test_a_template_that_is_wrong_is_shown_whole(run: Run, data: Path, tmp_path: Path) -> None:
    template = LLAMA3.replace("{{- bos_token }}", "{{- bos_token + bos_token }}")
    model = write_folder(tmp_path / "twice", {**KINDS["llama3"], "template": template})
    line = ("data", str(data), "--model", str(model), "--data.eval", "2")
    code, out, err = run(*line, "--html", "page.html")
    assert code == 3
    assert "34 records = 31 learned + 2 held out + 1 refused" in out
    assert "[double-bos]" in out
    assert "stands twice in a row" in err
    assert "stands twice in a row" in (tmp_path / "page.html").read_text(encoding="utf-8")
    code, out, _ = run(*line, "--json")
    stops = [finding for finding in json.loads(out)["findings"] if finding["severity"] == "stop"]
    assert (code, [finding["kind"] for finding in stops]) == (3, ["double-bos"])


def test_a_finding_that_stops_ends_with_exit_code_3(
    run: Run, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from strop.review import survey as room

    finding = Finding(
        "nothing-learned", "stop", "2 samples teach nothing", "drop them", 2, (Instance(Place("f", 3), "x"),)
    )
    monkeypatch.setattr(room, "find", lambda *_: [finding])
    code, out, err = run("data", str(data), "--model", str(model))
    assert code == 3
    assert "stop 2 samples teach nothing [nothing-learned]" in out
    assert (
        "error: a run on this data would be refused: 2 samples teach nothing\n     found: f:3: x\n        do: drop them"
        in err
    )
    code, out, err = run("data", str(data), "--model", str(model), "--json")
    assert (code, out.count("\n")) == (3, 1)
    assert json.loads(out)["findings"][0]["severity"] == "stop"


def test_a_cleaned_file_is_without_what_was_refused_too_much(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    with data.open("a", encoding="utf-8") as file:
        file.write('{"question": "q", "answer": ""}\n' * 9 + '{"question": null, "answer": "a"}\n')
    line = ("data", str(data), "--model", str(model), "--data.eval", "0", "--show", "0")
    code, out, err = run(*line)
    assert code == 3
    assert "11 of 44 records of the data are refused, more than data.refuse_limit 0.05 allows" in " ".join(out.split())
    assert "do: repair them, each for the reason that is given with it; or go on without them" in err
    code, out, _ = run(*line, "--fix", "clean.jsonl")
    assert (code, "11 refused records are not in it" in out) == (0, True)
    assert run("data", "clean.jsonl", *line[2:])[0] == 0
    held_out = tmp_path / "held.jsonl"
    held_out.write_text('{"question": "p", "answer": "a"}\n{"question": "q", "answer": ""}\n', encoding="utf-8")
    own = ("data", "clean.jsonl", *line[2:4], "--data.eval", str(held_out))
    assert run(*own, "--fix", "again.jsonl")[0] == 3


def test_a_cleaned_file_is_told_of(
    run: Run, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from strop.review import fix as room
    from strop.review import survey as looking

    solved = Finding("leaks", "stop", "1 sample leaks", "drop it", 1)
    made = room.Cleaned(
        Path("clean.jsonl"), 9, 1, (room.Change("leaks", "Dropped 1 sample.", (Instance(Place("f", 3), "x"),)),), ()
    )
    monkeypatch.setattr(room, "write_cleaned", lambda *_: made)
    monkeypatch.setattr(looking, "find", lambda *_: [solved])
    code, out, _ = run("data", str(data), "--model", str(model), "--fix", "clean.jsonl")
    assert code == 0
    assert "Dropped 1 sample. [leaks]\n    f:3: x" in out
    assert "written: clean.jsonl, 9 samples; 1 refused records are not in it" in out
    found = json.loads(run("data", str(data), "--model", str(model), "--fix", "clean.jsonl", "--json")[1])
    assert found["fixed"]["written"] == 9
    (tmp_path / "clean.jsonl").write_text("mine", encoding="utf-8")
    code, _, err = run("data", str(data), "--model", str(model), "--fix", "clean.jsonl")
    assert (code, "it is there already" in err) == (2, True)


def test_no_torch_is_loaded(model: Path, data: Path) -> None:
    script = (
        "import sys\nfrom strop.cli.main import main\n"
        f"code = main(['data', {str(data)!r}, '--model', {str(model)!r}, '--html', 'p.html', '--json'])\n"
        "sys.exit(code or ('torch' in sys.modules) * 9)"
    )
    assert (
        subprocess.run([sys.executable, "-c", script], cwd=data.parent, capture_output=True, check=False).returncode
        == 0
    )


@pytest.mark.skipif(not GSM8K.is_file(), reason="GSM8K is not on this machine")
def test_gsm8k(run: Run, model: Path) -> None:
    found = json.loads(run("data", str(GSM8K), "--model", str(model), "--data.rows", "500", "--json")[1])
    assert (found["read"], found["refused"], found["prompt_equal"]) == (500, 0, True)
    assert found["packs"]["share"] > 0.9


# ── the terminal ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("width", [60, 80, 140])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_everything_fits_any_width_and_encoding(survey: Survey, width: int, encoding: str) -> None:
    from rich.cells import cell_len

    console, screen = console_of(width, encoding)
    show_survey(survey, console)
    show_samples(survey, select(survey, [], None, 40), console)
    show_packs(survey, 1, None, 400, False, console)
    show_verdict(survey, console)
    text = screen.getvalue()
    assert max(cell_len(line) for line in text.splitlines()) <= width
    if encoding == "ascii":
        assert not set("↵⇥·─–█…×") & set(text)
    assert "\x1b" not in text
    assert "[bold]x[/bold]" in text


def test_what_a_run_is_stands_beside_it(survey: Survey) -> None:
    console, screen = console_of()
    show_samples(survey, select(survey, [31], None, 1), console)
    lines = [line.rstrip() for line in screen.getvalue().splitlines()]
    labels = [line.split()[0] for line in lines if line and line[0] not in " ─"]
    assert labels == ["read", "learned", "stop", "read"]
    assert "learned  一共 八个⇥苹果 🙂" in screen.getvalue()


def test_colours_on_a_terminal(survey: Survey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR")
    console, screen = console_of(force_terminal=True, color_system="standard", legacy_windows=False)
    show_samples(survey, select(survey, [1], None, 1), console)
    text = screen.getvalue()
    assert "\x1b[32mlearned" in text
    assert "\x1b[1;33mstop" in text


def test_long_texts_lose_their_middle_unless_asked_for(survey: Survey) -> None:
    for whole in (False, True):
        console, screen = console_of()
        show_samples(survey, select(survey, [33], None, 1), console, whole=whole)
        assert ("more characters" in screen.getvalue()) != whole


def test_a_cut_is_marked(survey: Survey) -> None:
    console, screen = console_of()
    show_samples(survey, select(survey, [33], None, 1), console)
    text = screen.getvalue()
    assert "cut at token 1,501" in text
    assert text.rstrip().splitlines()[-1].startswith("cut")


def test_prompts_that_differ_stand_side_by_side(survey: Survey) -> None:
    example = survey.dataset.learned[0]
    tokens = tuple(example.tokens[:12].tolist())
    pair = PromptPair(example, 1, tokens, (*tokens[:6], tokens[7], *tokens[7:]))
    console, screen = console_of()
    show_prompts(replace(survey, unequal=[pair]), console)
    differing = [line.split() for line in screen.getvalue().splitlines() if line.rstrip().endswith("differs")]
    assert len(differing) == 1
    assert differing[0][0] == "7"
    console, screen = console_of()
    show_prompts(replace(survey, unequal=[replace(pair, fault="it fails", sent=())]), console)
    assert "it fails" in screen.getvalue()


@pytest.mark.parametrize("width", [40, 80, 83, 84, 200])
def test_a_figure_and_its_name_stay_on_one_line(survey: Survey, width: int) -> None:
    console, screen = console_of(width)
    show_survey(survey, console)
    lines = [line for line in screen.getvalue().splitlines() if "median" in line or "longest" in line]
    assert all(re.search(r"(median|longest) [\d,]+", line) for line in lines)


def test_shares() -> None:
    assert [percent(part, 1000) for part in (0, 0.1, 3, 480, 999, 1000)] == [
        "0 %",
        "<0.1 %",
        "0.3 %",
        "48 %",
        "99.9 %",
        "100 %",
    ]
    assert percent(0, 0) == "0 %"
