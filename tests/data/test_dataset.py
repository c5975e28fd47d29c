"""A whole data set: every record accounted for, samples held out by content, nothing learned by accident."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.data.examples import Dataset, prepare
from strop.data.lint import lint
from strop.data.records import Example, Message, Place, Record
from strop.data.split import choose_rows, content_key, held_out_count, hold_out
from strop.data.tokenizer import Tokenizer
from strop.data.tokens import encode_prompt
from strop.errors import DataError, InputError, TemplateError, UsageError
from strop.recipe.schema import DataSection
from tiny_tokenizers import CHATML, KINDS, LLAMA3, write_folder


def write(file: Path, rows: Iterable[object]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(file)


def sums(count: int) -> list[dict[str, str]]:
    return [{"question": f"What is {n} + {n}?", "answer": f"{n} + {n} = {2 * n}"} for n in range(count)]


def data(tokenizer: Tokenizer, train: str, seed: int = 0, context: int | None = None, **section: Any) -> Dataset:
    return prepare(DataSection(train=train, **section), tokenizer, seed=seed, context_tokens=context)


def contents(examples: Iterable[Example]) -> set[tuple[int, ...]]:
    return {tuple(example.tokens.tolist()) for example in examples}


def learned_text(tokenizer: Tokenizer, example: Example) -> str:
    return tokenizer.decode(example.tokens[example.learned].tolist())


def test_every_record_is_accounted_for(tmp_path: Path, chatml: Tokenizer) -> None:
    rows: list[object] = [
        *sums(20),
        {"question": "q"},
        {"question": "", "answer": "a"},
        {"question": "q", "answer": None},
    ]
    dataset = data(chatml, write(tmp_path / "a.jsonl", rows), eval=0.2)
    assert dataset.read == dataset.available == 23
    assert (len(dataset.learned), len(dataset.held_out), len(dataset.refused)) == (16, 4, 3)
    assert [str(refusal.place).rsplit(":", 1)[1] for refusal in dataset.refused] == ["21", "22", "23"]
    assert all(refusal.reason and refusal.cure for refusal in dataset.refused)
    assert sorted(example.id for example in [*dataset.learned, *dataset.held_out]) == list(range(20))


def test_a_sample_is_what_the_row_says(tmp_path: Path, chatml: Tokenizer) -> None:
    dataset = data(chatml, write(tmp_path / "a.jsonl", sums(3)), eval=0, system="Add.")
    example = dataset.learned[2]
    assert learned_text(chatml, example) == "2 + 2 = 4<|im_end|>"
    prompt = encode_prompt(chatml, [Message("system", "Add."), Message("user", "What is 2 + 2?")])
    assert example.tokens[: len(prompt)].tolist() == prompt.tolist()
    assert example.place == Place(str(tmp_path / "a.jsonl"), line=3)
    assert (example.tokens.dtype, example.learned.dtype) == (np.int32, np.bool_)
    with pytest.raises(ValueError, match="read-only"):
        example.tokens[0] = 1


def test_same_seed_same_data_set(tmp_path: Path, chatml: Tokenizer) -> None:
    file = write(tmp_path / "a.jsonl", sums(30))
    one, two, other = (data(chatml, file, seed, rows=20, eval=5) for seed in (7, 7, 8))
    assert one.fingerprint == two.fingerprint != other.fingerprint
    assert [example.id for example in one.held_out] == [example.id for example in two.held_out]
    assert contents(one.held_out) != contents(other.held_out)


def test_the_fingerprint_covers_tokens_what_is_learned_and_the_split(tmp_path: Path, chatml: Tokenizer) -> None:
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant")]
    rows = [{"messages": turns}, {"messages": turns * 2}, {"messages": turns * 3}]
    settings = [
        (rows, {"eval": 0}),
        (rows, {"eval": 1}),
        (rows[::-1], {"eval": 0}),
        (rows, {"eval": 0, "system": "x"}),
        (rows[:2], {"eval": 0}),
    ]
    prints = [data(chatml, write(tmp_path / "a.jsonl", used), **section).fingerprint for used, section in settings]
    assert len(set(prints)) == len(prints)
    # With a shorter generation prompt, the same tokens; but the word "assistant" is learned as well.
    shorter = CHATML.replace("{{- '<|im_start|>assistant\\n' -}}", "{{- '<|im_start|>' -}}")
    learns_more = Tokenizer.from_folder(write_folder(tmp_path / "model", "chatml", template=shorter))
    one, other = (data(used, write(tmp_path / "b.jsonl", rows[:1]), eval=0) for used in (chatml, learns_more))
    assert contents(one.learned) == contents(other.learned)
    assert one.fingerprint != other.fingerprint


def test_the_split_does_not_depend_on_the_order_of_rows(tmp_path: Path, chatml: Tokenizer) -> None:
    rows = sums(40)
    shuffled = random.Random(1).sample(rows, len(rows))
    one = data(chatml, write(tmp_path / "a.jsonl", rows), eval=0.25, rows=30)
    two = data(chatml, write(tmp_path / "b.jsonl", shuffled), eval=0.25, rows=30)
    assert contents(one.held_out) == contents(two.held_out)
    assert contents(one.learned) == contents(two.learned)
    assert (len(one.held_out), one.read, one.available) == (8, 30, 40)


def of_questions(pairs: list[tuple[int, int]], seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The numbers of contents and of questions, of samples that are given as question and answer."""
    keys = [content_key(seed, np.array(pair, np.int32)) for pair in pairs]
    asked = np.array([(question, 100 - question) for question, _ in pairs], np.uint64)
    return np.frombuffer(b"".join(keys), np.uint64).reshape(-1, 2), asked


