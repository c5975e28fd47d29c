"""What a model of the general path is: the facts of transformers' tree that plan, adapter and record need.

It stands where `strop.model.spec.DecoderSpec` does. Paths are those of transformers' modules, and so of PEFT's files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_CONTEXTS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "max_seq_len")
_NO_LIMIT = 1 << 20


def context_of(config: Mapping[str, Any]) -> int:
    """Most tokens of a sample by a config of any kind; a million where it names no bound (recurrent models)."""
    named = [config[name] for name in _CONTEXTS if name in config]
    return next((value for value in named if isinstance(value, int) and value > 0), _NO_LIMIT)


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear module whose weight lies in NF4.

    Attributes:
        path: where it is in the tree.
        outputs: rows of its weight, as NF4 has it.
        inputs: columns.
        bias: whether it has one.
        transposed: whether the file has the weight [inputs, outputs] (GPT-2's Conv1D).
        adapted: whether it can have an adapter: it is called as a module, once a token, and PEFT adapts it.
    """

    path: str
    outputs: int
    inputs: int
    bias: bool
    transposed: bool
    adapted: bool

    @property
    def name(self) -> str:
        """The last word of its path, by which ``adapter.targets`` names it."""
        return self.path.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class GeneralSpec:
    """A model of the general path.

    Attributes:
        family: transformers' model_type, and that this is the general path.
        vocabulary: V.
        hidden: numbers of a token after the last layer.
        layers: how many.
        layers_path: the list of layers in the tree.
        context: most tokens of a sample; what the config names, or a million where it names none (recurrent models).
        linears: what lies in NF4.
        embedding: path of the embedding.
        head: path of the head.
        tied_head: whether they are one matrix.
        other_weights: numbers outside linears, embedding and head: norms, positions, convolutions.
        attention: transformers' implementation of attention that is used: "sdpa" or "eager".
        packs: whether documents of a pack can be expected to be told apart; tried on the loaded weights.
        windows: whether some layers see the nearest tokens alone.
    """

    family: str
    vocabulary: int
    hidden: int
    layers: int
    layers_path: str
    context: int
    linears: tuple[Linear, ...]
    embedding: str
    head: str
    tied_head: bool
    other_weights: int
    attention: str
    packs: bool
    windows: bool

    @property
    def adaptable(self) -> tuple[str, ...]:
        """Names of the linears that can have adapters, in the order of the tree."""
        return tuple(dict.fromkeys(linear.name for linear in self.linears if linear.adapted))

    def adapted(self, targets: Sequence[str]) -> Iterator[tuple[str, int, int]]:
        """(path, outputs, inputs) of every linear that ``targets`` name."""
        for linear in self.linears:
            if linear.adapted and linear.name in targets:
                yield linear.path, linear.outputs, linear.inputs

    def weights_below(self, layer: int) -> int:
        """Weights in NF4 of the layers below one."""
        places = ((self.layer_of(linear.path), linear) for linear in self.linears)
        return sum(one.outputs * one.inputs for place, one in places if place is not None and place < layer)

    @property
    def linear_weights(self) -> int:
        """Weights in NF4."""
        return sum(linear.outputs * linear.inputs for linear in self.linears)

    @property
    def parameters(self) -> int:
        """All weights, a tied embedding counted once; biases of linears left out."""
        ends = self.vocabulary * self.hidden * (1 if self.tied_head else 2)
        return self.linear_weights + ends + self.other_weights

    def layer_of(self, path: str) -> int | None:
        """The layer that a module lies in; None outside the layers."""
        rest = path.removeprefix(f"{self.layers_path}.")
        return None if rest == path else int(rest.partition(".")[0])
