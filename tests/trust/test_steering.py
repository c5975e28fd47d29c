"""Control characters and turned directions in data and in names are seen as escapes, on terminal and pages."""

import json
from pathlib import Path

import pytest

from strop.cli.main import main
from tiny_run import RECIPE, Tiny, rows, write_rows

TURNED = "abc\u202etxt.exe\u202c\u2067"
OBEYED = "\x1b[2J\x1b]0;owned\x07\x9b31m\x08\r"
STEERING = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\x1b\x07\x08\x9b\x00")


@pytest.fixture
def poisoned(tiny: Tiny, tmp_path: Path) -> Tiny:
    """Model and data whose names and texts would steer whoever shows them."""
    model = tmp_path / f"m{TURNED}{OBEYED}"
    model.symlink_to(tiny.model, target_is_directory=True)
    texts = [{"question": row["question"] + TURNED + OBEYED, "answer": row["answer"] + OBEYED} for row in rows()]
    refused = [{"question": TURNED + OBEYED, "answer": ""}] * 2
    return Tiny(model, write_rows(tmp_path / f"d{TURNED}{OBEYED}.jsonl", texts + refused))


def check(capsys: pytest.CaptureFixture[str], page: Path) -> None:
    said = capsys.readouterr()
    for text in (said.out, said.err, page.read_text(encoding="utf-8")):
        assert not STEERING & set(text)
        assert "\r" not in text
        assert "Traceback" not in text
    assert "\\u202e" in said.out + said.err
    assert "⟨U+202E⟩" in page.read_text(encoding="utf-8")


def test_plan_data_and_report_show_what_would_steer(poisoned: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model, data, page = str(poisoned.model), str(poisoned.data), tmp_path / "page.html"
    assert main(["plan", model, data, "--html", str(page), "--data.system", TURNED + "x"]) == 0
    check(capsys, page)
    assert main(["data", data, "--model", model, "--html", str(page)]) == 0
    check(capsys, page)
    values = {**RECIPE, "train.steps": 2, "plan.threads": 1, "watch.ask": "who" + TURNED}
    flags = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    assert main(["train", model, data, "--run", str(tmp_path / "run"), *flags]) == 0
    check(capsys, tmp_path / "run" / "report.html")


def test_as_json_it_is_escaped(poisoned: Tiny, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", str(poisoned.model), str(poisoned.data), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.isascii()
    assert json.loads(line)["data"] == str(poisoned.data)
