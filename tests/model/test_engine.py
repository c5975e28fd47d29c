"""The engine against autograd over the reference decoder: losses and gradients, whatever is kept, wherever it lies."""

from dataclasses import fields, replace
from itertools import product as every

import pytest
import torch
from test_decoder import batch_of, build, documents, relative
from torch.utils._python_dispatch import TorchDispatchMode

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
    loss = engine.gradients(batch, adapter, 1, step_key).item()
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


class LateCopies:
    """Copies that are put off until something waits for them: what a GPU's stream of its own may do at worst."""

    def __init__(self, device: torch.device, places: int) -> None:
        self.queue: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    def copy(self, place: int, source: torch.Tensor, target: torch.Tensor) -> None:
        self.queue.append((place, source, target))

    def wait(self, place: int) -> None:
        # A stream does one after another, so that all that came before is done too.
        while any(number == place for number, _, _ in self.queue):
            _, source, target = self.queue.pop(0)
            target.copy_(source)

    def settle(self) -> None:
        for _, source, target in self.queue:
            target.copy_(source)
        self.queue.clear()


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize("layers", [1, 2, 3, 4, 7])
def test_the_machines_memory_does_not_change_a_bit(tmp_path, layers, late, monkeypatch):
    """Layers' inputs, the base, or both outside, whatever the number of layers; looking in between changes nothing."""
    if late:
        for module in ("host_inputs", "streamed_base"):
            monkeypatch.setattr(f"strop.model.{module}.Aside", LateCopies)
    build(tmp_path, num_hidden_layers=layers)
    decoder = load_decoder(tmp_path)
    adapter = adapter_of(decoder, dropout=0.1)
    batches = batch_of(*documents(9, 30, 3)), batch_of(*documents(5, 21))
    engine = Engine(decoder, work_of(batches[0], adapter))
    expected = [(engines(engine, batch, adapter, 3), engine.loss(batch, None)) for batch in batches]
    for grades, host_inputs, streamed in every(((layers, 0), (layers - 1, 1), (1, 1)), (True, False), (True, False)):
        decoder.keep_base(host=streamed)
        assert (decoder.stream is not None) == streamed
        engine = Engine(decoder, work_of(batches[0], adapter, grades, host_inputs=host_inputs))
        assert (engine.workspace.host_inputs is not None) == (host_inputs and grades[0] > 0)
        for name in engine.workspace.layout:
            engine.workspace.all(name).fill_(float("nan"))
        for batch, ((loss, grads), looked) in zip(batches, expected, strict=True):
            assert engine.loss(batch, None) == looked
            ours = engines(engine, batch, adapter, step_key=3)
            assert ours[0] == loss
            assert all(torch.equal(one, other) for one, other in zip(ours[1], grads, strict=True))


def test_layers_inputs_outside_leave_two_on_the_device(folder):
    decoder = load_decoder(folder)
    adapter = adapter_of(decoder)
    batch = batch_of(*documents(9, 30, 3))
    inside, outside = (
        Engine(decoder, work_of(batch, adapter, (3, 0), host_inputs=host)).workspace for host in (False, True)
    )
    one = len(batch.tokens_T) * decoder.spec.hidden * 4
    assert inside.bytes - outside.bytes == (decoder.spec.layers - 2) * one
    assert outside.host_inputs.bytes == decoder.spec.layers * one


