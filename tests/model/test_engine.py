"""The engine against autograd over the reference decoder: losses and gradients, whatever is kept, wherever it lies."""

from dataclasses import fields, replace
from itertools import product as every

import pytest
import torch
from test_decoder import batch_of, build, documents, relative

from strop.kernels import blas, select
from strop.model.batch import Batch
from strop.model.decoder import Decoder
from strop.model.engine import Engine
from strop.model.load import load_decoder
from strop.model.lora import Adapter, make_adapter
from strop.model.spec import PROJECTIONS
from strop.model.workspace import Work, layout

QKV = ("q_proj", "k_proj", "v_proj")
GRADES = {"none": (0, 0), "elementwise": (0, 3), "layer": (3, 0), "one of each": (1, 1)}


def adapter_of(decoder: Decoder, targets=PROJECTIONS, dropout=0.0) -> Adapter:
    adapter = make_adapter(decoder.spec, rank=4, alpha=8, dropout=dropout, targets=targets, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for matrix in adapter.parameters():
            matrix.add_(torch.randn(matrix.shape, generator=generator) * 0.1)
    return adapter


def work_of(batch: Batch, adapter: Adapter, grades=(0, 0), **changes) -> Work:
    values = {
        "tokens": len(batch.tokens_T),
        "learned": len(batch.rows_N),
        "whole_layers": grades[0],
        "elementwise_layers": grades[1],
        "loss_chunk": 7,
        "targets": adapter.targets,
        "rank": adapter.rank,
        "dropout": adapter.dropout > 0,
    }
    return Work(**{**values, **changes})


def reference(decoder: Decoder, batch: Batch, adapter: Adapter, step_key: int | None = None):
    """Loss and gradients by autograd."""
    for matrix in adapter.parameters():
        matrix.grad = None
    loss = decoder.loss(batch, adapter, step_key)
    loss.backward()
    grads = [matrix.grad.clone() for matrix in adapter.parameters()]
    for matrix in adapter.parameters():
        matrix.grad = None
    return loss.item(), grads


def engines(engine: Engine, batch: Batch, adapter: Adapter, step_key: int | None = None):
    """Loss and gradients by the engine."""
    adapter.zero_gradients()
    loss = engine.gradients(batch, adapter, 1, step_key)
    return loss, [matrix.grad.clone() for matrix in adapter.parameters()]


def agree(ours, theirs, tolerance=1e-5) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-6)
    for mine, other in zip(ours[1], theirs[1], strict=True):
        assert relative(mine, other) < tolerance


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    build(folder, attention_bias=True, mlp_bias=True, tie_word_embeddings=False)
    return folder


@pytest.mark.parametrize("choice", ["torch", "native"])
@pytest.mark.parametrize("grades", GRADES.values(), ids=GRADES)
@pytest.mark.parametrize(
    "targets",
    [PROJECTIONS, QKV, ("o_proj",), ("up_proj",), ("down_proj",), ("v_proj", "down_proj")],
    ids=",".join,
)
def test_gradients_are_autograds(folder, targets, grades, choice):
    if choice == "native" and not native():
        pytest.skip("the native library is not built here")
    decoder = load_decoder(folder)
    adapter = adapter_of(decoder, targets, dropout=0.2)
    batch = batch_of(*documents(9, 30, 1, 17))
    with select.forced(choice):
        ours = engines(Engine(decoder, work_of(batch, adapter, grades)), batch, adapter, step_key=5)
    agree(ours, reference(decoder, batch, adapter, step_key=5))


def native() -> bool:
    from strop.kernels.library import native

    return native() is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 1},
        {"head_dim": 32},
        {"hidden_size": 72, "intermediate_size": 100, "num_attention_heads": 3, "num_key_value_heads": 1},
        {"num_hidden_layers": 1},
    ],
)
def test_sizes(tmp_path, changes):
    build(tmp_path, **changes)
    decoder = load_decoder(tmp_path)
    adapter = adapter_of(decoder)
    batch = batch_of(*documents(9, 30, 3))
    for grades in GRADES.values():
        agree(
            engines(Engine(decoder, work_of(batch, adapter, grades)), batch, adapter),
            reference(decoder, batch, adapter),
        )


