"""Numbers that are not finite move nothing and are named; a loss that leaps is policy, judged the same after a kill."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from strop.data.examples import prepare
from strop.data.packing import Pack, pack
from strop.data.tokenizer import Tokenizer
from strop.errors import InputError, Stopped
from strop.model.batch import Batch
from strop.model.engine import Engine
from strop.model.load import load_decoder
from strop.model.lora import Adapter, make_adapter
from strop.model.spec import ATTENTION_NORM, MLP_NORM, PROJECTIONS
from strop.model.workspace import Work
from strop.run.checkpoint import newest_checkpoint
from strop.run.folder import RunFolder
from strop.run.report import write_report
from strop.run.summary import summarize
from strop.training import loop
from strop.training.guards import FEWEST_LOSSES, MOST_SKIPS, SPIKE_WINDOW, LossSpike, NotFinite, SpikeGuard
from strop.training.optimizer import Optimizer
from strop.training.session import resume_run
from strop.training.step import StepResult, accumulate_gradients
from tiny_run import Tiny, course, events

POISONS = (math.nan, math.inf, -math.inf)
INJECTIONS = 50


# ── numbers that are not finite ──────────────────────────────────────────────────────────────────────────────────────


class Poisoned(Engine):
    """An engine whose n-th pack does something to its loss or to the gradients."""

    def __init__(self, engine: Engine, at: int, act: Callable[[float, Adapter], float]) -> None:
        self.decoder, self.workspace, self._narrow = engine.decoder, engine.workspace, engine._narrow
        self.at, self.act = at, act

    def gradients(self, batch: Batch, adapter: Adapter, weight: float, step_key: int | None = None) -> torch.Tensor:
        loss = super().gradients(batch, adapter, weight, step_key)
        self.at -= 1
        return torch.tensor(self.act(loss.item(), adapter), dtype=torch.float64) if self.at == -1 else loss


@pytest.fixture(scope="module")
def packs(tiny: Tiny) -> list[Pack]:
    """Six samples of very different lengths, in several packs."""
    learned = prepare(tiny.recipe().recipe.data, Tokenizer.from_folder(tiny.model), seed=0).learned[:6]
    made = pack(learned, 90)
    assert len(made) > 2
    return made


def adapter_of(tiny: Tiny) -> tuple[Engine, Adapter, Optimizer]:
    """An adapter and an optimiser that have learned something."""
    decoder = load_decoder(tiny.model)
    adapter = make_adapter(decoder.spec, rank=4, alpha=8, dropout=0.1, targets=PROJECTIONS, seed=3)
    optimizer = Optimizer(adapter, weight_decay=0.1)
    for matrix in adapter.parameters():
        matrix.grad = torch.full_like(matrix, 0.01)
    optimizer.step(0.1)
    work = Work(
        tokens=100,
        learned=100,
        whole_layers=0,
        elementwise_layers=1,
        loss_chunk=50,
        targets=adapter.targets,
        rank=4,
        dropout=True,
    )
    return Engine(decoder, work), adapter, optimizer


def state(adapter: Adapter, optimizer: Optimizer, folder: Path) -> list[bytes]:
    folder.mkdir(exist_ok=True)
    optimizer.write(folder)
    matrices = [matrix.detach().numpy().tobytes() for matrix in adapter.parameters()]
    return [*matrices, (folder / "optimizer.safetensors").read_bytes()]


def poison_loss(dice: random.Random, engine: Engine, adapter: Adapter, packs: Sequence[Pack]) -> tuple[Engine, str]:
    number = dice.choice(POISONS)
    return Poisoned(engine, dice.randrange(len(packs)), lambda loss, _: number), "the loss"


def poison_gradient(dice: random.Random, engine: Engine, adapter: Adapter, packs: Sequence[Pack]) -> tuple[Engine, str]:
    name, matrix = dice.choice(sorted(adapter.named().items()))
    number, place = dice.choice(POISONS), dice.randrange(matrix.numel())

    def act(loss: float, _: Adapter) -> float:
        assert matrix.grad is not None
        matrix.grad.view(-1)[place] = number
        return loss

    return Poisoned(engine, len(packs) - 1, act), f"the gradient of {name}"


def poison_activation(
    dice: random.Random, engine: Engine, adapter: Adapter, packs: Sequence[Pack]
) -> tuple[Engine, str]:
    """NaN in a norm's weights: every activation from there on."""
    layer = dice.choice(engine.decoder.layers)
    norm = dice.choice((layer.norms[ATTENTION_NORM].weight_D, layer.norms[MLP_NORM].weight_D))
    norm[dice.randrange(len(norm))] = math.nan
    return engine, f"the output of layer {layer.index}"


