"""That 4 bits really apply: every projection and every expert of every family, and what is said where one is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import tiny_general as general
from strop.errors import ModelError
from strop.kernels import nf4
from strop.model import load
from strop.model.decoder import Decoder
from strop.model.four_bit import InFourBits, as_facts, check_four_bits, in_four_bits, should_be
from strop.model.general import load as load_module
from strop.model.general.load import load_general
from strop.model.load import load_decoder
from strop.model.lora import adapter_size
from strop.model.tensors import ModelTensors
from tiny_families import CASES, write_model

MIXED = "qwen3_moe some layers"


@pytest.mark.parametrize("name", ["llama", "phi", "mixtral", MIXED, "gemma2", "chatglm"])
def test_all_matrices_of_the_layers_but_routers(name: str, tmp_path: Path) -> None:
    """By another way: the file's tensors of two axes within the layers, and torch's own count of what is held."""
    write_model(CASES[name], tmp_path)
    decoder, tensors = load_decoder(tmp_path / "own"), ModelTensors(tmp_path / "own")
    matrices = {
        key.removesuffix(".weight"): source.shape
        for key, source in tensors.table.items()
        if key.startswith("model.layers.") and len(source.shape) == 2 and not key.endswith("mlp.gate.weight")
    }
    assert should_be(decoder.spec) == matrices
    groups = [group for layer in decoder.layers for group in layer.groups]
    experts = [
        one for layer in decoder.layers if layer.experts for one in (*layer.experts.gate_up, *layer.experts.down)
    ]
    found = check_four_bits(decoder, "here")
    assert found == in_four_bits(decoder.spec)
    assert (found.projections, found.experts) == tuple(
        sum(len(one.weights) for one in part) for part in (groups, experts)
    )
    assert found.bytes == sum(weight.nbytes for group in (*groups, *experts) for weight in group.weights)
    assert found.weights == sum(rows * columns for rows, columns in matrices.values())


@pytest.fixture
def decoder(tmp_path: Path) -> Decoder:
    write_model(CASES[MIXED], tmp_path)
    return load_decoder(tmp_path / "own")


def expert_left_in_16_bits(decoder: Decoder) -> None:
    group = decoder.layers[1].experts.down[3]
    group.weights = [nf4.dequantize(group.weights[0]).bfloat16()]


def experts_cut_short(decoder: Decoder) -> None:
    decoder.layers[1].experts = replace(decoder.layers[1].experts, gate_up=decoder.layers[1].experts.gate_up[:-1])


def projection_of_another_shape(decoder: Decoder) -> None:
    group = decoder.layers[4].groups[3]
    group.weights = [replace(group.weights[0], shape=group.weights[0].shape[::-1])]


def half_of_the_codes(decoder: Decoder) -> None:
    group = decoder.layers[0].groups[1]
    group.weights = [replace(group.weights[0], packed=group.weights[0].packed[::2])]


def scales_not_quantised(decoder: Decoder) -> None:
    group = decoder.layers[0].groups[1]
    group.weights = [replace(group.weights[0], absmax8=group.weights[0].absmax8.float())]


def one_matrix_more(decoder: Decoder) -> None:
    group = decoder.layers[0].groups[3]
    group.weights = [*group.weights, group.weights[0]]


def layer_without_an_mlp(decoder: Decoder) -> None:
    decoder.layers[2].groups = decoder.layers[2].groups[:2]


@pytest.mark.parametrize(
    ("harm", "count", "path", "found"),
    [
        (expert_left_in_16_bits, 1, "layers.1.mlp.experts.3.down_proj", "torch.bfloat16 [64, 48], not quantised"),
        (experts_cut_short, 2, "layers.1.mlp.experts.3.gate_proj", "missing"),
        (projection_of_another_shape, 1, "layers.4.mlp.down_proj", "shape [96, 64]"),
        (half_of_the_codes, 1, "layers.0.self_attn.o_proj", "packed: 1,024 numbers, torch.uint8"),
        (scales_not_quantised, 1, "layers.0.self_attn.o_proj", "absmax8: 64 numbers, torch.float32"),
        (one_matrix_more, 1, "layers.0.mlp.down_proj and 1 more", "no such matrix is known"),
        (layer_without_an_mlp, 3, "layers.2.mlp.down_proj", "missing"),
    ],
)
def test_what_is_not_in_four_bits_is_named(decoder: Decoder, harm, count: int, path: str, found: str) -> None:
    harm(decoder)
    with pytest.raises(ModelError) as error:
        check_four_bits(decoder, "models/mine")
    assert error.value.what.startswith(f"models/mine: {count} of {len(should_be(decoder.spec))} matrices")
    assert path in error.value.expected
    assert found in error.value.found


@pytest.mark.parametrize("base", ["device", "host"])
def test_a_loader_that_passes_over_experts_is_stopped(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As tools do that replace modules by their class: what they do not know stays as it was.

    A base in the machine's memory is looked at before it goes there: what comes from there is bytes.
    """
    write_model(CASES["mixtral"], tmp_path)
    right = load.make_layer

    def passing_over(*arguments):
        layer = right(*arguments)
        for group in layer.experts.down:
            group.weights = [nf4.dequantize(group.weights[0])]
        return layer

    monkeypatch.setattr(load, "make_layer", passing_over)
    with pytest.raises(ModelError, match="matrices of the base are not in NF4 as they should be") as error:
        load_decoder(tmp_path / "own", base=base)
    assert "layers.0.mlp.experts.0.down_proj" in error.value.expected


def test_on_the_general_path_every_linear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = general.write_model(general.CASES["GPT-2"], tmp_path)
    decoder = load_general(folder)
    found = in_four_bits(decoder.spec)
    assert (found.projections, found.experts) == (len(decoder.linears), 0)
    assert found.bytes == sum(linear.frozen.weights[0].nbytes for linear in decoder.linears)
    assert found.weights == decoder.spec.linear_weights
    right = load_module.assemble

    def in_full(*arguments):
        made = right(*arguments)
        frozen = made.linears[2].frozen
        frozen.weights = [nf4.dequantize(frozen.weights[0])]
        return made

    monkeypatch.setattr(load_module, "assemble", in_full)
    with pytest.raises(ModelError, match="1 of") as error:
        load_general(folder)
    assert decoder.linears[2].path in error.value.expected


def test_adapters_are_where_a_layer_has_what_they_name(decoder: Decoder) -> None:
    """Of layers with experts an MLP's projections are not there: no path, no parameter."""
    spec = decoder.spec
    paths = [path for path, _, _ in spec.adapted(("q_proj", "up_proj"))]
    assert paths == [path for path in should_be(spec) if path.endswith(("q_proj", "mlp.up_proj"))]
    assert 0 < sum(path.endswith("up_proj") for path in paths) < spec.layers
    sizes = [sum(should_be(spec)[path]) for path in paths]
    assert adapter_size(spec, ("q_proj", "up_proj"), 3) == 3 * sum(sizes)


def test_what_is_said() -> None:
    """A 7B model has 224 projections in 4.127 bits (QLoRA, section 3)."""
    said = InFourBits(projections=224, experts=0, weights=6_476_005_376, bytes=3_340_774_272)
    assert str(said) == "all 224 projections in NF4, 4.13 bits a weight"
    assert str(said + said).startswith("all 448 projections in")
    assert as_facts(said)["bits_per_weight"] == 4.127
    assert "and all 2,304 matrices of experts in NF4" in str(replace(said, experts=2304))