def test_adapters_of_some_layers_only(folder):
    """The backward pass ends at the lowest adapter."""
    decoder = load_decoder(folder)
    adapter = adapter_of(decoder)
    kept = {path: pair for path, pair in adapter.matrices.items() if "layers.1." in path and "q_proj" in path}
    adapter = Adapter(adapter.rank, adapter.alpha, 0.0, adapter.targets, kept)
    batch = batch_of(*documents(9, 30))
    agree(engines(Engine(decoder, work_of(batch, adapter)), batch, adapter), reference(decoder, batch, adapter))


@pytest.mark.parametrize(("dense_layers", "dense_head", "in_file"), list(every([0, 2], [True, False], [True, False])))
def test_where_weights_lie_changes_nothing(tmp_path, dense_layers, dense_head, in_file):
    model = build(tmp_path, tie_word_embeddings=False)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    plain = load_decoder(tmp_path)
    decoder = load_decoder(
        tmp_path, head="dense" if dense_head else "stored", embedding="file" if in_file else "memory"
    )
    decoder.keep_dense(dense_layers)
    assert decoder.head.dense == dense_head
    assert (decoder.embedding.weight_VD is None) == in_file
    adapter = adapter_of(decoder)
    batch = batch_of(*documents(9, 30, 3))
    ours = engines(Engine(decoder, work_of(batch, adapter, dense_head=dense_head)), batch, adapter)
    theirs = engines(Engine(plain, work_of(batch, adapter)), batch, adapter)
    agree(ours, theirs, 1e-6)


def test_a_large_group_is_done_in_blocks(folder, monkeypatch):
    decoder = load_decoder(folder)
    adapter = adapter_of(decoder)
    batch = batch_of(*documents(9, 30, 3))
    theirs = engines(Engine(decoder, work_of(batch, adapter)), batch, adapter)
    monkeypatch.setattr("strop.kernels.frozen_group.BLOCK_WEIGHTS", 64 * 64)
    assert len(list(decoder.layers[0].groups[2].blocks(torch.float32))) > 2
    agree(engines(Engine(decoder, work_of(batch, adapter)), batch, adapter), theirs, 3e-6)


def test_the_loss_alone_is_the_same_and_needs_no_more_memory(folder):
    decoder = load_decoder(folder)
    adapter = adapter_of(decoder)
    batch = batch_of(*documents(9, 30, 3))
    for grades in GRADES.values():
        engine = Engine(decoder, work_of(batch, adapter, grades))
        before = engine.workspace.bytes
        with torch.no_grad():
            assert engine.loss(batch, adapter) == pytest.approx(decoder.loss(batch, adapter).item(), rel=1e-6)
            assert engine.loss(batch, None) == pytest.approx(decoder.loss(batch, None).item(), rel=1e-6)
        assert engine.workspace.bytes == before


def test_a_pack_without_anything_learned_is_nothing(folder):
    decoder = load_decoder(folder)
    adapter = adapter_of(decoder)
    batch = batch_of(*documents(9), learned_from=9)
    assert len(batch.rows_N) == 0
    engine = Engine(decoder, work_of(batch, adapter, learned=3))
    loss, grads = engines(engine, batch, adapter)
    assert (loss, engine.loss(batch, adapter)) == (0.0, 0.0)
    assert not any(grad.any() for grad in grads)


def test_memory_grows_for_a_pack_that_was_not_foreseen_and_only_then(folder):
    decoder = load_decoder(folder)
    adapter = adapter_of(decoder)
    small, large = batch_of(*documents(9, 4)), batch_of(*documents(30, 17))
    engine = Engine(decoder, work_of(small, adapter))
    theirs = reference(decoder, large, adapter)
    agree(engines(engine, large, adapter), theirs)
    grown = engine.workspace
    assert grown.work.tokens == 47
    agree(engines(engine, small, adapter), reference(decoder, small, adapter))
    agree(engines(engine, large, adapter), theirs)
    assert engine.workspace is grown


def test_the_same_work_gives_the_same_bits_and_leftovers_do_not_matter(folder):
    decoder = load_decoder(folder)
    adapter = adapter_of(decoder, dropout=0.1)
    batch = batch_of(*documents(9, 30, 3))
    for grades in GRADES.values():
        engine = Engine(decoder, work_of(batch, adapter, grades))
        first = engines(engine, batch, adapter, step_key=3)
        for name in engine.workspace.layout:
            engine.workspace.all(name).fill_(float("nan"))
        second = engines(engine, batch, adapter, step_key=3)
        assert first[0] == second[0]
        assert all(torch.equal(one, other) for one, other in zip(first[1], second[1], strict=True))


