"""Which implementation an operation uses: the native library, a Triton kernel, or torch everywhere else.

The choice is made anew at every call, from the tensors alone: float32 and bfloat16 on a CPU go to the library, if there
is one; what lies on one CUDA device goes to Triton, if its kernels run there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor

from strop.kernels import library
from strop.kernels.triton import found

_NAMES = {"amx": "AMX", "avx512": "AVX-512", "avx2": "AVX2", "neon": "NEON", "plain": "no vector instructions"}

# What the library's operations on rows are compiled for, by the name in theirs.
_NUMBERS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}

# What Triton's kernels read and write.
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)

_CPU = torch.device("cpu")

_forced: ContextVar[str] = ContextVar("forced", default="")


def uses_native(*tensors: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Whether the library computes on these: all on a CPU, of ``dtype``, their rows without gaps."""
    if _forced.get() in ("torch", "triton") or library.native() is None:
        return False
    return all(tensor.dtype is dtype and tensor.is_cpu and _rows_are_whole(tensor) for tensor in tensors)


def native_name(operation: str, *tensors: Tensor, only: torch.dtype | None = None) -> str:
    """The library's function for an operation on rows of these: ``gate_bfloat16``.

    Args:
        operation: its name without a dtype.
        tensors: what it reads and writes in that dtype.
        only: the dtype it is used for, where another stays with torch and its bits.

    Returns:
        Empty where the library does not compute on them; see `uses_native`.
    """
    dtype = tensors[0].dtype
    number = _NUMBERS.get(dtype) if only in (None, dtype) else None
    return f"{operation}_{number}" if number and uses_native(*tensors, dtype=dtype) else ""


def uses_triton(*tensors: Tensor) -> bool:
    """Whether a Triton kernel computes on these: floats of up to 32 bits, all on one device, rows without gaps."""
    choice = _forced.get()
    if choice in ("torch", "native") or (not choice and not tensors[0].is_cuda):
        return False
    device = tensors[0].device
    if not all(tensor.device == device and tensor.dtype in _FLOATS and _rows_are_whole(tensor) for tensor in tensors):
        return False
    return choice == "triton" or not found.reason(device)


def _rows_are_whole(tensor: Tensor) -> bool:
    return tensor.dim() == 0 or tensor.stride(-1) == 1 or tensor.shape[-1] == 1


@contextmanager
def forced(choice: Literal["torch", "native", "triton"]) -> Iterator[None]:
    """Holds the choice, for tests and comparisons: ``torch`` everywhere, or another, which has to be there.

    ``triton`` takes tensors of a CPU too, where Triton's interpreter is on.

    Raises:
        RuntimeError: it is not there.
    """
    if choice == "native" and library.native() is None:
        raise RuntimeError(f"the native library is not used: {library.reason()}")
    if choice == "triton" and (why := found.reason(_CPU if found.interpreted() else torch.device("cuda"))):
        raise RuntimeError(f"Triton's kernels are not used: {why}")
    token = _forced.set(choice)
    try:
        yield
    finally:
        _forced.reset(token)


def is_forced(choice: str) -> bool:
    """Whether this choice is held."""
    return _forced.get() == choice


def describe(device: torch.device = _CPU) -> str:
    """What computes on a device, for people: ``native C, AVX-512, 2 threads``, ``Triton 3.6.0``, ``torch (why)``."""
    if _forced.get() == "torch":
        return "torch (forced)"
    if device.type != "cpu":
        why = found.reason(device)
        return f"torch (no Triton kernels: {why})" if why else f"Triton {found.version()}"
    if library.native() is None:
        return f"torch (native library {library.reason()})"
    count = library.threads()
    isa = library.instruction_set()
    return f"native C, {_NAMES.get(isa, isa)}, {count} thread{'s' if count != 1 else ''}"
