"""Copies between the machine's memory and a GPU's that run beside the computing; on a CPU, plain copies at once.

copy(place, source, target)    after all that was launched before it
wait(place)                    what is launched from here on comes after the last copy of that place
"""

from __future__ import annotations

import torch
from torch import Tensor


class Aside:
    """A stream for copies, and the last copy of each of a few places.

    Args:
        device: of the computing.
        places: how many there are.
    """

    def __init__(self, device: torch.device, places: int) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._copied: list[torch.cuda.Event | None] = [None] * places

    def copy(self, place: int, source: Tensor, target: Tensor) -> None:
        """Copies, once all that has been launched up to now is done with both."""
        if self._stream is None:
            target.copy_(source)
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self._stream)
        self._copied[place] = event

    def wait(self, place: int) -> None:
        """Has what is launched from here on wait for the last copy of a place."""
        event = self._copied[place]
        if event is not None:
            torch.cuda.current_stream(self._device).wait_event(event)
            self._copied[place] = None

    def settle(self) -> None:
        """Waits, on the host, for every copy: before memory is given back."""
        if self._stream is not None:
            self._stream.synchronize()
