"""One step: Σ loss / Σ learned tokens over all packs, nothing moved when a number is not finite, the norm clipped."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from strop.data.examples import prepare
from strop.data.packing import Pack, pack
from strop.data.records import Example
from strop.data.tokenizer import Tokenizer
from strop.model.batch import make_batch
from strop.model.decoder import Decoder
from strop.model.engine import Engine
from strop.model.load import load_decoder
from strop.model.lora import Adapter, make_adapter
from strop.model.spec import PROJECTIONS
from strop.model.workspace import Work
from strop.run.folder import RunFolder
from strop.run.summary import summarize
from strop.training.guards import NotFinite
from strop.training.optimizer import Optimizer
from strop.training.step import StepResult, accumulate_gradients
from tiny_run import Tiny, events


@pytest.fixture
def decoder(tiny: Tiny) -> Decoder:
    return load_decoder(tiny.model)


@pytest.fixture(scope="module")
def examples(tiny: Tiny) -> list[Example]:
    """Six samples of very different lengths."""
    return prepare(tiny.recipe().recipe.data, Tokenizer.from_folder(tiny.model), seed=0).learned[:6]


def adapter_of(decoder: Decoder, dropout: float = 0.0) -> Adapter:
    """An adapter that has learned something, so that gradients reach A and B alike."""
    adapter = make_adapter(decoder.spec, rank=4, alpha=8, dropout=dropout, targets=PROJECTIONS, seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for matrix in adapter.parameters():
            matrix.add_(torch.randn(matrix.shape, generator=generator) * 0.1)
    return adapter


def engine_of(decoder: Decoder, adapter: Adapter, packs: Sequence[Pack]) -> Engine:
    work = Work(
        tokens=max(len(part) for part in packs),
        learned=max(part.learned_tokens for part in packs),
        whole_layers=0,
        elementwise_layers=1,
        loss_chunk=50,
        targets=adapter.targets,
        rank=adapter.rank,
        dropout=adapter.dropout > 0,
    )
    return Engine(decoder, work)


def step_of(
    decoder: Decoder, adapter: Adapter, packs: Sequence[Pack], *, seed: int = 0, step: int = 0, clip: float = 0.0
) -> tuple[StepResult, list[torch.Tensor]]:
    """The result of a step and its gradients, taken out of the adapter."""
    result = accumulate_gradients(engine_of(decoder, adapter, packs), adapter, packs, seed=seed, step=step, clip=clip)
    grads = []
    for matrix in adapter.parameters():
        assert matrix.grad is not None
        grads.append(matrix.grad)
        matrix.grad = None
    return result, grads


def distance(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float:
    """The largest relative difference of two lists of matrices."""
    return max((torch.dist(one, other) / other.norm()).item() for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("pack_tokens", [1, 90, 200])
def test_many_packs_are_one_pack(decoder: Decoder, examples: list[Example], pack_tokens: int):
    adapter = adapter_of(decoder, dropout=0.2)
    packs, whole = pack(examples, pack_tokens), pack(examples, 10_000)
    assert len(packs) > len(whole) == 1
    ours, grads = step_of(decoder, adapter, packs)
    theirs, whole_grads = step_of(decoder, adapter, whole)
    assert (ours.learned_tokens, ours.tokens) == (theirs.learned_tokens, theirs.tokens)
    assert ours.tokens == sum(len(example) for example in examples)
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-6)
    assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-5)
    assert distance(grads, whole_grads) < 1e-5


def test_the_loss_is_sum_over_sum_as_plain_torch_has_it(decoder: Decoder, examples: list[Example]):
    adapter = adapter_of(decoder)
    ours, grads = step_of(decoder, adapter, pack(examples, 100))

    sums, counts = [], []
    for example in examples:
        (alone,) = pack([example], 10_000)
        logits_TV = decoder.logits(make_batch(alone), adapter)
        learned = torch.from_numpy(np.flatnonzero(example.learned))
        targets = torch.from_numpy(example.tokens.astype(np.int64))[learned]
        sums.append(cross_entropy(logits_TV[learned - 1], targets, reduction="sum"))
        counts.append(len(learned))
    expected = torch.stack(sums).sum() / sum(counts)
    expected.backward()
    plain = [matrix.grad for matrix in adapter.parameters()]

    assert ours.learned_tokens == sum(counts)
    assert ours.loss == pytest.approx(expected.item(), rel=1e-6)
    assert distance(grads, plain) < 1e-5
    norm = torch.cat([grad.flatten() for grad in plain]).norm().item()
    assert ours.grad_norm == pytest.approx(norm, rel=1e-5)
    mean_of_means = sum(total.item() / count for total, count in zip(sums, counts, strict=True)) / len(counts)
    assert abs(mean_of_means - ours.loss) > 1e-3 * ours.loss, "the samples do not tell the two apart"


# ── dropout ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_dropout_follows_seed_and_step_and_not_the_order_of_packs(decoder: Decoder, examples: list[Example]):
    adapter = adapter_of(decoder, dropout=0.3)
    result, grads = step_of(decoder, adapter, pack(examples, 100), seed=4, step=7)
    again, same = step_of(decoder, adapter, pack(examples, 100), seed=4, step=7)
    assert again == result
    assert all(torch.equal(one, other) for one, other in zip(grads, same, strict=True))
    turned, others = step_of(decoder, adapter, pack(examples[::-1], 150)[::-1], seed=4, step=7)
    assert turned.loss == pytest.approx(result.loss, rel=1e-6)
    assert distance(others, grads) < 1e-5
    for changed in ({"seed": 5, "step": 7}, {"seed": 4, "step": 8}):
        other, others = step_of(decoder, adapter, pack(examples, 100), **changed)
        assert other.loss != pytest.approx(result.loss, rel=1e-4)
        assert distance(others, grads) > 1e-2


def test_without_dropout_neither_seed_nor_step_matters(decoder: Decoder, examples: list[Example]):
    adapter = adapter_of(decoder)
    packs = pack(examples, 100)
    assert step_of(decoder, adapter, packs, seed=4, step=7)[0] == step_of(decoder, adapter, packs, seed=5, step=8)[0]


# ── the norm ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("share", [0.25, 4.0])
def test_clip_is_torchs(decoder: Decoder, examples: list[Example], share: float):
    adapter = adapter_of(decoder)
    packs = pack(examples, 100)
    free, grads = step_of(decoder, adapter, packs)
    clip = share * free.grad_norm
    expected = [torch.zeros_like(grad).requires_grad_() for grad in grads]
    for leaf, grad in zip(expected, grads, strict=True):
        leaf.grad = grad.clone()
    norm = torch.nn.utils.clip_grad_norm_(expected, clip)
    result, clipped = step_of(decoder, adapter, packs, clip=clip)
    assert result.grad_norm == norm.item() == free.grad_norm, "the norm that is told is that before clipping"
    assert all(torch.equal(ours, leaf.grad) for ours, leaf in zip(clipped, expected, strict=True))
    total = torch.cat([grad.flatten() for grad in clipped]).norm().item()
    assert total == pytest.approx(min(share, 1) * free.grad_norm, rel=1e-4)


# ── numbers that are not finite ──────────────────────────────────────────────────────────────────────────────────────


def state_bytes(adapter: Adapter, optimizer: Optimizer, folder: Path) -> tuple[list[bytes], bytes]:
    folder.mkdir()
    optimizer.write(folder)
    matrices = [matrix.detach().numpy().tobytes() for matrix in adapter.parameters()]
    return matrices, (folder / "optimizer.safetensors").read_bytes()


def refused(decoder: Decoder, adapter: Adapter, packs: Sequence[Pack], folder: Path) -> NotFinite:
    """The error of a step that must fail; adapter and moments stay as they were, byte for byte."""
    optimizer = Optimizer(adapter, weight_decay=0.1)
    for matrix in adapter.parameters():
        matrix.grad = torch.full_like(matrix, 0.01)
    optimizer.step(0.0)
    before = state_bytes(adapter, optimizer, folder / "before")
    with pytest.raises(NotFinite) as caught:
        accumulate_gradients(engine_of(decoder, adapter, packs), adapter, packs, seed=0, step=0, clip=1.0)
    assert state_bytes(adapter, optimizer, folder / "after") == before
    assert caught.value.exit_code == 5
    assert "--train.lr" in caught.value.do
    return caught.value


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_its_samples(
    decoder: Decoder, examples: list[Example], tmp_path: Path, number: float
):
    seen = np.concatenate([example.tokens for example in examples])
    bad = next(
        example for example in examples[1:] if any(np.sum(seen == token) == 1 for token in example.tokens.tolist())
    )
    token = next(token for token in bad.tokens.tolist() if np.sum(seen == token) == 1)
    decoder.embedding.weight_VD[token, 0] = number
    error = refused(decoder, adapter_of(decoder), pack(examples, 1), tmp_path)
    assert error.what == "step 1: the loss is not finite"
    assert error.found == f"NaN or infinity, first in the embedding, in samples {bad.id}"


def test_a_gradient_that_is_not_finite_names_its_matrix(decoder: Decoder, examples: list[Example], tmp_path: Path):
    adapter = make_adapter(decoder.spec, rank=4, alpha=8, dropout=0.0, targets=PROJECTIONS, seed=3)
    path = "model.layers.0.self_attn.v_proj"
    with torch.no_grad():
        adapter.matrices[path][0].zero_()
        adapter.matrices[path][1].fill_(3e38)  # times A = 0 it changes no loss, but A's gradient is beyond float32
    error = refused(decoder, adapter, pack(examples, 100), tmp_path)
    assert error.what == f"step 1: the gradient of base_model.model.{path}.lora_A.weight is not finite"
    assert all(str(example.id) in error.found for example in examples)


def test_a_norm_that_is_not_finite_is_refused_though_each_gradient_is(
    decoder: Decoder, examples: list[Example], tmp_path: Path
):
    adapter = make_adapter(decoder.spec, rank=4, alpha=8, dropout=0.0, targets=PROJECTIONS, seed=3)
    with torch.no_grad():
        adapter.matrices["model.layers.1.mlp.down_proj"][0].fill_(1e25)
    assert (
        refused(decoder, adapter, pack(examples, 100), tmp_path).what
        == "step 1: the gradient of all gradients is not finite"
    )


def test_many_samples_are_named_by_the_first(decoder: Decoder):
    error = NotFinite("loss", range(30), 0)
    assert error.found == "NaN or infinity, in samples 0, 1, 2, 3, 4, 5, 6, 7 …"


def test_a_run_that_diverges_stops_and_says_so(tiny: Tiny, tmp_path: Path):
    changes = {"train.lr": 1e30, "train.save_every": 1, "train.warmup": 0}
    with pytest.raises(NotFinite):
        tiny.train(tmp_path / "run", changes)
    run = RunFolder(tmp_path / "run")
    done = len(events(run, "step"))
    assert 0 < done < 6
    assert [(event["step"], event["reason"]) for event in events(run, "stop")] == [
        (done, f"step {done + 1}: the loss is not finite")
    ]
    assert summarize(run)["state"] == "stopped"
    assert (run.path / "report.html").is_file()
    assert not run.adapter.exists()


def test_the_loop_hands_every_step_its_own_number_and_samples(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The number names the dropout of a step: one that stood still would repeat the first step's masks for ever."""
    from strop.training import loop

    seen: list[tuple[int, int, tuple[int, ...]]] = []

    def spy(decoder: Decoder, adapter: Adapter, packs: Sequence[Pack], **named: int) -> StepResult:
        ids = sorted(int(sample) for pack in packs for sample in pack.sample_ids_D)
        seen.append((named["seed"], named["step"], tuple(ids)))
        return accumulate_gradients(decoder, adapter, packs, **named)  # type: ignore[arg-type] # as it was called

    monkeypatch.setattr(loop, "accumulate_gradients", spy)
    tiny.train(tmp_path / "run", {"train.seed": 5, "train.steps": 4})
    assert [(seed, step) for seed, step, _ in seen] == [(5, step) for step in range(4)]
    assert len({ids for _, _, ids in seen}) == 4


