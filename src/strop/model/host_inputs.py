"""Inputs of layers that are computed a second time, in the machine's memory: two of them are on the device at a time.

    forward    layer i begins: its input goes out, while layer i computes; layer i + 1's is written to the other place
    backward   layer i begins: the input of layer i − 1 comes in, while layer i computes

Layer i's input is in place i mod 2 whenever it is on the device. On a GPU the copies run on a stream of their own, from
and to pinned memory; events keep them and the computing in order. On a CPU they are plain copies: the same numbers.

Shapes: T tokens of the largest pack, D hidden, L layers that are computed again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from strop.model.streams import Aside


class HostInputs:
    """Room for the inputs, and which of them are on the device.

    Args:
        layers: L, from the bottom.
        places_TD: the two places on the device.
    """

    def __init__(self, layers: int, places_TD: tuple[Tensor, Tensor]) -> None:
        self._places_TD = places_TD
        device = places_TD[0].device
        self._host_LTD = torch.empty(
            layers, *places_TD[0].shape, dtype=places_TD[0].dtype, pin_memory=device.type == "cuda"
        )
        self._aside = Aside(device, 2)
        self._held: list[int | None] = [None, None]

    def place(self, layer: int) -> Tensor:
        """Where a layer's input is while it is on the device: [T, D]."""
        return self._places_TD[layer % 2]

    def room(self, layer: int) -> Tensor:
        """The same, to be written to: what is on its way out of it has left."""
        self._aside.wait(layer % 2)
        self._held[layer % 2] = None
        return self.place(layer)

    def send(self, layer: int, tokens: int) -> None:
        """Begins to take the input of a layer out, once it is written."""
        self._held[layer % 2] = layer
        source, target = self.place(layer)[:tokens], self._host_LTD[layer, :tokens]
        self._aside.copy(layer % 2, source, target)

    def bring(self, layer: int, tokens: int, *, lowest: int) -> None:
        """Has the input of a layer on the device, and begins to bring that of the layer below it.

        Args:
            layer: the layer that is about to be computed again, from the top downwards.
            tokens: tokens of the pack.
            lowest: the lowest layer that will be.
        """
        self._start(layer, tokens)
        self._aside.wait(layer % 2)
        if layer > lowest:
            self._start(layer - 1, tokens)

    def settle(self) -> None:
        """Waits until nothing is on its way."""
        self._aside.settle()

    @property
    def bytes(self) -> int:
        """What is held of the machine's memory."""
        return self._host_LTD.nbytes

    def _start(self, layer: int, tokens: int) -> None:
        if self._held[layer % 2] != layer:
            self._held[layer % 2] = layer
            self._aside.copy(layer % 2, self._host_LTD[layer, :tokens], self.place(layer)[:tokens])
