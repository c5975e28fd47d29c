"""A run on the general path, whole: trained, killed, resumed, asked, compared, measured, and loaded by PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_resume import Killed, Listener, kill

from strop.errors import BudgetError, UsageError
from strop.evaluate.compare import compare
from strop.evaluate.run_eval import evaluate_run
from strop.evaluate.tuned import load_tuned
from strop.kernels import nf4
from strop.model.general.files import GeneralTensors
from strop.model.general.trial import documents_batch
from strop.run.folder import RunFolder
from strop.training.session import plan_run, resume_run, train_run
from tiny_general import PLAN, their_model, write_run_model
from tiny_run import PLAN as USUAL
from tiny_run import Tiny, course, events, rows, values, write_rows


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    root = tmp_path_factory.mktemp("general")
    return Tiny(write_run_model(root / "model"), write_rows(root / "data.jsonl", rows()))


@pytest.fixture(scope="module")
def finished(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return tiny.train(tmp_path_factory.mktemp("finished") / "run", plan=PLAN)


def test_it_learns_and_says_which_path_it_went(finished: RunFolder):
    losses = values(finished, "step", "loss")
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 1
    assert finished.fact("manifest.json", "model", "family") == "gpt_neox (general path)"
    assert finished.fact("manifest.json", "versions", "transformers")
    (start,) = events(finished, "start")
    assert "General path (transformers): slower" in start["reason"]
    assert "General path (transformers): slower" in (finished.path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("kind", "number"), [("answer", 4), ("step", 4)])
def test_killed_it_continues_to_the_same_bytes(kind: str, number: int, tiny: Tiny, finished: RunFolder, tmp_path: Path):
    run = tmp_path / "run"
    with pytest.raises(Killed):
        tiny.train(run, plan=PLAN, listener=Listener(kind, number, kill))
    resume_run(run)
    assert course(RunFolder(run)) == course(finished)


def test_another_plan_gives_the_same_losses(tiny: Tiny, finished: RunFolder, tmp_path: Path):
    other = tiny.train(tmp_path / "run", plan={**PLAN, "pack_tokens": 64, "recompute_layers": 2, "loss_chunk": 16})
    for mine, theirs in zip(values(other, "step", "loss"), values(finished, "step", "loss"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    for name in ("learned_tokens", "tokens"):
        assert values(other, "step", name) == values(finished, "step", name)


def test_it_can_be_asked_compared_and_measured(finished: RunFolder):
    tuned = load_tuned(finished.path)
    (answer,) = tuned.ask(["What is 8 + 4?"], max_tokens=5)
    assert answer.tokens == 5 or answer.stopped
    # The last answers that it gave while it was trained are those that it gives now.
    last = [line for line in finished.lines(finished.samples) if line["step"] == 6]
    pairs = compare(finished.path)
    assert [pair["tuned"] for pair in pairs] == [line["answer"] for line in last]
    found = evaluate_run(finished.path, answers=1)
    (end,) = events(finished, "end")
    assert found["loss"] == pytest.approx(end["held_out_loss"]["after"], rel=1e-5)


def test_peft_gives_the_runs_logits(tiny: Tiny, finished: RunFolder, tmp_path: Path):
    """transformers with the weights that NF4 leaves, and the run's adapter folder as it lies on the disk."""
    folder, tensors = tmp_path / "model", GeneralTensors(tiny.model)
    folder.mkdir()
    (folder / "config.json").write_text((tiny.model / "config.json").read_text())
    state = load_file(tiny.model / "model.safetensors")
    for name in tensors.projections:
        state[name] = nf4.dequantize(nf4.quantize(state[name]))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    theirs = PeftModel.from_pretrained(their_model(folder), finished.adapter).eval()
    tuned = load_tuned(finished.path)
    prompt = torch.arange(5, 25)
    with torch.no_grad():
        expected = theirs(prompt[None]).logits[0]
    ours = tuned.decoder.logits(documents_batch([prompt], torch.device("cpu")), tuned.adapter)
    assert ((ours - expected).norm() / expected.norm()).item() < 1e-5


def test_the_plan_is_marked_and_refuses_what_does_not_fit(tiny: Tiny):
    choice = plan_run(tiny.recipe())
    assert choice.as_dict()["path"].startswith("general path")
    assert choice.forecast.plan.head == "dense"
    assert choice.forecast.plan.prefixes == "repeated"
    peaks = [point.peak_bytes for point in choice.curve]
    assert peaks == sorted(peaks)
    assert min(choice.forecast.components.values()) >= 0
    with pytest.raises(BudgetError, match="no plan fits"):
        plan_run(tiny.recipe(), budget_bytes=peaks[0] // 2)


@pytest.mark.parametrize(("lever", "value"), [("prefixes", "shared"), ("head", "stored"), ("embedding", "file")])
def test_levers_that_it_has_not_are_refused(lever: str, value: str, tiny: Tiny, tmp_path: Path):
    with pytest.raises(UsageError, match=f"plan.{lever} is no lever of the general path"):
        train_run(tiny.recipe(), folder=tmp_path / "run", plan_overrides={lever: value})


def test_a_run_whose_documents_go_one_by_one(tmp_path: Path):
    """BLOOM knows no positions: each document is a pass, and the plan says so by its packs."""
    changes: dict[str, Any] = {"n_layer": 2, "n_head": 4, "num_key_value_heads": None}
    model = write_run_model(tmp_path / "model", "bloom", **changes)
    tiny = Tiny(model, write_rows(tmp_path / "data.jsonl", rows()))
    assert plan_run(tiny.recipe()).forecast.plan.pack_tokens == 1
    packed = tiny.train(tmp_path / "packed", plan=PLAN)
    alone = tiny.train(tmp_path / "alone", plan={**PLAN, "pack_tokens": 1})
    for mine, theirs in zip(values(packed, "step", "loss"), values(alone, "step", "loss"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


def test_the_plan_of_a_run_is_kept_when_it_goes_on(finished: RunFolder):
    kept = json.loads((finished.path / "plan.json").read_text(encoding="utf-8"))
    assert {name: kept[name] for name in PLAN} == PLAN
    assert kept["threads"] == USUAL["threads"]
