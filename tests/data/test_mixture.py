"""Several sources as one data set: weights and counts by content, and an account of each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from strop.data.accounting import by_reason, check_refused
from strop.data.examples import Dataset, prepare
from strop.data.mixture import Mixture, Source, parse_sources, whole_sources
from strop.data.records import Place, Refusal
from strop.data.tokenizer import Tokenizer
from strop.errors import DataError, UsageError
from strop.recipe.schema import DataSection


def write(path: Path, count: int, name: str = "q", broken: int = 0) -> Path:
    rows = [{"question": f"{name} {number}", "answer": f"a {number}"} for number in range(count)]
    rows += [{"question": f"{name} {number}", "answer": ""} for number in range(broken)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def questions(*train: str, seed: int = 0) -> list[str]:
    return [record.values["question"] for record in Mixture(train, seed)]


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("a.jsonl", Source("a.jsonl")),
        ("a.jsonl*2", Source("a.jsonl", 2.0)),
        ("a.jsonl*0.5", Source("a.jsonl", 0.5)),
        ("a.jsonl#1000", Source("a.jsonl", 1.0, 1000)),
        ("data/*.jsonl", Source("data/*.jsonl")),
        ("data/*.jsonl*3", Source("data/*.jsonl", 3.0)),
        ("hf:owner/name@v1:train#10", Source("hf:owner/name@v1:train", 1.0, 10)),
    ],
)
def test_an_amount_stands_behind_a_source(text: str, source: Source) -> None:
    assert parse_sources(text) == (source,)
    assert str(source) == text


def test_a_file_that_is_called_so_is_that_file(tmp_path: Path) -> None:
    file = write(tmp_path / "a#2", 1)
    assert parse_sources(str(file)) == (Source(str(file)),)


@pytest.mark.parametrize("text", ["a.jsonl*0", "a.jsonl#0"])
def test_nothing_of_a_source_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="uses nothing"):
        parse_sources(["b.jsonl", text])


def test_weights_and_counts_are_exact(tmp_path: Path) -> None:
    file = str(write(tmp_path / "a.jsonl", 40))
    every = questions(file)
    assert questions(file + "*2") == every * 2
    assert questions(file + "#100") == every
    half, ten = questions(file + "*0.5"), questions(file + "#10")
    assert (len(half), len(ten)) == (20, 10)
    assert set(ten) < set(half) < set(every)
    more = questions(file + "*2.5")
    assert more[:80] == every * 2
    assert more[80:] == half
    assert questions(file + "#10", seed=1) != ten


def test_a_part_depends_on_contents_and_neither_on_order_nor_on_other_sources(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.jsonl", 40), write(tmp_path / "b.jsonl", 7, "other")
    turned = tmp_path / "c.jsonl"
    turned.write_text("\n".join(reversed(first.read_text("utf-8").splitlines())), encoding="utf-8")
    part = questions(f"{first}#11")
    assert set(questions(f"{turned}#11")) == set(part)
    both = questions(f"{second}*0.5", f"{first}#11")
    assert both[4:] == part
    assert len(both) == 15


def data(chatml: Tokenizer, train: str | tuple[str, ...], **settings: object) -> Dataset:
    return prepare(DataSection(train=train, **settings), chatml, seed=0)


def test_every_source_has_its_account(tmp_path: Path, chatml: Tokenizer) -> None:
    first, second = write(tmp_path / "a.jsonl", 40, broken=2), write(tmp_path / "b.jsonl", 10, "other", broken=1)
    dataset = data(chatml, (f"{first}*0.5", f"{second}*2"), eval=5)
    one, two = dataset.sources
    assert (one.source, one.available, one.read) == (f"{first}*0.5", 42, 21)
    assert (two.source, two.available, two.read, two.refused) == (f"{second}*2", 11, 22, 2)
    for account in dataset.sources:
        assert account.read == account.learned + account.held_out + account.refused
    assert dataset.read == one.read + two.read == 43
    assert sum(account.learned for account in dataset.sources) == len(dataset.learned)
    assert sum(account.held_out for account in dataset.sources) == len(dataset.held_out) > 0
    assert sum(account.refused for account in dataset.sources) == len(dataset.refused)
    assert dataset.shapes == {"question + answer": len(dataset.learned) + len(dataset.held_out)}


def test_rows_are_chosen_from_all_sources_together(tmp_path: Path, chatml: Tokenizer) -> None:
    first, second = write(tmp_path / "a.jsonl", 30), write(tmp_path / "b.jsonl", 30, "other")
    dataset = data(chatml, (str(first), str(second)), rows=20, eval=0)
    assert [account.available for account in dataset.sources] == [30, 30]
    reads = [account.read for account in dataset.sources]
    assert sum(reads) == dataset.read == 20
    assert min(reads) > 0


def test_samples_used_twice_are_held_out_together(tmp_path: Path, chatml: Tokenizer) -> None:
    dataset = data(chatml, f"{write(tmp_path / 'a.jsonl', 20)}*2", eval=8)
    held_out = {example.tokens.tobytes() for example in dataset.held_out}
    assert len(dataset.held_out) == 8
    assert len(held_out) == 4
    assert not held_out & {example.tokens.tobytes() for example in dataset.learned}


def test_a_refusal_says_what_stood_there(tmp_path: Path, chatml: Tokenizer) -> None:
    file = write(tmp_path / "a.jsonl", 20, broken=1)
    with file.open("a", encoding="utf-8") as rows:
        rows.write(json.dumps({"question": "long " * 50, "answer": "a"}) + "\n")
    refused = data(chatml, str(file), max_tokens=60, eval=0).refused
    assert [refusal.as_dict()["line"] for refusal in refused] == [21, 22]
    assert refused[0].excerpt == "question: q 0 · answer: "
    assert refused[1].excerpt.startswith("user: long long long")
    assert len(refused[1].excerpt) <= 160


def test_a_share_of_refusals_above_the_limit_stops_with_reasons_and_places(tmp_path: Path, chatml: Tokenizer) -> None:
    file = write(tmp_path / "a.jsonl", 19, broken=1)
    dataset = data(chatml, str(file), eval=0)
    check_refused(dataset, 0.05)
    with pytest.raises(DataError, match="1 of 20 records of the data are refused") as caught:
        check_refused(dataset, 0.049)
    assert caught.value.found == f"1 × the answer is empty ({file}:20)"
    assert "fill it, or drop the row" in caught.value.do
    assert "--data.refuse_limit 1" in caught.value.do


def test_the_limit_holds_for_a_held_out_file_too(tmp_path: Path, chatml: Tokenizer) -> None:
    held_out = write(tmp_path / "b.jsonl", 3, "other", broken=1)
    dataset = data(chatml, str(write(tmp_path / "a.jsonl", 5)), eval=str(held_out))
    with pytest.raises(DataError, match="1 of 4 records of the held-out data"):
        check_refused(dataset, 0.05)


def test_refusals_are_grouped_by_reason_the_most_frequent_first() -> None:
    refused = [Refusal(Place("a", line), reason, "c") for line, reason in enumerate("xyyzyy", start=1)]
    reasons = by_reason(refused)
    assert [(reason.reason, reason.count) for reason in reasons] == [("y", 4), ("x", 1), ("z", 1)]
    assert reasons[0].places == (Place("a", 2), Place("a", 3), Place("a", 5))


def test_whole_sources_mean_the_same_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jsonl", 1)
    monkeypatch.chdir(tmp_path)
    assert whole_sources(("a.jsonl*2", "*.jsonl", "none.jsonl")) == (
        f"{tmp_path / 'a.jsonl'}*2",
        str(tmp_path / "*.jsonl"),
        "none.jsonl",
    )
    assert whole_sources("a.jsonl") == str(tmp_path / "a.jsonl")