@settings(max_examples=100)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 2)), min_size=1, max_size=40),
    share=st.floats(0, 0.99),
    seed=st.integers(0, 2**63 - 1),
)
def test_one_question_is_never_on_both_sides(pairs: list[tuple[int, int]], share: float, seed: int) -> None:
    contents, asked = of_questions(pairs, seed)
    count = held_out_count(share, len(pairs))
    chosen = hold_out(contents, asked, np.arange(len(pairs)), count)
    ids = set(np.flatnonzero(chosen).tolist())
    assert len(ids) <= count < len(pairs)
    held = {pairs[number][0] for number in ids}
    assert held.isdisjoint(pairs[number][0] for number in range(len(pairs)) if number not in ids)
    left_out = [sum(q == question for q, _ in pairs) for question in {q for q, _ in pairs} - held]
    assert all(size > count - len(ids) for size in left_out)
    elsewhere = np.random.default_rng(0).permutation(len(pairs))
    again = hold_out(contents[elsewhere], asked[elsewhere], np.arange(len(pairs)), count)
    assert (again == chosen[elsewhere]).all()


@given(count=st.integers(0, 30), seed=st.integers(0, 2**63 - 1))
def test_different_questions_are_held_out_by_the_number_of_their_content_alone(count: int, seed: int) -> None:
    pairs = [(n, n) for n in range(30)]
    contents, asked = of_questions(pairs, seed)
    chosen = hold_out(contents, asked, np.arange(30), count)
    keys = [content_key(seed, np.array(pair, np.int32)) for pair in pairs]
    assert np.flatnonzero(chosen).tolist() == sorted(sorted(range(30), key=keys.__getitem__)[:count])


def test_a_question_with_many_answers_is_not_held_out_more_often_than_others() -> None:
    pairs = [*((0, answer) for answer in range(10)), *((n, 0) for n in range(1, 11))]
    times = np.zeros(len(pairs))
    for seed in range(400):
        contents, asked = of_questions(pairs, seed)
        times += hold_out(contents, asked, np.arange(len(pairs)), 10)
    assert 20 < times[0] < 60  # 400/11: it is held out where it comes first of the eleven
    assert (times[10:] > 300).all()


def test_what_was_cut_to_the_same_tokens_stays_together() -> None:
    contents = np.array([(5, 5), (5, 5), (1, 1), (1, 1), (9, 9)], np.uint64)
    asked = np.array([(1, 1), (2, 2), (2, 2), (3, 3), (4, 4)], np.uint64)
    for count in range(6):
        chosen = hold_out(contents, asked, np.arange(5), count)
        assert chosen.tolist() == [count >= 4] * 4 + [count in (1, 2, 3, 5)]


@settings(max_examples=60)
@given(
    records=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=20),
)
def test_the_samples_of_a_record_stay_together(records: list[list[int]]) -> None:
    contents = np.array([[n, n + 1] for record in records for n in record], np.uint64)
    asked = np.array([[n, 0] for n, record in enumerate(records) for _ in record], np.uint64)
    numbers = np.repeat(np.arange(len(records)) * 3, [len(record) for record in records])
    count = len(contents) // 2
    chosen = hold_out(contents, asked, numbers, count)
    assert chosen.sum() <= count
    sides = {}
    for number, record in enumerate(records):
        (side,) = set(chosen[numbers == 3 * number].tolist())
        assert sides.setdefault(tuple(record), side) == side


