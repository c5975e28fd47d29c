"""Looking at a run: the held-out loss is plain cross entropy, and looking changes nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from strop.data.examples import Dataset, prepare
from strop.data.packing import pack
from strop.data.tokenizer import Tokenizer
from strop.evaluate.held_out import held_out_loss
from strop.model.batch import make_batch
from strop.model.decoder import Decoder
from strop.model.generate import generate
from strop.model.load import load_decoder
from strop.model.lora import Adapter, read_adapter
from strop.run.folder import RunFolder
from strop.training.watch import choose_questions
from tiny_run import Tiny, adapter_bytes, events, rows, values, write_rows


@pytest.fixture(scope="module")
def dataset(tiny: Tiny) -> Dataset:
    return prepare(tiny.recipe().recipe.data, Tokenizer.from_folder(tiny.model), seed=0)


@pytest.fixture
def decoder(tiny: Tiny) -> Decoder:
    return load_decoder(tiny.model)


@pytest.fixture
def adapter(finished: RunFolder, decoder: Decoder) -> Adapter:
    """A tuned adapter, whose dropout is on in training."""
    adapter = read_adapter(finished.adapter, decoder.spec)
    assert adapter.dropout > 0
    return adapter


# ── the loss ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def plain_loss(decoder: Decoder, adapter: Adapter | None, dataset: Dataset) -> tuple[float, int]:
    """Σ / Σ over learned tokens, sample by sample, from the full logits."""
    total, count = 0.0, 0
    for example in dataset.held_out:
        logits_TV = decoder.logits(make_batch(pack([example], 1)[0]), adapter)
        learned = torch.from_numpy(np.flatnonzero(example.learned))
        targets = torch.from_numpy(example.tokens.astype(np.int64))[learned]
        total += cross_entropy(logits_TV[learned - 1], targets, reduction="sum").item()
        count += len(learned)
    return total / count, count


@pytest.mark.parametrize("pack_tokens", [1, 100, 10_000])
@pytest.mark.parametrize("tuned", [False, True], ids=["base", "tuned"])
def test_the_loss_is_cross_entropy_over_learned_tokens(
    decoder: Decoder, adapter: Adapter, dataset: Dataset, pack_tokens: int, tuned: bool
):
    chosen = adapter if tuned else None
    mean, count = plain_loss(decoder, chosen, dataset)
    loss = held_out_loss(decoder, chosen, dataset.held_out, pack_tokens)
    assert loss is not None
    assert loss.learned_tokens == count
    assert loss.mean == pytest.approx(mean, rel=1e-6)


def test_a_run_tells_the_same_losses(decoder: Decoder, adapter: Adapter, dataset: Dataset, finished: RunFolder):
    told = values(finished, "watch", "held_out_loss")
    before, after = (held_out_loss(decoder, chosen, dataset.held_out, 2048) for chosen in (None, adapter))
    assert before is not None
    assert after is not None
    assert (told[0], told[-1]) == pytest.approx((before.mean, after.mean), rel=1e-5)
    assert after.mean < before.mean - 1


def test_without_samples_there_is_no_loss(decoder: Decoder):
    assert held_out_loss(decoder, None, [], 100) is None


# ── nothing is touched ───────────────────────────────────────────────────────────────────────────────────────────────


def test_looking_leaves_model_and_adapter_as_they_are(decoder: Decoder, adapter: Adapter, dataset: Dataset):
    before = [matrix.detach().clone() for matrix in adapter.parameters()]
    packed = decoder.layers[0].groups[0].weights[0].packed.clone()
    held_out_loss(decoder, adapter, dataset.held_out, 100)
    generate(decoder, adapter, [[5, 6, 7]], [], 4)
    assert all(torch.equal(matrix, kept) for matrix, kept in zip(adapter.parameters(), before, strict=True))
    assert all(matrix.requires_grad and matrix.grad is None for matrix in adapter.parameters())
    assert torch.equal(decoder.layers[0].groups[0].weights[0].packed, packed)


def test_a_model_that_was_looked_at_first_can_be_trained(decoder: Decoder, adapter: Adapter, dataset: Dataset):
    """The memory that weights are dequantised into is made by whoever comes first; under inference mode as well."""
    held_out_loss(decoder, adapter, dataset.held_out, 100)
    batch = make_batch(pack(dataset.learned[:3], 10_000)[0])
    decoder.loss(batch, adapter, step_key=1).backward()
    assert all(matrix.grad is not None for matrix in adapter.parameters())


@pytest.mark.parametrize("dense_layers", [0, 2])
def test_how_often_a_run_looks_changes_no_byte_of_it(tiny: Tiny, tmp_path: Path, dense_layers: int):
    plan = {"dense_layers": dense_layers}
    often = {"watch.every": 1, "watch.ask": "Why? And what then?", "watch.answer_tokens": 9}
    one, other = (
        tiny.train(tmp_path / name, changes, plan)
        for name, changes in (("often", often), ("seldom", {"watch.every": 1000}))
    )
    assert adapter_bytes(one) == adapter_bytes(other)
    for name in ("loss", "grad_norm", "learned_tokens"):
        assert values(one, "step", name) == values(other, "step", name)
    assert values(one, "watch", "step") == [0, 1, 2, 3, 4, 5, 6]
    assert values(other, "watch", "step") == [0, 6], "before and after are always there"
    assert values(one, "watch", "held_out_loss")[::6] == values(other, "watch", "held_out_loss")


# ── what is asked while training ─────────────────────────────────────────────────────────────────────────────────────


def test_the_recipes_questions_are_asked_with_its_system_prompt(dataset: Dataset, tiny: Tiny):
    chosen = choose_questions(dataset, tiny.recipe({"watch.ask": "Why?"}).recipe)
    assert [(message.role, message.content) for message in chosen[0].messages] == [
        ("system", "Be exact."),
        ("user", "Why?"),
    ]
    assert len(chosen) == 1


def test_by_default_held_out_questions_are_asked(dataset: Dataset, tiny: Tiny, finished: RunFolder):
    recipe = tiny.recipe().recipe
    chosen = choose_questions(dataset, recipe)
    held_out = [example.conversation.messages for example in dataset.held_out if example.conversation]
    assert len(chosen) == 3
    assert len({question.text for question in chosen}) == 3
    for question in chosen:
        assert (*question.messages, held_out[0][-1].__class__("assistant", question.reference or "")) in held_out
    answers = [sample for sample in finished.lines(finished.samples) if sample["step"] == 6]
    assert [(answer["question"], answer["reference"]) for answer in answers] == [
        (question.text, question.reference) for question in chosen
    ]


def test_with_nothing_held_out_learned_questions_are_asked(tiny: Tiny, tmp_path: Path):
    few = Tiny(tiny.model, write_rows(tmp_path / "two.jsonl", rows(2)))
    run = few.train(tmp_path / "run", {"data.eval": 0, "train.steps": 1})
    assert values(run, "watch", "held_out_loss") == [None, None]
    assert values(run, "watch", "held_out_tokens") == [0, 0]
    asked = [sample["question"] for sample in run.lines(run.samples)]
    assert asked == [row["question"] for row in rows(2)] * 2
    assert events(run, "end")[0]["held_out_loss"] == {"before": None, "after": None}


def test_weights_count_in_the_mean(decoder: Decoder, adapter: Adapter, dataset: Dataset):
    examples = dataset.held_out
    chosen = [
        replace(example, weights=np.where(example.learned, float(number + 1), 0).astype(np.float32))
        for number, example in enumerate(examples)
    ]
    alone = [held_out_loss(decoder, adapter, [example], 500) for example in examples]
    sums = [(number + 1) * one.mean * one.learned_tokens for number, one in enumerate(alone) if one]
    counts = [(number + 1) * one.learned_tokens for number, one in enumerate(alone) if one]
    together = held_out_loss(decoder, adapter, chosen, 500)
    assert together is not None
    assert together.mean == pytest.approx(sum(sums) / sum(counts), rel=1e-5)
    assert together.learned_tokens == sum(one.learned_tokens for one in alone if one)
