"""Records counted by source, refusals by reason, whatever the files are."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from strop.data.counts import SourceCount, count_sources, group_refusals, is_first, number_of
from strop.data.examples import Dataset
from strop.data.records import Example, Place, Refusal


def example(file: str, number: int, tokens: int = 4, learned: int = 1) -> Example:
    return Example(np.zeros(tokens, np.int32), np.arange(tokens) < learned, number, Place(file, number + 1))


def dataset(learned: list[Example], held_out: list[Example], refused: list[Refusal]) -> Dataset:
    read = len(learned) + len(held_out) + len(refused)
    return Dataset(learned, held_out, refused, read, read, 0, [], "")


def test_every_record_is_counted_in_its_file() -> None:
    made = dataset(
        [example("a.jsonl", 0), example("b.jsonl", 1, 6, 3), example("b.jsonl", 2)],
        [example("a.jsonl", 3)],
        [Refusal(Place("b.jsonl", 9), "why", "cure")],
    )
    assert count_sources(made) == [SourceCount("a.jsonl", 1, 1, 0, 4, 1), SourceCount("b.jsonl", 2, 0, 1, 10, 4)]
    assert [one.read for one in count_sources(made)] == [2, 3]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40), st.sampled_from("lhr")), min_size=1, max_size=80))
def test_sources_are_few_and_sum_to_everything(records: list[tuple[str, int, str]]) -> None:
    files = [f"MATH/train/{folder}/{number}.json" for folder, number, _ in records]
    kinds = [kind for _, _, kind in records]
    made = dataset(
        [example(file, index) for index, (file, kind) in enumerate(zip(files, kinds, strict=True)) if kind == "l"],
        [example(file, index) for index, (file, kind) in enumerate(zip(files, kinds, strict=True)) if kind == "h"],
        [Refusal(Place(file), "r", "c") for file, kind in zip(files, kinds, strict=True) if kind == "r"],
    )
    found = count_sources(made)
    assert len(found) <= 12
    assert [sum(getattr(one, name) for one in found) for name in ("learned", "held_out", "refused", "read")] == [
        *(kinds.count(kind) for kind in "lhr"),
        len(records),
    ]
    if len(set(files)) > 12:
        assert {one.name for one in found} == {file.rpartition("/")[0] for file in files}


def test_samples_of_one_record_are_one_record() -> None:
    first, second = example("a", 5), example("a", 5 | 1 << 32)
    assert [number_of(first), number_of(second)] == [6, 6]
    assert [is_first(first), is_first(second)] == [True, False]
    (count,) = count_sources(dataset([first, second], [], []))
    assert (count.learned, count.tokens) == (1, 8)


def test_reasons_come_with_the_most_frequent_first() -> None:
    refused = [Refusal(Place("f", n), "rare" if n == 3 else "often", f"cure {n}") for n in range(1, 9)]
    often, rare = group_refusals(refused)
    assert (often.reason, often.cure, len(often.refusals), len(often.first)) == ("often", "cure 1", 7, 5)
    assert [one.place.line for one in often.first] == [1, 2, 4, 5, 6]
    assert (rare.reason, rare.refusals) == ("rare", (refused[2],))
    assert group_refusals([]) == []
