"""A run, loaded again: finished or stopped, asked, measured and compared."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from strop.data.examples import prepare
from strop.errors import DataError, InputError, ModelError
from strop.evaluate.compare import compare
from strop.evaluate.held_out import held_out_loss
from strop.evaluate.run_eval import answer_and_score, evaluate_run, held_out_of
from strop.evaluate.tuned import TunedModel, load_tuned
from strop.run.folder import RunFolder
from strop.training.session import resume_run
from tiny_run import Tiny, events, rows, write_rows


@pytest.fixture(scope="module")
def model(finished: RunFolder) -> TunedModel:
    return load_tuned(finished.path)


def watched(run: RunFolder, step: int) -> list[dict[str, Any]]:
    return [sample for sample in run.lines(run.samples) if sample["step"] == step]


def holds(model: TunedModel, folder: Path) -> bool:
    """Whether a model's adapter is that of a folder."""
    matrices = model.adapter.named()
    written = load_file(folder / "adapter_model.safetensors")
    return matrices.keys() == written.keys() and all(torch.equal(matrices[name], written[name]) for name in written)


class Killed(BaseException):
    """The process is gone."""


class KillAfter:
    """Kills a run after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_event(self, event: dict[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] == self.step:
            raise Killed


# ── loading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_finished_run_is_loaded_with_all_it_remembers(model: TunedModel, finished: RunFolder, tiny: Tiny):
    assert model.recipe.data.system == "Be exact."
    assert model.recipe.adapter == tiny.recipe().recipe.adapter
    assert holds(model, finished.adapter)
    assert model.run == finished


def test_it_answers_as_it_did_while_it_was_trained(model: TunedModel, finished: RunFolder):
    for step, tuned in ((0, False), (6, True)):
        samples = watched(finished, step)
        answers = model.ask([sample["question"] for sample in samples], tuned=tuned, max_tokens=5)
        assert [answer.text for answer in answers] == [sample["answer"] for sample in samples]
    assert [sample["answer"] for sample in watched(finished, 0)] != [
        sample["answer"] for sample in watched(finished, 6)
    ]


def test_a_temperature_draws_the_same_answers_every_time(model: TunedModel):
    hot = model.ask(["Why?"], temperature=2.0, max_tokens=20)
    assert hot == model.ask(["Why?"], temperature=2.0, max_tokens=20)
    assert hot != model.ask(["Why?"], max_tokens=20)


def test_a_stopped_run_is_loaded_from_its_newest_whole_checkpoint(tiny: Tiny, tmp_path: Path):
    with pytest.raises(Killed):
        tiny.train(tmp_path / "run", listener=KillAfter(5))
    run = RunFolder(tmp_path / "run")
    for step in (4, 2):
        checkpoint = run.checkpoints / f"step-{step:06d}"
        assert holds(load_tuned(run.path), checkpoint)
        (checkpoint / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        load_tuned(run.path)
    assert caught.value.what == f"{run.path} has no adapter yet"
    assert f"strop resume {run.path}" in caught.value.do
    resume_run(run.path)
    assert load_tuned(run.path).ask(["Why?"], max_tokens=1)


def test_what_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="is not a run"):
        load_tuned(tmp_path)


def test_another_template_than_the_trained_one_is_refused(own_tiny: Tiny, tmp_path: Path):
    run = own_tiny.train(tmp_path / "run", {"train.steps": 1})
    path = own_tiny.model / "chat_template.jinja"
    kept = path.read_text()
    path.write_text(kept.replace("Be kind.", "Be unkind."))
    with pytest.raises(InputError) as caught:
        load_tuned(run.path)
    assert caught.value.what == f"the template of run {run.path} has changed since it was trained"
    path.write_text(kept)
    load_tuned(run.path)
    own_tiny.model.rename(tmp_path / "gone")
    with pytest.raises(ModelError, match="there is no model"):
        load_tuned(run.path)


def test_a_damaged_adapter_is_refused(own_tiny: Tiny, tmp_path: Path):
    run = own_tiny.train(tmp_path / "run", {"train.steps": 1})
    path = run.adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ModelError, match="holds no readable adapter"):
        load_tuned(run.path)


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_is_measured_on_what_it_held_out(finished: RunFolder):
    measures = evaluate_run(finished.path, answers=2)
    last = events(finished, "watch")[-1]
    assert measures["loss"] == pytest.approx(last["held_out_loss"], rel=1e-5)
    assert measures["learned_tokens"] == last["held_out_tokens"]
    assert (measures["samples"], measures["refused"], measures["asked"]) == (4, 0, 2)


def test_a_run_is_measured_on_other_data(finished: RunFolder, model: TunedModel, tmp_path: Path):
    data = write_rows(tmp_path / "other.jsonl", [*rows(9), {"question": "?", "answer": ""}])
    measures = evaluate_run(finished.path, data=data)
    settings = model.recipe.data.model_copy(update={"train": str(data), "eval": 0.0})
    expected = held_out_loss(
        model.decoder, model.adapter, prepare(settings, model.tokenizer, seed=0).learned, pack_tokens=1
    )
    assert expected is not None
    assert measures["loss"] == pytest.approx(expected.mean, rel=1e-6)
    assert measures["learned_tokens"] == expected.learned_tokens
    assert (measures["samples"], measures["refused"], measures["asked"]) == (9, 1, 0)


def test_right_answers_are_counted_against_the_references(
    finished: RunFolder, model: TunedModel, monkeypatch: pytest.MonkeyPatch
):
    asked: list[dict[str, Any]] = []

    def answer(self: TunedModel, questions: Any, *, tuned: bool, max_tokens: int) -> list[Any]:
        from strop.evaluate.ask import AnswerText

        asked.append({"tuned": tuned, "max_tokens": max_tokens, "questions": len(questions)})
        texts = [question.reference for question in questions[:-1]] + ["I do not know."]
        return [AnswerText(text, True, 1) for text in texts]

    monkeypatch.setattr(TunedModel, "answer", answer)
    examples = held_out_of(model)
    counted = answer_and_score(model, examples, tuned=False)
    assert (counted.right, counted.asked) == (3, 4)
    assert asked == [{"tuned": False, "max_tokens": 5, "questions": 4}]
    measures = evaluate_run(finished.path, answers=3)
    assert (measures["right"], measures["loose"], measures["asked"]) == (2, 2, 3)


def test_without_held_out_samples_a_file_is_asked_for(tiny: Tiny, tmp_path: Path):
    run = tiny.train(tmp_path / "run", {"data.eval": 0, "train.steps": 1})
    with pytest.raises(DataError) as caught:
        evaluate_run(run.path)
    assert "--data FILE" in caught.value.do


def test_held_out_samples_of_changed_data_are_not_trusted(own_tiny: Tiny, tmp_path: Path):
    """More rows are split in another way, and what was learned would be measured as if it had not been."""
    run = own_tiny.train(tmp_path / "run", {"train.steps": 1, "data.eval": 0.1})
    write_rows(own_tiny.data, rows(80))
    with pytest.raises(InputError) as caught:
        evaluate_run(run.path)
    assert caught.value.what == f"the data of run {run.path} has changed since it was trained"
    assert evaluate_run(run.path, data=own_tiny.data)["samples"] == 80


# ── comparing ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_base_and_tuned_are_compared_on_what_was_watched(finished: RunFolder):
    before, after = watched(finished, 0), watched(finished, 6)
    assert compare(finished.path) == [
        {"question": b["question"], "reference": b["reference"], "base": b["answer"], "tuned": a["answer"]}
        for b, a in zip(before, after, strict=True)
    ]


def test_base_and_tuned_are_compared_on_questions_of_ones_own(finished: RunFolder, model: TunedModel):
    (answer,) = compare(finished.path, ask=["What is 3 + 8?"])
    base, tuned = (model.ask(["What is 3 + 8?"], tuned=tuned, max_tokens=5)[0].text for tuned in (False, True))
    assert answer == {"question": "What is 3 + 8?", "reference": None, "base": base, "tuned": tuned}


def test_nothing_to_compare_is_said(own_tiny: Tiny, tmp_path: Path):
    run = own_tiny.train(tmp_path / "run", {"train.steps": 1})
    run.samples.unlink()
    with pytest.raises(InputError, match="watched itself by no question"):
        compare(run.path)
