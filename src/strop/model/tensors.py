"""Which tensors a decoder is made of, and where each lies in a model's files.

    our name                                 file                                      rows          change
    model.layers.0.self_attn.q_proj.weight   transformer.h.0.attn.c_attn.weight        0 … 4096
    model.layers.0.self_attn.k_proj.weight   transformer.h.0.attn.c_attn.weight        4096 … 8192
    model.norm.weight                        transformer.ln_f.weight                   all
    lm_head.weight                           lm_head.weight                            all           unit rows

Our names are Llama's in transformers. Fused matrices are always fused by rows, so that a part is a list of row ranges:
the reader can read those alone. A family says its names and its fused matrices (`strop.model.families.family`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from strop.model.families import family_of
from strop.model.families.family import Family, Rows
from strop.model.spec import DecoderSpec

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
        change: what is done to it: "", "plus one" or "unit rows".
    """

    name: str
    file_shape: tuple[int, ...]
    shape: tuple[int, ...]
    rows: Rows | None = None
    change: str = ""

    def take(self, tensor: Tensor) -> Tensor:
        """Our tensor [shape], of the file's whole one [file_shape]."""
        import torch

        if self.rows is not None:
            parts = [tensor[start:end] for start, end in self.rows]
            tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self.changed(tensor)

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
        return tensor


class _Tensor(NamedTuple):
    """A tensor of the decoder: module (``{layer}``, ``{expert}`` unfilled), which one, "weight" or "bias", shape."""

    module: str
    layer: int
    expert: int
    suffix: str
    shape: tuple[int, ...]

    def named(self, module: str) -> str:
        return f"{module.replace('{layer}', str(self.layer)).replace('{expert}', str(self.expert))}.{self.suffix}"


def tensor_table(spec: DecoderSpec, config: dict[str, Any]) -> dict[str, Source]:
    """Where every tensor of a decoder lies in the files of its family: our name → source.

    Args:
        spec: what the config was read into.
        config: the parsed config.json, which names the family.
    """
    family = family_of(config)
    prefix = family.prefix(config)
    fused = family.fused(spec)
    rows_of: dict[str, int] = {}
    for module, ranges in fused.values():
        rows_of[module] = max(rows_of.get(module, 0), max(end for _, end in ranges))
    table = {}
    for tensor in _tensors(spec):
        change = family.change(tensor.module, spec)
        if tensor.module in fused:
            module, rows = fused[tensor.module]
            name, file_shape = tensor.named(module), (rows_of[module], *tensor.shape[1:])
            source = Source(prefix + name, file_shape, tensor.shape, rows, change)
        else:
            name = tensor.named(family.names.get(tensor.module, tensor.module))
            source = Source(prefix + name, tensor.shape, tensor.shape, None, change)
        table[tensor.named(tensor.module)] = source
    return table


def expected_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a decoder, by our names."""
    return {tensor.named(tensor.module): tensor.shape for tensor in _tensors(spec)}
