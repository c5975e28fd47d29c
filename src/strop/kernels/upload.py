"""Numbers of the host on a device, without the host waiting for what the device is doing."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(numbers: Tensor, device: torch.device) -> Tensor:
    """A copy of the numbers on a device; to a GPU it comes from pinned memory, in its turn among what was launched."""
    if device.type != "cuda":
        return numbers.to(device)
    # The allocator of pinned memory gives it to nobody else before the copy is done.
    return numbers.pin_memory().to(device, non_blocking=True)
