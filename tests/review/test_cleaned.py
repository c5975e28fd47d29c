"""The cleaned file: in reading order, with what is held out of the same data, against a lint that is made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from strop.data.findings import Finding, Instance
from strop.data.records import Conversation
from strop.errors import UsageError
from strop.review import findings, fix
from strop.review.fix import write_cleaned
from strop.review.survey import Survey
from strop.run.journal import Journal

Take = Callable[..., Survey]
CALLS: list[tuple[int, int]] = []


def drop_sevens(conversations: Sequence[Conversation], held_out: Sequence[Conversation] = (), **_: Any) -> Any:
    """Drop what says 7, and find what says 8 afterwards."""
    CALLS.append((len(conversations), len(held_out)))
    texts = [one.messages[0].content for one in conversations]
    kept = [row for row, text in enumerate(texts) if "7" not in text]
    gone = [conversations[row] for row, text in enumerate(texts) if "7" in text]
    instances = tuple(Instance(one.place, one.messages[0].content) for one in gone)
    changes = [SimpleNamespace(kind="sevens", what=f"Dropped {len(gone)}.", instances=instances)] if gone else []
    left = [Finding("eights", "warn", "there is an 8", "look", 1)] if any("8" in texts[row] for row in kept) else []
    return SimpleNamespace(
        kept=tuple(kept), conversations=tuple(conversations[row] for row in kept), changes=changes, left=left
    )


def write_lines(target: Path, conversations: Iterable[Conversation]) -> int:
    lines = [json.dumps([message.content for message in one.messages]) for one in conversations]
    target.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return len(lines)


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    CALLS.clear()
    monkeypatch.setattr(findings, "lint", lambda *_, **__: [])
    monkeypatch.setattr(fix, "fix", drop_sevens)
    monkeypatch.setattr(fix, "write_fixed", write_lines)


def questions(file: Path) -> list[str]:
    return [json.loads(line)[0] for line in file.read_text(encoding="utf-8").splitlines()]


def test_held_out_samples_of_the_same_data_are_in_it(surveyed: Take, tmp_path: Path) -> None:
    survey = surveyed(data__eval=6)
    target = tmp_path / "clean.jsonl"
    cleaned = write_cleaned(survey, target, Journal(None, None))
    samples = [example.conversation for example in survey.samples]
    expected = [one.messages[0].content for one in samples if one is not None]
    assert questions(target) == [text for text in expected if "7" not in text]
    assert (cleaned.written, cleaned.refused) == (len(questions(target)), 3)
    assert CALLS == [(77, 6), (6, 0)]
    assert sum(len(change.instances) for change in cleaned.changes) == sum("7" in text for text in expected)


def test_held_out_samples_of_another_file_are_not(surveyed: Take, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"question": "else 9", "answer": "a"}\n', encoding="utf-8")
    target = tmp_path / "clean.jsonl"
    cleaned = write_cleaned(surveyed(data__eval=other), target, Journal(None, None))
    assert "else 9" not in questions(target)
    assert CALLS == [(83, 1)]
    found = json.loads(json.dumps(cleaned.as_dict()))
    assert list(found) == ["file", "written", "refused", "changes", "left"]
    assert (found["written"], found["left"][0]["kind"]) == (cleaned.written, "eights")


def test_what_is_changed_and_not_found_again_is_solved(surveyed: Take, tmp_path: Path) -> None:
    cleaned = write_cleaned(surveyed(), tmp_path / "clean.jsonl", Journal(None, None))
    solved = {kind: cleaned.solves(Finding(kind, "stop", "w", "d", 1)) for kind in ("sevens", "eights", "other")}
    assert solved == {"sevens": True, "eights": False, "other": False}


def test_a_file_is_not_overwritten(surveyed: Take, tmp_path: Path) -> None:
    target = tmp_path / "clean.jsonl"
    target.write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="it is there already"):
        write_cleaned(surveyed(), target, Journal(None, None))
    assert target.read_text(encoding="utf-8") == "mine"
