"""Which tensors a decoder is made of, and where each lies in a model's files.

    our name                                 file                                      rows          change
    model.layers.0.self_attn.q_proj.weight   transformer.h.0.attn.c_attn.weight        0 … 4096
    model.layers.0.self_attn.k_proj.weight   transformer.h.0.attn.c_attn.weight        4096 … 8192
    model.norm.weight                        transformer.ln_f.weight                   all
    lm_head.weight                           lm_head.weight                            all           unit rows

Our names are Llama's in transformers. Fused matrices are always fused by rows, so that a part is a list of row ranges:
a reader can read those alone. A family says its names (`strop.model.families.family`), its spec what is fused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from strop.errors import ModelError
from strop.model.families import family_of, read_config, spec_from_config
from strop.model.families.family import Family
from strop.model.spec import DecoderSpec, Rows, rows_of
from strop.model.weights import WeightReader

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a tensor of ours lies.

    Attributes:
        name: the tensor in the file.
        file_shape: its whole shape there.
        shape: the shape that ours has.
        rows: the ranges of rows that ours takes of it, in order; None for all.
        change: what is done to it: "", "plus one", "unit rows" or "transposed".
    """

    name: str
    file_shape: tuple[int, ...]
    shape: tuple[int, ...]
    rows: Rows | None = None
    change: str = ""

    def changed(self, tensor: Tensor) -> Tensor:
        """Our tensor, of the rows that it takes of the file's.

        "plus one" is added in float32, where transformers adds it; "unit rows" divides by the Euclidean length, as
        torch.nn.functional.normalize does.
        """
        import torch

        if self.change == "plus one":
            return tensor.float() + 1.0
        if self.change == "unit rows":
            return torch.nn.functional.normalize(tensor)
        return tensor.T.contiguous() if self.change == "transposed" else tensor


class Tensors:
    """The tensors of a model folder by the names of a tree, whatever its files call them.

    Attributes:
        config: its config.json.
        reader: its files.
        table: where each tensor lies.
    """

    def __init__(self, config: dict[str, Any], reader: WeightReader, table: dict[str, Source]) -> None:
        self.config, self.reader, self.table = config, reader, table

    @property
    def projections(self) -> list[str]:
        """Names of the tensors that lie in NF4, in the order in which they are taken."""
        raise NotImplementedError

    def read(self, name: str) -> Tensor:
        """One tensor, in the dtype of the file unless the family changes it.

        Raises:
            ModelError: it holds numbers that are not finite.
        """
        source = self.table[name]
        tensor = self.reader.read(source.name, source.rows)
        lowest, highest = tensor.aminmax()
        if not (lowest.isfinite() and highest.isfinite()):
            raise ModelError(
                f"{self.reader.folder}: tensor {source.name} holds numbers that are not finite",
                expected="finite weights",
                found=f"lowest {lowest.item()}, highest {highest.item()}",
                do="fetch the model again",
            )
        return source.changed(tensor)

    def read_rows(self, name: str, rows_U: Tensor) -> Tensor:
        """Some rows of a matrix that is stored as such [U, columns], as `WeightReader.read_rows`."""
        return self.reader.read_rows(self.table[name].name, rows_U)

    def item_bytes(self, name: str) -> int:
        """Bytes of a number of a tensor, as the file has it."""
        return self.reader.item_bytes(self.table[name].name)


class ModelTensors(Tensors):
    """The tensors of a model of a family, by our names.

    Args:
        folder: config.json and safetensors, of a supported family.

    Attributes:
        config: its config.json.
        spec: what that was read into.
        reader: its files.
        table: where each tensor lies.

    Raises:
        ModelError: the folder, its config, a tensor's name or shape are not right.
    """

    def __init__(self, folder: Path) -> None:
        config = read_config(folder)
        self.spec = spec_from_config(config, folder / "config.json")
        reader = WeightReader(folder)
        reader.check_layers(self.spec.layers)
        super().__init__(config, reader, tensor_table(self.spec, config))
        reader.check({source.name: source.file_shape for source in self.table.values()})

    @property
    def projections(self) -> list[str]:
        """Our names of the projections, in the order of the layers."""
        return [
            name
            for name, source in self.table.items()
            if name.startswith("model.layers.") and name.endswith("_proj.weight") and len(source.shape) == 2
        ]


