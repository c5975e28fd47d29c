"""The examples of docs/python.md run, one after the other, in an interpreter that has imported nothing before."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import strop
from tiny_run import Tiny, rows, write_rows

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_the_examples_run(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny.model, tmp_path / "my-model")
    write_rows(tmp_path / "questions.jsonl", rows(10))
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 3
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*blocks, CHECKS])],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(" ")[0] for line in lines[:2]] == ["1", "2"]
    assert "nowhere is not a run" in done.stdout


# What the page says of the results, beside that the lines run.
CHECKS = """
assert list(measures) == ["loss", "learned_tokens", "samples", "refused", "right", "loose", "asked"]
assert list(pairs[0]) == ["question", "reference", "base", "tuned"]
assert measures["samples"] == 2 and run.steps == 2 and page.name == "report.html"
assert [message.role for message in chat.messages] == ["user", "assistant"] * 2
"""


def test_the_names_are_those_of_the_package() -> None:
    assert sorted(re.findall(r"^\| `strop\.(\w+)` \|", TEXT, re.MULTILINE)) == sorted(strop.__all__)
    from strop.training.api import Run

    row = next(line for line in TEXT.splitlines() if line.startswith("| `strop.Run` |"))
    assert re.findall(r"`(\w+)`", row) == [field.name for field in fields(Run)]