@pytest.mark.parametrize("poison", [poison_loss, poison_gradient, poison_activation])
def test_fifty_poisons_leave_every_byte_as_it_was(
    poison: Callable[..., tuple[Engine, str]], tiny: Tiny, packs: list[Pack], tmp_path: Path
):
    for seed in range(INJECTIONS):
        dice = random.Random(seed)
        engine, adapter, optimizer = adapter_of(tiny)
        poisoned, named = poison(dice, engine, adapter, packs)
        before = state(adapter, optimizer, tmp_path / "state")
        step = dice.randrange(1000)
        with pytest.raises(NotFinite) as caught:
            accumulate_gradients(poisoned, adapter, packs, seed=0, step=step, clip=1.0)
        assert state(adapter, optimizer, tmp_path / "state") == before, f"seed {seed}"
        text = str(caught.value)
        assert text.startswith(f"step {step + 1}: the "), f"seed {seed}"
        assert named in text, f"seed {seed}"
        said = {int(word) for word in caught.value.found.rpartition("samples ")[2].rstrip(" …").split(", ")}
        assert said <= {int(sample) for part in packs for sample in part.sample_ids_D}
        assert said


def test_a_matrix_of_the_adapter_is_named(tiny: Tiny, packs: list[Pack]):
    engine, adapter, _ = adapter_of(tiny)
    name, matrix = sorted(adapter.named().items())[5]
    with torch.no_grad():
        matrix[0, 0] = math.nan
    with pytest.raises(NotFinite) as caught:
        accumulate_gradients(engine, adapter, packs, seed=0, step=0, clip=1.0)
    assert f"first in {name}" in caught.value.found