def test_questions_with_several_answers_stop_no_run(tmp_path: Path, chatml: Tokenizer) -> None:
    rows = [
        {
            "question": f"What is  {n % 60} + 1?" if n % 2 else f"what IS {n % 60} + 1?",
            "answer": f"Way {n}: {n % 60 + 1}",
        }
        for n in range(240)
    ]
    one, other = (data(chatml, write(tmp_path / "a.jsonl", rows), seed=seed, eval=0.1) for seed in (0, 1))
    for dataset in (one, other):
        learned, held_out = (
            [example.conversation for example in part if example.conversation]
            for part in (dataset.learned, dataset.held_out)
        )
        assert (len(held_out), dataset.refused, dataset.findings) == (24, [], ())
        asked = [{" ".join(q.messages[0].content.lower().split()) for q in part} for part in (learned, held_out)]
        assert asked[0].isdisjoint(asked[1])
        assert "held-out-in-training" not in {finding.kind for finding in lint(learned, held_out)}
    assert contents(one.held_out) != contents(other.held_out)


def test_it_is_said_where_fewer_are_held_out(tmp_path: Path, chatml: Tokenizer) -> None:
    rows = [{"question": "Tell me a joke.", "answer": f"Knock {n}."} for n in range(40)]
    dataset = data(chatml, write(tmp_path / "a.jsonl", rows), eval=0.1)
    assert (len(dataset.learned), len(dataset.held_out)) == (40, 0)
    (finding,) = dataset.findings
    assert (finding.kind, finding.severity, finding.count) == ("held-out-short", "warn", 4)
    assert finding.what.startswith("none of the 4 samples")


def test_what_stops_a_run_is_a_finding_for_who_only_looks(tmp_path: Path, chatml: Tokenizer) -> None:
    def look(rows: Iterable[object], tokenizer: Tokenizer = chatml, **section: Any) -> Dataset:
        settings = DataSection(train=write(tmp_path / "a.jsonl", rows), **section)
        with pytest.raises(InputError) as caught:
            prepare(settings, tokenizer, seed=0)
        dataset = prepare(settings, tokenizer, seed=0, stop=False)
        (stop,) = [finding for finding in dataset.findings if finding.severity == "stop"]
        assert stop.what in caught.value.what
        assert caught.value.do == stop.do
        return dataset

    nothing = look([{"question": "q", "answer": ""}] * 3)
    assert (nothing.read, len(nothing.learned), len(nothing.held_out), len(nothing.refused)) == (3, 0, 0, 3)
    assert (nothing.findings[0].kind, nothing.findings[0].count) == ("nothing-left", 3)
    assert nothing.findings[0].instances[0].text == "the answer is empty"
    all_held_out = look(sums(3), eval=5)
    assert (len(all_held_out.learned), all_held_out.findings[0].kind) == (3, "nothing-left")
    own = look(sums(3), eval=write(tmp_path / "b.jsonl", [{"question": "", "answer": "a"}]))
    assert (len(own.learned), own.held_out_read, len(own.held_out_refused)) == (3, 1, 1)
    both = look(sums(3), eval=write(tmp_path / "c.jsonl", sums(3)))
    assert (len(both.learned), len(both.held_out), len(both.refused)) == (0, 3, 3)
    template = LLAMA3.replace("{{- bos_token }}", "{{- bos_token + bos_token }}")
    twice = Tokenizer.from_folder(write_folder(tmp_path / "twice", {**KINDS["llama3"], "template": template}))
    assert "double-bos" in {finding.kind for finding in look(sums(3), twice).findings}


def test_how_many_are_held_out() -> None:
    assert [held_out_count(share, 100) for share in (0, 0.001, 0.02, 0.5, 1, 99)] == [0, 1, 2, 50, 1, 99]
    assert [held_out_count(0.9, samples) for samples in (0, 1, 2)] == [0, 0, 1]
    with pytest.raises(DataError, match="holding out 5 samples leaves nothing"):
        held_out_count(5, 5)
    with pytest.raises(UsageError, match=r"data.eval is 1.5"):
        held_out_count(1.5, 5)


