"""How often lint is right: faults planted in made samples, and GSM8K, in which next to nothing is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import data_lint
from strop.data.conversations import RowReader
from strop.data.lint import fix, lint
from strop.data.lint.characters import Characters, plain
from strop.data.lint.check import examine
from strop.data.lint.sketches import BINS, GRAM, candidate_pairs, sketch
from strop.data.problems import problem
from strop.data.records import Conversation, Message, Place
from strop.data.sources import read_records

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"


@pytest.fixture(scope="module")
def planted() -> data_lint.Planted:
    return data_lint.plant(4000, seed=7, share=0.003, held_out=300)


def test_planted_faults_are_found_and_little_else(planted: data_lint.Planted) -> None:
    learned, held_out = planted.conversations()
    scores = data_lint.scores(planted, examine(learned, held_out).rows)
    assert len(scores) == 26
    poor = {kind: score for kind, score in scores.items() if score[0] < 0.9 or score[1] < 0.9}
    assert poor == {}


def test_what_is_not_planted_is_not_found(planted: data_lint.Planted) -> None:
    clean = len(planted.rows) // 10
    learned = planted.conversations()[0][:clean]
    assert {finding.kind for finding in lint(learned)} <= {"languages"}


def test_fix_answers_what_was_planted(planted: data_lint.Planted) -> None:
    learned, held_out = planted.conversations()
    fixed = fix(learned, held_out)
    assert {change.kind for change in fixed.changes} == {
        "held-out-in-training",
        "held-out-overlap",
        "exact-duplicates",
        "empty-answers",
        "mojibake",
        "lost-backslashes",
        "control-characters",
        "invisible-characters",
        "carriage-returns",
    }
    again = fix(fixed.conversations, held_out)
    assert (again.conversations, again.changes) == (fixed.conversations, ())


def test_made_problems_are_only_variations_of_each_other() -> None:
    problems = [problem(0, index) for index in range(400)]
    learned = [
        Conversation((Message("user", one.problem), Message("assistant", one.solution)), Place("made.jsonl", line=line))
        for line, one in enumerate(problems, 1)
    ]
    assert {finding.kind for finding in lint(learned[100:], learned[:100])} <= {"same-but-for-numbers"}


@pytest.mark.skipif(not GSM8K.is_dir(), reason="GSM8K lies beside this checkout only where it was put there")
def test_gsm8k_has_one_zero_width_blank_and_no_other_fault() -> None:
    learned, held_out = (_read(GSM8K / name) for name in ("train.jsonl", "test.jsonl"))
    found = {finding.kind: finding for finding in lint(learned, held_out)}
    assert {kind: finding.count for kind, finding in found.items()} == {"invisible-characters": 1}
    assert found["invisible-characters"].instances[0].place.line == 7389


def _read(path: Path) -> list[Conversation]:
    reader = RowReader("question:answer")
    return [one for record in read_records(path) if isinstance(one := reader.read(record), Conversation)]


def test_sketches_estimate_the_jaccard_similarity_of_the_grams(planted: data_lint.Planted) -> None:
    texts = [f"{asked} {answered}" for asked, answered in planted.rows[:60]]
    # Halves of two texts put together give similarities between 0 and 1.
    texts += [
        one[: len(one) * part // 8] + other[len(other) * part // 8 :]
        for part, (one, other) in enumerate(zip(texts[:8], texts[8:16], strict=True))
    ]
    rows = np.arange(len(texts))
    sketches, usable = sketch(Characters(texts), rows, len(texts), np.ones(len(texts), np.bool_))
    assert usable.all()
    grams = [{plain(text)[at : at + GRAM] for at in range(len(plain(text)) - GRAM + 1)} for text in texts]
    errors = []
    for one in range(60):
        for other in range(60, len(texts)):
            true = len(grams[one] & grams[other]) / len(grams[one] | grams[other])
            errors.append(float((sketches[one] == sketches[other]).mean()) - true)
    # Each is a mean of 63 draws: its deviation is at most √(¼ / 63) = 0.063.
    assert abs(np.mean(errors)) < 0.01
    assert np.std(errors) < 0.063
    assert sketches.shape == (len(texts), BINS)


def test_a_bucket_of_thousands_gives_thousands_of_pairs() -> None:
    sketches = np.tile(np.arange(BINS, dtype=np.uint32), (3000, 1))
    earlier, later, similarity = candidate_pairs(sketches, np.ones(3000, np.bool_))
    assert len(earlier) <= 2 * 3000
    assert set(later.tolist()) == set(range(1, 3000))
    assert (earlier < later).all()
    assert (similarity == 1).all()


def test_pairs_below_the_least_similarity_are_those_left_out() -> None:
    chance = np.random.default_rng(0)
    sketches = chance.integers(0, 3, (400, BINS)).astype(np.uint32)
    usable = chance.random(400) < 0.9
    everything = candidate_pairs(sketches, usable)
    assert len(everything[0]) > 1000
    for least in (0.3, 0.4, 0.6):
        kept = everything[2] >= least
        for some, all_of_them in zip(candidate_pairs(sketches, usable, least), everything, strict=True):
            assert some.tolist() == all_of_them[kept].tolist()
    assert np.allclose(everything[2], (sketches[everything[0]] == sketches[everything[1]]).mean(axis=1))