class _Tensor(NamedTuple):
    """A tensor of the decoder."""

    layer: int | None
    """None outside the layers."""
    module: str
    """Within its layer, ``{expert}`` unfilled; or the whole path outside the layers."""
    expert: int | None
    suffix: str
    shape: tuple[int, ...]

    def called(self, module: str, layers: str) -> str:
        """Its name where its module has this one and the layers are there."""
        place = "" if self.layer is None else f"{layers}.{self.layer}."
        return f"{place}{module}.{self.suffix}".replace("{expert}", str(self.expert))

    @property
    def name(self) -> str:
        """Its name in our tree."""
        return self.called(self.module, "model.layers")


def tensor_table(spec: DecoderSpec, config: dict[str, Any]) -> dict[str, Source]:
    """Where every tensor of a decoder lies in the files of its family: our name → source.

    Args:
        spec: what the config was read into.
        config: the parsed config.json, which names the family.
    """
    family = family_of(config)
    prefix = family.prefix(config)
    modules = {part: module for module in spec.modules for part in module.parts}
    table = {}
    for tensor in _tensors(spec):
        part = tensor.module.rpartition(".")[2]
        module, rows = _called(tensor, family), None
        file_shape = tensor.shape
        if part in modules and tensor.layer is not None and tensor.expert is None:
            module = modules[part].path
            if len(modules[part].parts) > 1:
                whole = sum(spec.projection_shape(one)[0] for one in modules[part].parts)
                rows, file_shape = rows_of(spec, modules[part], part), (whole, *tensor.shape[1:])
        name = prefix + tensor.called(module, family.layers)
        table[tensor.name] = Source(name, file_shape, tensor.shape, rows, family.change(tensor.module, spec))
    return table


def expected_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a decoder, by our names."""
    return {tensor.name: tensor.shape for tensor in _tensors(spec)}


def _called(tensor: _Tensor, family: Family) -> str:
    names = family.names if tensor.layer is None else family.layer_names
    return names.get(tensor.module, tensor.module)


def _tensors(spec: DecoderSpec) -> Iterator[_Tensor]:
    """Every tensor of a decoder: the embedding, layer by layer, the last norm, the head."""
    suffixes = ("weight", "bias") if spec.norm == "layer" else ("weight",)
    yield _Tensor(None, "model.embed_tokens", None, "weight", (spec.vocabulary, spec.hidden))
    for layer in range(spec.layers):
        yield from _projections(spec, layer)
        for name, width in spec.norms.items():
            for suffix in suffixes if "." not in name else ("weight",):
                yield _Tensor(layer, name, None, suffix, (width,))
    for suffix in suffixes:
        yield _Tensor(None, "model.norm", None, suffix, (spec.hidden,))
    if not spec.tied_head:
        yield _Tensor(None, "lm_head", None, "weight", (spec.vocabulary, spec.hidden))
    if spec.head_bias:
        yield _Tensor(None, "lm_head", None, "bias", (spec.vocabulary,))


def _projections(spec: DecoderSpec, layer: int) -> Iterator[_Tensor]:
    for name in spec.projections_of(layer):
        block = "self_attn" if name in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
        shape = spec.projection_shape(name)
        yield _Tensor(layer, f"{block}.{name}", None, "weight", shape)
        if spec.has_bias(name):
            yield _Tensor(layer, f"{block}.{name}", None, "bias", shape[:1])
    experts = spec.experts if spec.has_experts(layer) else None
    if experts:
        wide, narrow = (experts.intermediate, spec.hidden), (spec.hidden, experts.intermediate)
        yield _Tensor(layer, "mlp.gate", None, "weight", (experts.count, spec.hidden))
        for expert in range(experts.count):
            for name, shape in (("gate_proj", wide), ("up_proj", wide), ("down_proj", narrow)):
                yield _Tensor(layer, f"mlp.experts.{{expert}}.{name}", expert, "weight", shape)
