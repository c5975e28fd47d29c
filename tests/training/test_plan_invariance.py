"""A plan decides memory and time, never the result; and the same recipe under the same plan gives the same bits."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from strop.data.packing import Pack, pack
from strop.data.records import Example
from strop.kernels import blas, library
from strop.plan.plan import Plan, plan_from_dict
from strop.run.folder import RunFolder
from strop.training.state import Training
from tiny_run import Tiny, adapter_bytes, course, events, values

BASELINE = {
    "device": "cpu",
    "dtype": "float32",
    "pack_tokens": 160,
    "recompute_layers": 0,
    "recompute_elementwise": 0,
    "dense_layers": 1,
    "head": "dense",
    "embedding": "memory",
    "loss_chunk": 50,
    "prefixes": "repeated",
    "matmul": "torch",
    "threads": 1,
    "checkpoints": "device",
    "base": "device",
}
EVERYTHING_ELSE = {
    "pack_tokens": 70,
    "recompute_layers": 1,
    "recompute_elementwise": 1,
    "dense_layers": 0,
    "head": "stored",
    "embedding": "file",
    "loss_chunk": 3,
    "prefixes": "shared",
    "threads": 2,
    "checkpoints": "host",
    "base": "host",
}
LEVERS = {
    "a pack a sample": {"pack_tokens": 1},
    "one pack a step": {"pack_tokens": 100_000},
    "all layers again": {"recompute_layers": 2},
    "one layer again": {"recompute_layers": 1},
    "element-wise parts again": {"recompute_elementwise": 2},
    "a layer of each grade": {"recompute_layers": 1, "recompute_elementwise": 1},
    "more layers again than there are": {"recompute_layers": 99},
    "nothing dense": {"dense_layers": 0},
    "all dense": {"dense_layers": 2},
    "more dense than there are": {"dense_layers": 99},
    "head as stored": {"head": "stored"},
    "embedding in its file": {"embedding": "file"},
    "embedding on the host": {"embedding": "host"},
    "base on the host": {"base": "host"},
    "base on the host, some dense": {"base": "host", "dense_layers": 1},
    "inputs on the host": {"checkpoints": "host", "recompute_layers": 2},
    "one input on the host": {"checkpoints": "host", "recompute_layers": 1},
    "inputs on the host, of no layer": {"checkpoints": "host"},
    "all that can be on the host": {
        **{"base": "host", "checkpoints": "host", "embedding": "host"},
        **{"recompute_layers": 99, "dense_layers": 0},
    },
    "one logit row": {"loss_chunk": 1},
    "seven logit rows": {"loss_chunk": 7},
    "all logits": {"loss_chunk": 1000},
    "prefixes shared, were there no dropout": {"prefixes": "shared"},
    "another matrix library": {"matmul": "openblas"},
    "two threads": {"threads": 2},
    "everything else": EVERYTHING_ELSE,
}
# These move memory and time alone; the others sum in another order.
SAME_BITS = {
    *("recompute_layers", "recompute_elementwise", "dense_layers", "head", "embedding"),
    *("checkpoints", "base"),
}

pytestmark = pytest.mark.usefixtures("restore_threads")


@pytest.fixture(scope="module")
def baseline(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return tiny.train(tmp_path_factory.mktemp("baseline") / "run", plan=BASELINE)


def test_the_baseline_learns_with_dropout_on_and_uses_several_packs(baseline: RunFolder, tiny: Tiny):
    losses = values(baseline, "step", "loss")
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 1
    assert tiny.recipe().recipe.adapter.dropout > 0
    assert max(values(baseline, "step", "tokens")) > BASELINE["pack_tokens"]
    assert len(set(values(baseline, "step", "learned_tokens"))) > 1


def test_every_lever_is_turned():
    turned = {lever for levers in LEVERS.values() for lever in levers}
    # Another device, dtype or attention rounds otherwise: tests/gpu holds those.
    assert turned | {"device", "dtype", "attention"} == {lever.name for lever in fields(Plan)}


def test_every_lever_reaches_what_it_moves(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Stop(Exception):
        pass

    def loop(training: Training, first_step: int) -> None:
        decoder, work = training.engine.decoder, training.engine.workspace.work
        assert (work.whole_layers, work.elementwise_layers, work.loss_chunk, work.dtype) == (1, 1, 7, torch.float32)
        assert [layer.groups[0].dense_OI is not None for layer in decoder.layers] == [True, False]
        assert (decoder.embedding.weight_VD is None, work.dense_head) == (True, False)
        assert (torch.get_num_threads(), library.threads(), decoder.device.type) == (2, 2, "cpu")
        assert not blas.uses_openblas()
        assert training.plan.shares_prefixes(0.0)
        raise Stop

    monkeypatch.setattr("strop.training.session.train_loop", loop)
    levers = {**BASELINE, **EVERYTHING_ELSE, "dense_layers": 1, "loss_chunk": 7}
    with pytest.raises(Stop):
        tiny.train(tmp_path / "run", plan=levers)


def test_the_length_of_packs_reaches_learning_and_looking(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def spy(examples: Sequence[Example], pack_tokens: int, share_prefixes: bool = False) -> list[Pack]:
        asked.append((len(examples), pack_tokens, share_prefixes))
        return pack(examples, pack_tokens, share_prefixes)

    monkeypatch.setattr("strop.training.loop.pack", spy)
    monkeypatch.setattr("strop.evaluate.held_out.pack", spy)
    tiny.train(tmp_path / "run", {"train.steps": 1}, {"pack_tokens": 70, "prefixes": "shared"})
    expected = [(4, 70, True), (5, 70, False), (4, 70, True)]
    assert asked == expected, "held out, learned, held out; dropout is on where it learns"


@pytest.mark.parametrize("levers", LEVERS.values(), ids=LEVERS)
def test_no_lever_changes_the_result(levers: dict[str, object], baseline: RunFolder, tiny: Tiny, tmp_path: Path):
    run = tiny.train(tmp_path / "run", plan={**BASELINE, **levers})
    taken = run.read_json("plan.json")
    assert {name: taken[name] for name in levers} == levers
    for name in ("step", "epoch", "learned_tokens", "tokens", "lr"):
        assert values(run, "step", name) == values(baseline, "step", name), name
    for name in ("loss", "grad_norm"):
        assert values(run, "step", name) == pytest.approx(values(baseline, "step", name), rel=1e-5), name
    assert values(run, "watch", "held_out_tokens") == values(baseline, "watch", "held_out_tokens")
    assert values(run, "watch", "held_out_loss") == pytest.approx(values(baseline, "watch", "held_out_loss"), rel=1e-5)
    ours, theirs = (load_file(folder.adapter / "adapter_model.safetensors") for folder in (run, baseline))
    assert ours.keys() == theirs.keys()
    for name, matrix in ours.items():
        # Adam divides a gradient by its size, so that rounding in elements near zero counts more than in the losses.
        assert torch.dist(matrix, theirs[name]) <= 1e-4 * theirs[name].norm(), name
    if set(levers) <= SAME_BITS:
        assert adapter_bytes(run) == adapter_bytes(baseline), "the same numbers, kept or made again"


@pytest.mark.parametrize("levers", [{}, EVERYTHING_ELSE], ids=["baseline", "everything else"])
def test_the_same_plan_gives_the_same_bits(levers: dict[str, object], tiny: Tiny, tmp_path: Path):
    plan = {**BASELINE, **levers}
    first = tiny.train(tmp_path / "first", plan=plan)
    torch.rand(3)  # whatever torch's own generator was used for in between
    second = tiny.train(tmp_path / "second", plan=plan)
    assert course(first) == course(second)
    assert first.recipe.read_text() == second.recipe.read_text()
    for run in (first, second):
        assert plan_from_dict(run.read_json("plan.json")) == plan_from_dict(plan)
    assert (first.adapter / "adapter_config.json").read_bytes() == (second.adapter / "adapter_config.json").read_bytes()


def test_bfloat16_moves_losses_by_its_rounding_and_places_move_nothing(baseline: RunFolder, tiny: Tiny, tmp_path: Path):
    """As a GPU computes, here on a CPU: adapters in float32, activations in 16 bits, everything outside or not."""
    outside = {"base": "host", "checkpoints": "host", "recompute_layers": 2, "embedding": "host", "dense_layers": 0}
    runs = [
        tiny.train(tmp_path / str(number), plan={**BASELINE, "dtype": "bfloat16", **levers})
        for number, levers in enumerate(({}, outside))
    ]
    assert course(runs[0]) == course(runs[1])
    ours, exact = values(runs[0], "step", "loss"), values(baseline, "step", "loss")
    assert ours == pytest.approx(exact, rel=0.02)
    assert ours != exact
    kinds = {tensor.dtype for tensor in load_file(runs[0].adapter / "adapter_model.safetensors").values()}
    assert kinds == {torch.float32}


def test_sharing_prefixes_changes_no_result(tiny: Tiny, tmp_path: Path):
    """The system prompt is what all samples begin with; without dropout it is computed once a pack."""
    plain = {"adapter.dropout": 0.0}
    repeated, shared = (
        tiny.train(tmp_path / word, plain, {**BASELINE, "prefixes": word}) for word in ("repeated", "shared")
    )
    for name in ("tokens", "learned_tokens"):
        assert values(shared, "step", name) == values(repeated, "step", name), name
    assert values(shared, "step", "loss") == pytest.approx(values(repeated, "step", "loss"), rel=1e-5)
    assert values(shared, "watch", "held_out_loss") == pytest.approx(
        values(repeated, "watch", "held_out_loss"), rel=1e-5
    )
    ours, theirs = (load_file(run.adapter / "adapter_model.safetensors") for run in (shared, repeated))
    for name, matrix in ours.items():
        assert torch.dist(matrix, theirs[name]) <= 1e-4 * theirs[name].norm(), name
    assert adapter_bytes(shared) != adapter_bytes(repeated), "nothing was shared"


def test_the_samples_of_a_step_are_those_of_the_order(baseline: RunFolder, tiny: Tiny):
    """The counts of each step follow from the data alone, so every plan reads the same samples."""
    from strop.data.examples import prepare
    from strop.data.order import step_samples
    from strop.data.tokenizer import Tokenizer

    recipe = tiny.recipe().recipe
    learned = prepare(recipe.data, Tokenizer.from_folder(tiny.model), seed=0).learned
    for event in events(baseline, "step"):
        chosen = [learned[index] for index in step_samples(0, event["step"] - 1, len(learned), 5)]
        assert event["tokens"] == sum(len(example) for example in chosen)
        assert event["learned_tokens"] == sum(int(example.learned[1:].sum()) for example in chosen)


@pytest.mark.parametrize(
    "changes",
    [
        {"train.seed": 1},
        {"train.lr": 0.02},
        {"adapter.dropout": 0.2},
        {"data.system": "Be brief."},
        {"data.learn": "all"},
    ],
)
def test_a_recipe_does_change_the_result(changes: dict[str, object], baseline: RunFolder, tiny: Tiny, tmp_path: Path):
    run = tiny.train(tmp_path / "run", changes, BASELINE)
    assert adapter_bytes(run) != adapter_bytes(baseline)
    assert values(run, "step", "loss")[-1] != pytest.approx(values(baseline, "step", "loss")[-1], rel=1e-3)