def test_rows_are_chosen_by_content_and_seed() -> None:
    records = [Record({"q": n}, Place("f", n)) for n in range(50)]
    chosen = choose_rows(records, 10, 3)
    assert len(chosen) == 10
    assert chosen == sorted(chosen)
    assert {49 - number for number in choose_rows(records[::-1], 10, 3)} == set(chosen)
    assert chosen != choose_rows(records, 10, 4)
    assert choose_rows(iter(records), 99, 3) == list(range(50))


def test_a_held_out_file_of_its_own(tmp_path: Path, chatml: Tokenizer) -> None:
    train = write(tmp_path / "train.jsonl", sums(10))
    held = write(
        tmp_path / "test.jsonl", [sums(4)[3], {"question": "", "answer": "x"}, {"question": "new", "answer": "y"}]
    )
    dataset = data(chatml, train, eval=held)
    assert (dataset.read, len(dataset.learned), len(dataset.refused)) == (10, 9, 1)
    assert (dataset.held_out_read, len(dataset.held_out), len(dataset.held_out_refused)) == (3, 2, 1)
    assert dataset.refused[0].reason == "it is in the held-out data as well"
    assert str(dataset.refused[0].place).endswith("train.jsonl:4")
    assert [example.id for example in dataset.held_out] == [10, 12]
    with pytest.raises(DataError, match="nothing is left to learn"):
        data(chatml, train, eval=train)


@pytest.mark.parametrize("overlong", ["refuse", "cut_prompt", "cut_end"])
def test_overlong_samples(tmp_path: Path, chatml: Tokenizer, overlong: str) -> None:
    long = " ".join(f"word{n}" for n in range(60)) + " Last words?"
    rows = [{"question": "Hi", "answer": "Done."}, {"question": long, "answer": "Done."}]
    dataset = data(chatml, write(tmp_path / "a.jsonl", rows), eval=0, max_tokens=90, overlong=overlong)
    assert len(dataset.learned) + len(dataset.refused) == 2
    assert all(len(example) <= 90 for example in dataset.learned)
    if overlong == "refuse":
        assert dataset.refused[0].reason == "longer than 90 tokens"
        assert dataset.refused[0].found.endswith(" tokens")
    elif overlong == "cut_end":
        assert dataset.refused[0].reason.startswith("the prompt alone fills 90 tokens")
    else:
        example = dataset.learned[1]
        assert learned_text(chatml, example) == "Done.<|im_end|>"
        text = chatml.decode(example.tokens.tolist())
        assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n")
        asked = text.split("user\n")[1].split("<|im_end|>")[0]
        assert long.endswith(asked)
        assert asked.endswith("Last words?")
        assert len(example) >= 85


def test_cut_end_keeps_the_beginning_of_the_answer(tmp_path: Path, chatml: Tokenizer) -> None:
    answer = " ".join(f"step{n}" for n in range(60))
    long, short = {"question": "Hi", "answer": answer}, {"question": "Hi", "answer": "Ho"}
    file = write(tmp_path / "a.jsonl", [long])
    with pytest.raises(TemplateError, match="an answer would be learned without its stop token"):
        data(chatml, file, eval=0, max_tokens=90, overlong="cut_end")
    both = data(chatml, write(tmp_path / "b.jsonl", [long, short]), eval=0, max_tokens=90, overlong="cut_end")
    assert [(one.kind, one.severity, one.count) for one in both.findings] == [("answers-cut", "warn", 1)]
    example = both.learned[0]
    assert len(example) == 90
    assert answer.startswith(learned_text(chatml, example))
    assert not chatml.stop_ids.intersection(example.tokens[example.learned].tolist())
    with pytest.raises(DataError, match="nothing is left") as caught:
        data(chatml, file, eval=0, max_tokens=90, overlong="cut_prompt")
    assert "without the user's text" in caught.value.found


@settings(max_examples=30)
@given(
    words=st.lists(st.sampled_from(["a", "日本", "🙂🙂", "\n", "word", "<|im_end|>", "  "]), min_size=10, max_size=60),
    limit=st.integers(40, 70),
)
def test_cut_prompt_fits_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, chatml: Tokenizer, words: list[str], limit: int
) -> None:
    turns = [
        ("user", "x" + "".join(words)),
        ("assistant", "b"),
        ("user", " ".join(words) + "?"),
        ("assistant", "Done."),
    ]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    file = write(tmp_path_factory.mktemp("cut") / "a.jsonl", [row])
    try:
        dataset = data(chatml, file, eval=0, max_tokens=limit, overlong="cut_prompt", system="")
    except DataError as error:
        assert "without the user's text" in error.found
        return
    (example,) = dataset.learned
    assert len(example) <= limit
    assert learned_text(chatml, example) == "b<|im_end|>Done.<|im_end|>"


