"""Which implementation an operation uses: the native library where it can, torch everywhere else.

The choice is made anew at every call, from the tensors alone: float32 on a CPU goes to the library, if there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor

from strop.kernels import library

_NAMES = {"avx512": "AVX-512", "avx2": "AVX2", "neon": "NEON", "plain": "no vector instructions"}

_forced: ContextVar[str] = ContextVar("forced", default="")


def uses_native(*tensors: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Whether the library computes on these: all on a CPU, of ``dtype``, their rows without gaps."""
    if _forced.get() == "torch" or library.native() is None:
        return False
    return all(tensor.dtype is dtype and tensor.is_cpu and _rows_are_whole(tensor) for tensor in tensors)


def _rows_are_whole(tensor: Tensor) -> bool:
    return tensor.dim() == 0 or tensor.stride(-1) == 1 or tensor.shape[-1] == 1


@contextmanager
def forced(choice: Literal["torch", "native"]) -> Iterator[None]:
    """Holds the choice, for tests and comparisons: ``torch`` everywhere, or ``native``, which has to be there."""
    if choice == "native" and library.native() is None:
        raise RuntimeError(f"the native library is not used: {library.reason()}")
    token = _forced.set(choice)
    try:
        yield
    finally:
        _forced.reset(token)


def describe() -> str:
    """What computes on a CPU, for people: ``native C, AVX-512, 2 threads``, or ``torch (why)``."""
    if _forced.get() == "torch":
        return "torch (forced)"
    if library.native() is None:
        return f"torch (native library {library.reason()})"
    count = library.threads()
    isa = library.instruction_set()
    return f"native C, {_NAMES.get(isa, isa)}, {count} thread{'s' if count != 1 else ''}"
