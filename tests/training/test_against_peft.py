"""The real model beside transformers + PEFT + bitsandbytes: the loss curve, and what the adapter is worth there."""

from pathlib import Path

import pytest

from against_peft import Job, make_job, peft_held_out_loss, peft_side, strop_side
from strop.data.examples import prepare
from strop.data.problems import write_problems
from strop.data.tokenizer import Tokenizer
from strop.evaluate.run_eval import evaluate_run
from strop.recipe import resolve
from strop.training.session import train_run

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "train.jsonl"


def compare_curves(job: Job):
    ours, theirs = strop_side(job), peft_side(job)
    differences = [abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True)]
    assert max(differences) < 1e-4, differences
    # The curve must be one of learning: agreement on a model that does not move would prove little.
    assert ours.losses[-1] < ours.losses[0] - 0.3


def compare_held_out(run: Path, model: Path, **settings):
    """`strop eval` of what a run held out, and PEFT's loss of the same samples with the run's adapter."""
    ours = evaluate_run(run, answers=0)
    resolved = resolve(model=str(model), data=settings["data"], overrides=settings["overrides"])
    held_out = prepare(resolved.recipe.data, Tokenizer.from_folder(model), seed=0, context_tokens=2048).held_out
    samples = [(example.tokens.tolist(), example.learned.tolist()) for example in held_out]
    assert ours["samples"] == len(samples) > 0
    assert ours["loss"] == pytest.approx(peft_held_out_loss(model, run / "adapter", samples), abs=1e-4)
    return ours


def test_twenty_steps_have_the_same_losses(smollm2_folder, tmp_path):
    problems = write_problems(tmp_path / "problems") / "train"
    compare_curves(make_job(smollm2_folder, str(problems), None, steps=20, samples=2))


def test_peft_gives_a_run_the_same_held_out_loss(smollm2_folder, tmp_path):
    data = str(write_problems(tmp_path / "problems", learn=40, held_out=0) / "train")
    overrides = [
        ("data.eval", "8"),
        ("train.steps", "3"),
        ("train.samples_per_step", "4"),
        ("watch.answer_tokens", "4"),
    ]
    resolved = resolve(model=str(smollm2_folder), data=data, overrides=overrides)
    train_run(resolved, folder=tmp_path / "run")
    compare_held_out(tmp_path / "run", smollm2_folder, data=data, overrides=overrides)


@pytest.mark.slow
@pytest.mark.skipif(not GSM8K.is_file(), reason="GSM8K lies beside this checkout only where it was put there")
def test_gsm8k_twenty_steps_of_sixteen_have_the_same_losses(smollm2_folder):
    compare_curves(make_job(smollm2_folder, str(GSM8K), "question:answer", steps=20, samples=16))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not GSM8K.is_file(), reason="GSM8K lies beside this checkout only where it was put there")
def test_gsm8k_sixty_steps_learn_and_peft_agrees(smollm2_folder, tmp_path):
    overrides = [("data.map", "question:answer"), ("data.rows", "2000"), ("train.steps", "60")]
    resolved = resolve(model=str(smollm2_folder), data=str(GSM8K), overrides=overrides)
    summary = train_run(resolved, folder=tmp_path / "run")
    assert summary["held_out_loss"]["after"] < summary["held_out_loss"]["before"] - 0.3
    ours = compare_held_out(tmp_path / "run", smollm2_folder, data=str(GSM8K), overrides=overrides)
    assert ours["loss"] == pytest.approx(summary["held_out_loss"]["after"], abs=1e-5)