@pytest.mark.parametrize(
    ("question", "room", "left"),
    [("日本x", 4, "本x"), ("  \n x  ", 3, "x  "), ("word   ", 1, None), ("x", 0, None)],
)
def test_cut_prompt_cuts_whole_characters_and_leaves_a_question(
    tmp_path: Path, chatml: Tokenizer, question: str, room: int, left: str | None
) -> None:
    """With room for so many tokens of the question."""
    file = write(tmp_path / "a.jsonl", [{"question": question, "answer": "Done."}, {"question": "x", "answer": "."}])
    frame = len(data(chatml, file, eval=0).learned[0]) - len(chatml.encode(question, special=False))
    dataset = data(chatml, file, eval=0, max_tokens=frame + room, overlong="cut_prompt")
    if left is None:
        assert "without the user's text" in dataset.refused[0].reason
    else:
        assert f"user\n{left}<|im_end|>" in chatml.decode(dataset.learned[0].tokens.tolist())


def test_the_context_is_the_limit_where_the_recipe_names_none(tmp_path: Path, chatml: Tokenizer) -> None:
    file = write(tmp_path / "a.jsonl", [*sums(2), {"question": "word " * 50, "answer": "a"}])
    assert len(data(chatml, file, eval=0, context=100).refused) == 1
    assert len(data(chatml, file, eval=0, context=100, max_tokens=1000).refused) == 0
    assert len(data(chatml, file, eval=0).refused) == 0


def test_nothing_to_learn_names_the_three_most_frequent_reasons(tmp_path: Path, chatml: Tokenizer) -> None:
    empty = [{"question": "", "answer": "a"}] * 3 + [{"question": "q", "answer": ""}] * 2
    rows = [*empty, {"question": None, "answer": "a"}, {"question": "q", "answer": []}]
    with pytest.raises(DataError) as caught:
        data(chatml, write(tmp_path / "a.jsonl", rows))
    assert caught.value.found == (
        "7 read, 7 refused: 3 × the question is empty; 2 × the answer is empty; 1 × 'question' is not a text"
    )
    assert caught.value.do == "fill it, or drop the row"


def test_a_template_without_stop_tokens_does_not_start(tmp_path: Path) -> None:
    template = CHATML.replace("message['content'] + '<|im_end|>\\n'", "message['content'] + '\\n'")
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path / "model", "chatml", template=template))
    with pytest.raises(DataError) as caught:
        data(tokenizer, write(tmp_path / "a.jsonl", sums(3)))
    assert "3 × " in caught.value.found
    assert "would not end the answer in a stop token" in caught.value.found


def test_a_sample_without_its_stop_token_stops_the_run(
    tmp_path: Path, chatml: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By construction there is none; should the construction break, the last check must hold."""
    from strop.data import encoding
    from strop.data.tokens import Encoded

    def shorten(tokenizer: Tokenizer, conversation: object, encoded: Encoded, *_: object) -> Encoded:
        return Encoded(encoded.tokens, encoded.learned & (encoded.tokens != 2))

    monkeypatch.setattr(encoding, "fit", shorten)
    with pytest.raises(TemplateError, match=r"a.jsonl:1: an answer would be learned without its stop token"):
        data(chatml, write(tmp_path / "a.jsonl", sums(3)), eval=0)


def test_a_turn_that_the_template_refuses_is_one_refusal(
    tmp_path: Path, tokenizer_of: Callable[[str], Tokenizer]
) -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHATML
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path / "model", "chatml", template=template))
    turns = [{"role": role, "content": "x"} for role in ("system", "user", "assistant")]
    file = write(tmp_path / "a.jsonl", [{"messages": turns}, {"messages": turns[1:]}])
    dataset = data(tokenizer, file, eval=0)
    assert len(dataset.learned) == 1
    assert "refuses the conversation: no system turn" in dataset.refused[0].reason


def test_progress_ends_at_the_total(tmp_path: Path, chatml: Tokenizer) -> None:
    seen: list[tuple[int, int]] = []
    section = DataSection(train=write(tmp_path / "a.jsonl", sums(5)), eval=write(tmp_path / "b.jsonl", sums(9)[6:]))
    prepare(section, chatml, seed=0, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == [5, 8, 8]
    assert all(done < total for done, total in seen[:-1])
    assert seen[-1] == (8, 8)