def test_grades_and_dense_copies_do_not_change_a_bit(folder):
    decoder = load_decoder(folder)
    adapter = adapter_of(decoder, dropout=0.1)
    batch = batch_of(*documents(9, 30, 3))
    expected = engines(Engine(decoder, work_of(batch, adapter)), batch, adapter, step_key=3)
    for grades, dense in every(GRADES.values(), (0, 3)):
        decoder.keep_dense(dense)
        loss, grads = engines(Engine(decoder, work_of(batch, adapter, grades)), batch, adapter, step_key=3)
        assert loss == expected[0]
        assert all(torch.equal(one, other) for one, other in zip(grads, expected[1], strict=True))


def test_a_shared_prefix_is_what_its_samples_have_alone(folder):
    decoder = load_decoder(folder)
    adapter = adapter_of(decoder)
    prefix, first, second = documents(11, 6, 9)
    alone = batch_of(prefix + first, prefix + second, learned_from=14)
    values = {item.name: getattr(alone, item.name) for item in fields(Batch)}
    rows = [*range(17), *range(17 + 11, 17 + 20)]
    place = {row: number for number, row in enumerate(rows)}
    for name in ("tokens_T", "positions_T", "sample_ids_T"):
        values[name] = values[name][rows]
    values["rows_N"] = torch.tensor([place[row] for row in alone.rows_N.tolist()])
    values["spans"] = ((0, 11, 0, 0), (11, 17, 0, 11), (17, 26, 0, 11))
    shared = Batch(**values)
    ours = engines(Engine(decoder, work_of(shared, adapter)), shared, adapter)
    agree(ours, reference(decoder, alone, adapter))


def test_what_is_laid_out_is_what_is_held(folder):
    decoder = load_decoder(folder)
    adapter = adapter_of(decoder)
    batch = batch_of(*documents(9, 30, 3))
    sizes = {}
    for name, grades in GRADES.items():
        work = work_of(batch, adapter, grades)
        engine = Engine(decoder, work)
        engines(engine, batch, adapter)
        sizes[name] = engine.workspace.bytes
        assert sizes[name] == sum(slot.bytes for slot in layout(decoder.spec, work).values())
    assert sizes["layer"] < sizes["elementwise"] < sizes["none"]


@pytest.mark.parametrize("library", ["openblas", "torch"])
def test_matrix_libraries_agree(folder, library):
    if library not in blas.libraries():
        pytest.skip(f"{library} is not installed here")
    decoder = load_decoder(folder)
    adapter = adapter_of(decoder)
    batch = batch_of(*documents(9, 30, 3))
    with blas.using(library):
        ours = engines(Engine(decoder, work_of(batch, adapter)), batch, adapter)
    agree(ours, reference(decoder, batch, adapter))


def test_bfloat16_is_near(folder):
    decoder = load_decoder(folder, dtype=torch.bfloat16)
    exact = load_decoder(folder)
    adapter = adapter_of(decoder)
    batch = batch_of(*documents(9, 30, 3))
    ours = engines(Engine(decoder, work_of(batch, adapter, dtype=torch.bfloat16)), batch, adapter)
    theirs = reference(exact, batch, adapter)
    assert ours[0] == pytest.approx(theirs[0], rel=0.02)
    for mine, other in zip(ours[1], theirs[1], strict=True):
        assert relative(mine, other) < 0.1


@pytest.mark.parametrize("choice", ["torch", "native"])
@pytest.mark.parametrize("dense_head", [True, False])
def test_weights_are_autograds(folder, choice, dense_head):
    if choice == "native" and not native():
        pytest.skip("the native library is not built here")
    decoder = load_decoder(folder)
    decoder.keep_head(dense=dense_head)
    adapter = adapter_of(decoder)
    plain = batch_of(*documents(9, 30, 1, 17))
    weights = torch.rand(len(plain.rows_N), generator=torch.Generator().manual_seed(3)) * 3
    batch = replace(plain, weights_N=weights)
    with select.forced(choice):
        engine = Engine(decoder, work_of(batch, adapter, dense_head=dense_head))
        ours, unweighted = engines(engine, batch, adapter), engines(engine, plain, adapter)
        loss = engine.loss(batch, adapter)
    agree(ours, reference(decoder, batch, adapter))
    assert loss == pytest.approx(ours[0], rel=1e-9)
    assert ours[0] != pytest.approx(unweighted[0], rel=1e-3)
