"""The base in the machine's memory: its layers come to the device one by one, while the one before is computed.

    host     layer 0 │ layer 1 │ layer 2 │ …          each one block of bytes, pinned where the device is a GPU
    device   place 0: layer 2   place 1: layer 1      layer i is in place i mod 2

A group of projections asks for its weights (`StreamedGroup.weights`), and that brings its layer; the next one, in the
direction of the last two layers that were asked for, is sent for at once. Forward and backward passes, answers and the
reference decoder all go through here, and none of them knows it. Two layers of 7 billion weights are 208 MB.

From the top of a forward pass to the backward pass, and from there to the next forward pass, both layers needed first
are still on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from strop.kernels import nf4
from strop.kernels.nf4 import NF4Tensor
from strop.kernels.qlora_linear import FrozenGroup, WeightBuffer
from strop.model.streams import Aside

if TYPE_CHECKING:
    from strop.model.decoder import Layer

# Parts of a layer begin at multiples of so many bytes, as torch's own allocations on a GPU do.
ALIGNED = 512


class StreamedGroup(FrozenGroup):
    """A group whose weights are where `BaseStream` has them: on the device when they are asked for."""

    __slots__ = ("_need", "_views")

    def __init__(
        self, views: Sequence[NF4Tensor], need: Callable[[], None], bias_O: Tensor | None, buffer: WeightBuffer
    ) -> None:
        self._need, self._views = need, views
        self.bias_O, self.buffer, self.dense_OI = bias_O, buffer, None
        self.outputs = tuple(view.shape[0] for view in views)

    @property
    def weights(self) -> Sequence[NF4Tensor]:  # type: ignore[override] # a field of the class above
        """The weights, on the device from now until two other layers have been asked for."""
        self._need()
        return self._views


class BaseStream:
    """Holds the layers' weights and brings them.

    Args:
        device: where they are needed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._host: list[Tensor] = []
        self._groups: list[list[FrozenGroup]] = []
        self._places: list[Tensor] = []
        self._aside = Aside(device, 2)
        self._held: list[int | None] = [None, None]
        self._last = -1

    def add(self, layer: Layer) -> None:
        """Takes a layer's weights off the device; from `finish` on its groups are streamed."""
        groups = _groups(layer)
        parts = [part for group in groups for weight in group.weights for part in _parts(weight)]
        host = torch.zeros(_size(parts), dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        for room, part in zip(_rooms(host, parts), parts, strict=True):
            room.copy_(part.reshape(-1).view(torch.uint8))
        self._host.append(host)
        # What is left of the weights is their shapes.
        self._groups.append([_shell(group) for group in groups])
        _replace(layer, self._groups[-1])

    def finish(self, layers: Sequence[Layer]) -> None:
        """Makes the two places, once all layers are there."""
        largest = max((block.numel() for block in self._host), default=0)
        self._places = [torch.empty(largest, dtype=torch.uint8, device=self._device) for _ in range(2)]
        for layer, shells in zip(layers, self._groups, strict=True):
            shapes = [(group, [weight.shape for weight in group.weights]) for group in shells]
            views = iter(_views(self._places[layer.index % 2], [shape for _, some in shapes for shape in some]))
            _replace(
                layer,
                [
                    StreamedGroup([next(views) for _ in some], self._needer(layer.index), group.bias_O, group.buffer)
                    for group, some in shapes
                ],
            )

    def give_back(self, layers: Sequence[Layer]) -> None:
        """Puts every layer's weights on the device for good."""
        self.settle()
        self._places = []
        for layer, block, shells in zip(layers, self._host, self._groups, strict=True):
            there = block.to(self._device)
            views = iter(_views(there, [weight.shape for group in shells for weight in group.weights]))
            _replace(
                layer,
                [FrozenGroup([next(views) for _ in shell.weights], shell.bias_O, shell.buffer) for shell in shells],
            )

    def settle(self) -> None:
        """Waits until nothing is on its way."""
        self._aside.settle()

    @property
    def host_bytes(self) -> int:
        """What is held of the machine's memory."""
        return sum(block.nbytes for block in self._host)

    @property
    def device_bytes(self) -> int:
        """What is held of the device's."""
        return sum(place.nbytes for place in self._places)

    def _needer(self, layer: int) -> Callable[[], None]:
        return lambda: self._need(layer)

    def _need(self, layer: int) -> None:
        self._start(layer)
        self._aside.wait(layer % 2)
        if layer != self._last:
            following = layer + (1 if layer > self._last else -1)
            self._last = layer
            if 0 <= following < len(self._host):
                self._start(following)

    def _start(self, layer: int) -> None:
        if self._held[layer % 2] != layer:
            self._held[layer % 2] = layer
            block = self._host[layer]
            self._aside.copy(layer % 2, block, self._places[layer % 2][: block.numel()])


def stream_bytes(shapes: Sequence[tuple[int, ...]]) -> int:
    """Bytes of a layer of weights of these shapes, as they lie in a block."""
    return sum(_rounded(count) for shape in shapes for count, _ in _part_sizes(shape))


def _groups(layer: Layer) -> list[FrozenGroup]:
    experts = layer.experts
    return [*layer.groups, *((*experts.gate_up, *experts.down) if experts is not None else ())]


def _replace(layer: Layer, groups: Sequence[FrozenGroup]) -> None:
    """Gives a layer other groups, in the order of `_groups`."""
    own = len(layer.groups)
    layer.groups = tuple(groups[:own])
    if layer.experts is not None:
        middle = own + len(layer.experts.gate_up)
        layer.experts = replace(layer.experts, gate_up=tuple(groups[own:middle]), down=tuple(groups[middle:]))


def _shell(group: FrozenGroup) -> FrozenGroup:
    """The group with empty weights of the same shapes."""
    nothing = torch.empty(0, dtype=torch.uint8)
    weights = [NF4Tensor(nothing, nothing, nothing, nothing, weight.shape) for weight in group.weights]
    return FrozenGroup(weights, group.bias_O, group.buffer)


def _parts(weight: NF4Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return weight.packed, weight.absmax8, weight.nested_absmax, weight.offset


def _part_sizes(shape: tuple[int, ...]) -> list[tuple[int, torch.dtype]]:
    """Bytes and dtype of each part of a tensor in NF4."""
    count = prod(shape)
    blocks = -(-count // nf4.BLOCK)
    nested = 4 * -(-blocks // nf4.NESTED_BLOCK)
    return [(-(-count // 2), torch.uint8), (blocks, torch.uint8), (nested, torch.float32), (4, torch.float32)]


def _views(block: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[NF4Tensor]:
    """The tensors that lie in a block one after another."""
    found, first = [], 0
    for shape in shapes:
        parts = []
        for count, dtype in _part_sizes(shape):
            parts.append(block[first : first + count].view(dtype))
            first += _rounded(count)
        packed, absmax8, nested_absmax, offset = parts
        found.append(NF4Tensor(packed, absmax8, nested_absmax, offset.reshape(()), shape))
    return found


def _rooms(block: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
    """Where parts lie in a block."""
    rooms, first = [], 0
    for part in parts:
        rooms.append(block[first : first + part.nbytes])
        first += _rounded(part.nbytes)
    return rooms


def _size(parts: Sequence[Tensor]) -> int:
    return sum(_rounded(part.nbytes) for part in parts)


def _rounded(count: int) -> int:
    return -(-count // ALIGNED) * ALIGNED