def test_a_streamed_base_answers_as_it_did_and_comes_back_whole(folder):
    from strop.model.generate import generate

    decoder = load_decoder(folder, base="host")
    plain = load_decoder(folder)
    prompts = [[3, 5, 8], [13, 21]]
    expected = generate(plain, None, prompts, [], 6)
    assert generate(decoder, None, prompts, [], 6) == expected
    held = [weight.nbytes for layer in plain.layers for group in layer.groups for weight in group.weights]
    assert sum(held) <= decoder.stream.host_bytes < sum(held) + 512 * 4 * len(held)
    assert decoder.stream.device_bytes == 2 * decoder.stream.host_bytes // decoder.spec.layers
    decoder.keep_base(host=False)
    assert decoder.stream is None
    for layer, other in zip(decoder.layers, plain.layers, strict=True):
        for group, theirs in zip(layer.groups, other.groups, strict=True):
            for weight, its in zip(group.weights, theirs.weights, strict=True):
                for name in ("packed", "absmax8", "nested_absmax", "offset"):
                    assert torch.equal(getattr(weight, name), getattr(its, name))
    assert generate(decoder, None, prompts, [], 6) == expected


class Asked(TorchDispatchMode):
    """Notes the operations whose result the host has to know: there a GPU is waited for."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "_unique2")

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        if name in self.WAITS:
            self.waits.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("base", ["device", "host"])
def test_a_pass_asks_the_device_nothing(folder, dtype, base):
    """By torch's own operations, as on a device that has no others: losses stay where they are until they are read."""
    decoder = load_decoder(folder, dtype=dtype, base=base)
    adapter = adapter_of(decoder, dropout=0.1)
    plain = batch_of(*documents(9, 30, 3))
    batch = replace(plain, weights_N=torch.rand(len(plain.rows_N)))
    work = work_of(batch, adapter, (2, 1), dtype=dtype, host_inputs=True)
    engine = Engine(decoder, work)
    adapter.zero_gradients()
    with select.forced("torch"), Asked() as asked:
        losses = [engine.gradients(batch, adapter, 3.0, 5), engine.loss(batch, None)]
        assert asked.waits == []
        assert all(loss.dtype is torch.float64 and loss.dim() == 0 for loss in losses)
        losses[0].item()
    assert asked.waits == ["_local_scalar_dense"]


def test_a_layer_is_sent_for_before_it_is_asked_for(folder):
    """Up and down again each layer is brought once a direction, and all but the first are on their way before."""
    decoder = load_decoder(folder, base="host")
    stream, said = decoder.stream, []
    start = stream._start

    def told(layer: int) -> None:
        if stream._held[layer % 2] != layer:
            said.append(layer)
        start(layer)

    stream._start = told
    layers = decoder.spec.layers
    for index in [*range(layers), *reversed(range(layers))]:
        before = list(said)
        _ = decoder.layers[index].groups[0].weights
        assert index in before or index == 0
    assert said == [*range(layers), *reversed(range(layers - 2))]


def test_the_adapter_is_rounded_once_a_pass(folder):
    """In 16 bits the products take copies of its matrices; these stay in float32, and so do their gradients."""
    decoder = load_decoder(folder, dtype=torch.bfloat16)
    adapter = adapter_of(decoder)
    batch = batch_of(*documents(9, 30, 3))
    engine = Engine(decoder, work_of(batch, adapter, dtype=torch.bfloat16))
    first = engines(engine, batch, adapter)
    copies = engine._narrow._copies
    assert {copy.dtype for copy in copies} == {torch.bfloat16}
    # A's of a group lie below one another: they are multiplied as one, without a copy.
    q_RI, k_RI = (engine._narrow.of(adapter)[f"model.layers.0.self_attn.{name}"][0] for name in ("q_proj", "k_proj"))
    assert k_RI.data_ptr() == q_RI.data_ptr() + q_RI.nbytes
    assert {matrix.dtype for pair in adapter.matrices.values() for matrix in pair} == {torch.float32}
    assert {grad.dtype for grad in first[1]} == {torch.float32}
    with torch.no_grad():
        for matrix in adapter.parameters():
            matrix.mul_(1.5)
    second = engines(engine, batch, adapter)
    assert engine._narrow._copies is copies
    assert all(torch.equal(copy, m.detach().bfloat16()) for copy, m in zip(copies, adapter.parameters(), strict=True))
    assert second[0] != first[0]


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
