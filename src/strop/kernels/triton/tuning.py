"""Which of a kernel's configurations is used: the first of a fixed list, until a measurement or a checkpoint says else.

A configuration may decide the order of a sum, and with it the last bit of a result. Nothing is therefore tried out
while a run computes: `measure` is called by the probe, once, before it, and what it found can be written into a
checkpoint (`choices`) and taken up again (`load`). Keys say kernel, what shapes have in common, dtype and device:

    "attention.forward 128 torch.bfloat16 NVIDIA H200": 2
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import inf

import torch

_ROUNDS = 5

_chosen: dict[str, int] = {}


@dataclass(frozen=True, slots=True)
class Config:
    """How a kernel is compiled.

    Attributes:
        sizes: its constants.
        warps: of a program.
        stages: tiles that are on their way at a time.
        fused: whether a product and a sum may be one operation, rounded once; versions of Triton differ in what they
            take for granted.
    """

    sizes: Mapping[str, int]
    warps: int = 4
    stages: int = 2
    fused: bool = True

    def arguments(self) -> dict[str, int]:
        """As a launch takes them."""
        return {
            **self.sizes,
            "num_warps": self.warps,
            "num_stages": self.stages,
            "enable_fp_fusion": self.fused,
        }


def chosen(kernel: str, configs: Sequence[Config], device: torch.device, *shape: object) -> Config:
    """The configuration to launch with."""
    number = _chosen.get(key(kernel, device, *shape), 0) if _chosen else 0
    return configs[number if number < len(configs) else 0]


def key(kernel: str, device: torch.device, *shape: object) -> str:
    """What a choice is kept under."""
    return " ".join([kernel, *map(str, shape), _name(device)])


def choices() -> dict[str, int]:
    """All choices of this process that are not the default, to be kept: numbers in lists of configurations."""
    return dict(sorted(_chosen.items()))


def load(kept: Mapping[str, int]) -> None:
    """Takes up choices that were kept, in place of those of this process."""
    _chosen.clear()
    _chosen.update({name: int(number) for name, number in kept.items() if int(number) > 0})


def measure(
    kernel: str, configs: Sequence[Config], device: torch.device, *shape: object, run: Callable[[], object]
) -> int:
    """Times a launch under every configuration and keeps the number of the fastest, which is returned.

    One that asks for more registers or shared memory than the device has is passed over.

    Args:
        kernel: as for `chosen`.
        configs: the list, the default first.
        device: a CUDA device.
        shape: as for `chosen`.
        run: launches the kernel as it will be launched.
    """
    from triton.runtime.errors import OutOfResources

    name = key(kernel, device, *shape)
    times: list[float] = []
    for number in range(len(configs)):
        _chosen[name] = number
        try:
            run()
        except OutOfResources:
            times.append(inf)
        else:
            times.append(min(_milliseconds(run) for _ in range(_ROUNDS)))
    best = min(range(len(configs)), key=times.__getitem__)
    _chosen[name] = best
    if best == 0:
        del _chosen[name]
    return best


def _milliseconds(run: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


@cache
def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