def weighted(examples: Sequence[Example], weight: float | None = None) -> list[Example]:
    """The samples with weights: one for all, or each token's own."""
    return [
        replace(
            example,
            weights=np.where(example.learned, weight or example.tokens % 5 + 0.5, 0).astype(np.float32),
        )
        for example in examples
    ]


@pytest.mark.parametrize("pack_tokens", [1, 90, 10_000])
def test_the_loss_with_weights_is_a_weighted_mean(decoder: Decoder, examples: list[Example], pack_tokens: int):
    adapter, chosen = adapter_of(decoder), weighted(examples)
    ours, grads = step_of(decoder, adapter, pack(chosen, pack_tokens, share_prefixes=pack_tokens > 90))
    total, weights = torch.zeros(()), 0.0
    for example in chosen:
        (alone,) = pack([example], 10_000)
        learned = torch.from_numpy(np.flatnonzero(example.learned))
        targets = torch.from_numpy(example.tokens.astype(np.int64))[learned]
        assert example.weights is not None
        each = torch.from_numpy(example.weights)[learned]
        logits_TV = decoder.logits(make_batch(alone), adapter)
        total = total + (cross_entropy(logits_TV[learned - 1], targets, reduction="none") * each).sum()
        weights += float(each.sum())
    (total / weights).backward()
    assert ours.loss == pytest.approx((total / weights).item(), rel=1e-5)
    assert ours.learned_tokens == sum(int(example.learned.sum()) for example in chosen)
    expected = [matrix.grad for matrix in adapter.parameters() if matrix.grad is not None]
    assert distance(grads, expected) < 1e-4


def test_weights_that_are_all_two_are_no_weights(decoder: Decoder, examples: list[Example]):
    adapter = adapter_of(decoder)
    plain, plain_grads = step_of(decoder, adapter, pack(examples, 90))
    for weight in (1.0, 2.0):
        ours, grads = step_of(decoder, adapter, pack(weighted(examples, weight), 90))
        assert ours == plain, "powers of two change no bit"
        assert all(torch.equal(one, other) for one, other in zip(grads, plain_grads, strict=True))
