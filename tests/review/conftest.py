"""A data set with faults of its own, and surveys of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from strop.recipe import resolve
from strop.review.survey import Survey, take_survey
from strop.run.journal import Journal
from tiny_tokenizers import write_folder

HOSTILE = "</p></title><script>alert(1)</script><img src=x onerror=alert(2)>\"'&lt;b&gt;\x1b[2J"

# So many right ones that the wrong ones are few enough for a run.
ROWS: list[dict[str, Any]] = [
    *({"question": f"What is {n} + 1?", "answer": f"It is {n + 1}."} for n in range(80)),
    {"question": "小明有三个苹果", "answer": "一共 八个苹果 🙂"},
    {"question": f"hostile {HOSTILE}", "answer": f"hostile {HOSTILE}"},
    {"question": "long " * 60, "answer": "word " * 20 + "the end"},
    {"question": "", "answer": "no question"},
    {"question": "no answer", "answer": " "},
    {"question": "only a question"},
]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and a ChatML template, and no weights."""
    return write_folder(tmp_path_factory.mktemp("review") / "model", "chatml")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The rows as a file."""
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return file


@pytest.fixture
def surveyed(model: Path, data: Path) -> Callable[..., Survey]:
    """Survey the rows under fields of the recipe, given as ``data__max_tokens=128``."""

    def take(**fields: object) -> Survey:
        overrides = [(name.replace("__", "."), str(value)) for name, value in fields.items()]
        resolved = resolve(model=str(model), data=str(data), overrides=overrides)
        return take_survey(resolved.recipe, pack_tokens=512, journal=Journal(None, None))

    return take