def test_a_run_stops_before_its_optimiser_moves(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Inf arises in the fourth step; the bytes of the run are those of its third."""

    def poisoned(engine: Engine, adapter: Adapter, packs: Sequence[Pack], **named: Any) -> StepResult:
        if named["step"] == 3:
            engine = Poisoned(engine, 0, lambda loss, _: math.inf)
        return accumulate_gradients(engine, adapter, packs, **named)

    monkeypatch.setattr(loop, "accumulate_gradients", poisoned)
    seen: list[bool] = []
    step_of = loop._step

    def watched(training: Any, step: int, *others: Any) -> None:
        before = state(training.adapter, training.optimizer, tmp_path / "state")
        try:
            step_of(training, step, *others)
        finally:
            seen.append(state(training.adapter, training.optimizer, tmp_path / "state") == before)

    monkeypatch.setattr(loop, "_step", watched)
    with pytest.raises(NotFinite, match="step 4: the loss is not finite"):
        tiny.train(tmp_path / "run", {"train.save_every": 1})
    assert seen == [False, False, False, True]
    (stop,) = events(RunFolder(tmp_path / "run"), "stop")
    assert (stop["step"], stop["reason"]) == (3, "step 4: the loss is not finite")


# ── a loss that leaps ────────────────────────────────────────────────────────────────────────────────────────────────


def guard(losses: Sequence[float], policy: str = "skip") -> SpikeGuard:
    return SpikeGuard(policy, [{"kind": "step", "step": n + 1, "loss": loss} for n, loss in enumerate(losses)])


def test_the_bound_is_what_the_document_says():
    dice = random.Random(4)
    losses = [dice.uniform(0.5, 2.0) for _ in range(100)]
    last = losses[-SPIKE_WINDOW:]
    assert guard(losses).bound == max(last) + max(max(last) - median(last), 1.0)
    assert guard([1.0, 3.0] * 16).bound == 3.0 + 1.0
    assert guard([1.0] * 31 + [5.0]).bound == 5.0 + 4.0
    assert guard(losses[: FEWEST_LOSSES - 1]).bound is None
    assert guard(losses[:FEWEST_LOSSES]).bound is not None


def test_policies():
    losses = [1.0, 1.2] * 8
    assert guard(losses).skips(16, 2.2, [1], ["a"]) is False, "the bound itself is no spike"
    assert guard(losses).skips(16, 2.201, [1], ["a"]) is True
    assert guard(losses, "ignore").skips(16, 20.0, [1], ["a"]) is False
    with pytest.raises(LossSpike) as caught:
        guard(losses, "stop").skips(16, 20.0, [4, 7], ["a:4", "a:7"])
    assert caught.value.what == "step 17: the loss leapt to 20"
    assert caught.value.expected.startswith("at most 2.2,")
    assert "samples 4, 7: a:4, a:7" in caught.value.found
    assert guard([1.0] * 3).skips(3, 100.0, [1], ["a"]) is False, "too early to tell"


def test_skipped_losses_do_not_raise_the_bound_and_too_many_in_a_row_stop():
    spikes = guard([1.0, 1.2] * 8)
    bound = spikes.bound
    for step in range(MOST_SKIPS):
        assert spikes.skips(step, 20.0, [1], ["a"])
        assert spikes.bound == bound
    with pytest.raises(LossSpike):
        spikes.skips(MOST_SKIPS, 20.0, [1], ["a"])
    spikes.taken(1.1)
    assert spikes.skips(9, 20.0, [1], ["a"]), "a step that was taken ends the row"


CHANGES = {"train.steps": 16, "train.save_every": 3, "watch.every": 8, "train.samples_per_step": 3}
LEAPS = (10, 13)


def leaping(monkeypatch: pytest.MonkeyPatch, leaps: Sequence[int] = LEAPS) -> None:
    """Some steps' losses, as they are told, are 20 times what they are."""

    def told(*args: Any, **named: Any) -> StepResult:
        result = accumulate_gradients(*args, **named)
        return replace(result, loss=result.loss * 20) if named["step"] in leaps else result

    monkeypatch.setattr(loop, "accumulate_gradients", told)


def optimizer_bytes(run: RunFolder) -> bytes:
    checkpoint, _ = newest_checkpoint(run.checkpoints)
    assert checkpoint is not None
    return (checkpoint.path / "optimizer.safetensors").read_bytes()


def test_skipped_steps_move_nothing_are_recorded_and_resume_to_the_same_bytes(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    leaping(monkeypatch)
    whole = tiny.train(tmp_path / "whole", CHANGES)
    skips = events(whole, "skip")
    assert [event["step"] for event in skips] == [step + 1 for step in LEAPS]
    assert [event["step"] for event in events(whole, "step")] == [s + 1 for s in range(16) if s not in LEAPS]
    for event in skips:
        assert event["loss"] > event["bound"]
        assert len(event["samples"]) == len(event["places"]) == 3
        assert all(place.startswith(str(tiny.data)) for place in event["places"])
    summary = summarize(whole)
    assert (summary["state"], summary["steps"], summary["skipped_steps"]) == ("finished", 16, 2)
    page = write_report(whole.path).read_text(encoding="utf-8")
    assert "Step 11 was skipped: its loss" in page
    for killed_at in (11, 12, 14):
        folder = tmp_path / f"killed-{killed_at}"

        class Killed(BaseException):
            pass

        class Listener:
            def on_event(self, event: dict[str, Any], at: int = killed_at, gone: type[BaseException] = Killed) -> None:
                if event["kind"] in ("step", "skip") and event["step"] == at:
                    raise gone

        with pytest.raises(Killed):
            tiny.train(folder, CHANGES, listener=Listener())
        run = RunFolder(folder)
        resume_run(folder)
        assert course(run) == course(whole), killed_at
        assert [{**event, "time": 0, "seconds": 0} for event in events(run, "skip")] == [
            {**event, "time": 0, "seconds": 0} for event in skips
        ]
        assert optimizer_bytes(run) == optimizer_bytes(whole)


def test_a_spike_stops_where_the_recipe_says_so_and_goes_on_when_it_says_otherwise(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    leaping(monkeypatch)
    folder = tmp_path / "run"
    with pytest.raises(LossSpike) as caught:
        tiny.train(folder, {**CHANGES, "train.spike": "stop"})
    assert isinstance(caught.value, Stopped)
    run = RunFolder(folder)
    assert summarize(run)["state"] == "stopped"
    assert len(events(run, "step")) == LEAPS[0]
    run.recipe.write_text(run.recipe.read_text().replace("spike: stop", "spike: skip"))
    with pytest.raises(InputError, match="recipe"):
        resume_run(folder)
    assert resume_run(folder, accept=["recipe"])["skipped_steps"] == 2
    ignored = tiny.train(tmp_path / "ignored", {**CHANGES, "train.spike": "ignore"})
    assert events(ignored, "skip") == []
    assert len(events(ignored, "step")) == 16


def test_the_terminal_says_what_was_skipped(capsys: pytest.CaptureFixture[str]):
    from strop.cli.console import error_console
    from strop.cli.progress import TerminalListener

    with TerminalListener(error_console()) as listener:
        listener.on_event(
            {"kind": "skip", "step": 4, "loss": 9.0, "bound": 2.5, "places": ["a\x1b[2J:3"], "samples": [7]}
        )
    said = capsys.readouterr().err
    assert "step 4  skipped: its loss 9.0000 leapt above 2.5000" in said
    assert "\\x1b[2J:3" in said
    assert "\x1b[2J" not in said


@pytest.mark.slow
def test_clean_curves_raise_no_alarm(tiny: Tiny, tmp_path: Path):
    """Ten courses, from one sample a step (the noisiest there is) to eight."""
    alarms, steps = 0, 0
    for seed in range(10):
        changes = {"train.samples_per_step": 1 + seed % 8, "train.seed": seed, "train.steps": 150, "watch.every": 1000}
        run = tiny.train(tmp_path / str(seed), {**changes, "train.save_every": 1000, "train.lr": 0.002})
        alarms += len(events(run, "skip"))
        steps += len(events(run, "step"))
    print(json.dumps({"steps": steps, "alarms": alarms}))
    assert (alarms, steps) == (0, 1500)
