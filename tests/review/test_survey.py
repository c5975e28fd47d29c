"""A survey says of the data what the training step will see, and what each limit does to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from strop.data.examples import prepare
from strop.data.order import step_samples
from strop.data.packing import pack
from strop.data.tokenizer import Tokenizer
from strop.errors import UsageError
from strop.recipe import resolve
from strop.review.findings import prompt_findings
from strop.review.survey import Survey, select

Take = Callable[..., Survey]


def test_the_account_is_that_of_prepare(surveyed: Take, model: Path, data: Path) -> None:
    survey = surveyed(data__eval=3)
    recipe = resolve(model=str(model), data=str(data), overrides=[("data.eval", "3")]).recipe
    dataset = prepare(recipe.data, Tokenizer.from_folder(model), seed=0)
    assert survey.dataset.fingerprint == dataset.fingerprint
    found = survey.as_dict()
    assert list(found)[2:9] == ["read", "learned", "held_out", "refused", "tokens", "learned_tokens", "findings"]
    assert (found["read"], found["held_out"], found["refused"]) == (86, 3, 3)
    assert found["read"] == found["learned"] + found["held_out"] + found["refused"]
    assert found["tokens"] == sum(map(len, dataset.learned))
    assert found["learned_tokens"] == sum(int(example.learned.sum()) for example in dataset.learned)
    assert sum(found["lengths"]["counts"]) == found["learned"]
    assert all(low < high for low, high in pairwise(found["lengths"]["bins"]))
    assert [one["count"] for one in found["refusals"]] == [1, 1, 1]
    assert found["refusals"][0]["places"] == [f"{data}:84"]
    assert found["prompt_equal"] is True
    assert found["prompts_compared"] == 83
    assert json.loads(json.dumps(found)) == found


def test_held_out_samples_of_their_own_file_are_read_too(surveyed: Take, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"question": "q", "answer": "a"}\n{"question": "q"}\n', encoding="utf-8")
    found = surveyed(data__eval=other).as_dict()
    assert (found["read"], found["learned"], found["held_out"], found["refused"]) == (88, 83, 1, 4)
    assert [(one["name"], one["read"]) for one in found["sources"]] == [(str(data), 86), (str(other), 2)]


@pytest.mark.parametrize("way", ["refuse", "cut_prompt", "cut_end"])
def test_limits_are_reckoned_from_whole_lengths(surveyed: Take, way: str) -> None:
    free = surveyed(data__eval=0)
    assert free.whole == {}
    longest = max(map(len, free.dataset.learned))
    limited = surveyed(data__eval=0, data__max_tokens=longest - 1, data__overlong=way)
    assert limited.limit == longest - 1
    touched = [example for example in free.dataset.learned if len(example) == longest]
    assert {number: len(example) for number, example in limited.whole.items()} == {
        example.id: longest for example in touched
    }
    assert limited.everything == free.everything
    at_limit = next(cost for cost in limited.costs if cost.max_tokens == longest - 1)
    assert (at_limit.over, at_limit.tokens, at_limit.cut_tokens) == (1, longest, 1)
    assert next(cost for cost in limited.costs if cost.max_tokens >= longest).over == 0
    kept = {example.id for example in limited.dataset.learned}
    assert (touched[0].id in kept) == (way != "refuse")
    if way != "refuse":
        cut = next(example for example in limited.dataset.learned if example.id == touched[0].id)
        assert len(limited.uncut(cut)) == longest > len(cut)
    # A shortened question is no prompt that chat differs from.
    assert not limited.unequal


def test_packs_are_those_of_the_step(surveyed: Take) -> None:
    survey = surveyed(data__eval=0, train__samples_per_step=5, train__seed=3)
    learned = survey.dataset.learned
    for step in (0, 4, 9):
        expected = pack([learned[i] for i in step_samples(3, step, len(learned), 5)], 200)
        found = survey.packs(step, 200)
        assert [one.sample_ids_D.tolist() for one in found] == [one.sample_ids_D.tolist() for one in expected]
        assert all(np.array_equal(a.tokens_T, b.tokens_T) for a, b in zip(found, expected, strict=True))


def test_samples_by_number_by_text_and_from_the_first(surveyed: Take) -> None:
    survey = surveyed(data__eval=4)
    first = select(survey, [], None, 6)
    assert [example.place.line for example in first.samples] == [1, 2, 3, 4, 5, 6]
    assert (first.found, first.words) == (83, "")
    held_out = survey.dataset.held_out[0]
    numbered = select(survey, [81, held_out.id + 1], None, 0)
    assert [example.place.line for example in numbered.samples] == [81, held_out.id + 1]
    assert [example.place.line for example in select(survey, [], "苹果", 5).samples] == [81]
    some = select(survey, [], "WHAT IS 1", 4)
    assert (len(some.samples), some.found) == (4, 11)
    assert select(survey, [], "nowhere", 4).found == 0


def test_a_refused_record_is_shown_by_its_number(surveyed: Take) -> None:
    survey = surveyed()
    found = select(survey, [84, 1], None, 3)
    assert [refusal.reason for refusal in found.refused] == ["the question is empty"]
    assert [example.place.line for example in found.samples] == [1]
    for number in (0, 87, -1):
        with pytest.raises(UsageError, match=f"--sample {number}: there is no such sample") as caught:
            select(survey, [number], None, 3)
        assert "from 1 to 86" in caught.value.expected


def test_a_prompt_that_differs_stops_a_run(surveyed: Take) -> None:
    from dataclasses import replace

    from strop.data.prompts import compare_prompts

    survey = surveyed()
    example = survey.dataset.learned[0]
    shifted = replace(example, tokens=example.tokens[1:], learned=example.learned[1:])
    (finding,) = prompt_findings(compare_prompts(shifted, survey.tokenizer), survey.tokenizer)
    assert (finding.kind, finding.severity, finding.count) == ("prompt-differs", "stop", 1)
    assert finding.instances[0].place == example.place
    assert "answer 1, token 1: trained 'system" in finding.instances[0].text
    assert prompt_findings([], survey.tokenizer) == []
