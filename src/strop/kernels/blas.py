"""The matrix product of a step, and which library computes it.

    out_MN = alpha · op(a)_MK op(b)_KN  (+ out_MN)                op(x) = x or xᵀ

On a CPU in float32 that is OpenBLAS, where the package `scipy-openblas32` is installed, called from Strop's own threads
(native/matmul.c): one thread per piece of the product, and pieces that follow from the shape alone, so that the number
of threads changes no bit. In bfloat16 it is Strop's own (native/matmul_amx.c) on CPUs with AMX: what torch calls there
compiles code for every shape that it meets, 4 ms and half a MiB each, and a pack of whole documents seldom has the
shape of another. Everywhere else it is torch.

With two threads on two Zen 4 cores OpenBLAS did 174 GFLOP/s and torch's MKL 128 at 2,048 × 576 × 960, 171 and 74 at
256 × 576 × 49,152. OpenBLAS' own threads spin while they wait; one that shares its core with another program holds up
all. That is why its threads are not used.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from strop.errors import UsageError
from strop.kernels import library, select

# What a BLAS with 32-bit sizes can be asked for.
_LARGEST = 2**31 - 1

_SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")


@dataclass(slots=True)
class _Choice:
    """The library that was asked for; empty: the best there is."""

    name: str = ""


_choice = _Choice()


def product(
    a_MK: Tensor,
    b_KN: Tensor,
    out_MN: Tensor,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    alpha: float = 1.0,
    add: bool = False,
) -> Tensor:
    """Writes alpha · op(a) · op(b) to ``out_MN``, or adds it, and returns ``out_MN``.

    Matrices may be views of wider ones: columns next to each other, rows anywhere. All are on one device and of one
    dtype, but that ``out_MN`` may be float32 where a and b have 16 bits: with AMX, and on CUDA devices where torch
    can, its sums are then not rounded.

    Args:
        a_MK: [M, K]; [K, M] with ``transpose_a``.
        b_KN: [K, N]; [N, K] with ``transpose_b``.
        out_MN: [M, N]; overlaps neither.
        transpose_a: a is given as its transpose.
        transpose_b: b is given as its transpose, as the weight [N, K] of a linear layer is.
        alpha: factor of the product, not of what it is added to.
        add: adds to ``out_MN`` instead of overwriting it.
    """
    if _goes_to_openblas(a_MK, b_KN, out_MN):
        rows, columns = out_MN.shape
        depth = a_MK.shape[0] if transpose_a else a_MK.shape[1]
        if out_MN.numel() > 0 and depth > 0:
            library.function("sgemm", "iilllfplplfpl")(
                *(int(transpose_a), int(transpose_b), rows, columns, depth, alpha),
                *(a_MK.data_ptr(), _row_stride(a_MK), b_KN.data_ptr(), _row_stride(b_KN)),
                *(1.0 if add else 0.0, out_MN.data_ptr(), _row_stride(out_MN)),
            )
            return out_MN
    if _goes_to_amx(a_MK, b_KN, out_MN):
        rows, columns = out_MN.shape
        depth = a_MK.shape[0] if transpose_a else a_MK.shape[1]
        failed = library.function("matmul_bfloat16", "iilllfplplipli", "i")(
            *(int(transpose_a), int(transpose_b), rows, columns, depth, alpha),
            *(a_MK.data_ptr(), _row_stride(a_MK), b_KN.data_ptr(), _row_stride(b_KN), int(add)),
            *(out_MN.data_ptr(), _row_stride(out_MN), int(out_MN.dtype is torch.float32)),
        )
        if failed:
            raise MemoryError("a matrix product got no memory to work in")
        return out_MN
    a_MK, b_KN = a_MK.t() if transpose_a else a_MK, b_KN.t() if transpose_b else b_KN
    if out_MN.dtype is not a_MK.dtype:
        if add:
            return out_MN.add_(product_in_float32(a_MK, b_KN), alpha=alpha)
        product_in_float32(a_MK, b_KN, out_MN)
        return out_MN if alpha == 1.0 else out_MN.mul_(alpha)
    if add or alpha != 1.0:
        return out_MN.addmm_(a_MK, b_KN, beta=1.0 if add else 0.0, alpha=alpha)
    return torch.mm(a_MK, b_KN, out=out_MN)


def product_in_float32(a_MK: Tensor, b_KN: Tensor, out_MN: Tensor | None = None) -> Tensor:
    """a · b in float32 [M, N], which 16-bit operands are multiplied and summed in.

    On a CUDA device it is never rounded, where torch can do that (2.8 and later); elsewhere it is rounded once to the
    operands' dtype.

    Args:
        a_MK: [M, K].
        b_KN: [K, N].
        out_MN: float32, written and returned; made where it is not given.
    """
    whole = out_MN is None or out_MN.is_contiguous()
    if a_MK.is_cuda and a_MK.itemsize < 4 and whole and _keeps_float32(a_MK.device, a_MK.dtype):
        wide_MN: Tensor = torch.mm(a_MK, b_KN, out_dtype=torch.float32, out=out_MN)
        return wide_MN
    rounded_MN = a_MK @ b_KN
    return rounded_MN.float() if out_MN is None else out_MN.copy_(rounded_MN)


@cache
def _keeps_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch writes the product of 16-bit matrices in float32 here: tried once, as it is used."""
    rows_KM = torch.full((64, 16), 1.0, dtype=dtype, device=device)
    rows_KM[0] = 2.0**-5
    given = torch.empty(8, 16, dtype=torch.float32, device=device)
    try:
        made = torch.mm(rows_KM[:, :8].t(), rows_KM, out_dtype=torch.float32)
        torch.mm(rows_KM[:, :8].t(), rows_KM, out_dtype=torch.float32, out=given)
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return made.dtype is torch.float32 and bool(((made == 63 + 2.0**-10) & (given == made)).all())


def _goes_to_openblas(*matrices: Tensor) -> bool:
    return select.uses_native(*matrices) and uses_openblas() and all(map(_fits, matrices))


def _goes_to_amx(a_MK: Tensor, b_KN: Tensor, out_MN: Tensor) -> bool:
    return (
        select.uses_native(a_MK, b_KN, dtype=torch.bfloat16)
        and select.uses_native(out_MN, dtype=torch.float32 if out_MN.dtype is torch.float32 else torch.bfloat16)
        and uses_amx()
        and a_MK.numel() > 0
        and b_KN.numel() > 0
    )


def _fits(matrix: Tensor) -> bool:
    """Whether a BLAS can read it: rows that do not overlap, sizes of 32 bits."""
    stride = _row_stride(matrix)
    return matrix.shape[1] <= stride <= _LARGEST and matrix.shape[0] <= _LARGEST


def _row_stride(matrix: Tensor) -> int:
    # The stride of a single row is any number, and of no use.
    return matrix.stride(0) if matrix.shape[0] > 1 else max(1, matrix.shape[1])


def libraries(dtype: torch.dtype = torch.float32) -> tuple[str, ...]:
    """What can compute products on this CPU, the best first.

    Float32: ``openblas`` where it is installed, and ``torch``. bfloat16: ``amx`` where the CPU has it, and ``torch``.
    """
    if dtype is torch.bfloat16:
        return ("amx", "torch") if library.instruction_set() == "amx" else ("torch",)
    return ("openblas", "torch") if dtype is torch.float32 and _openblas().sgemm else ("torch",)


def use(name: str) -> None:
    """Computes products with this library from now on, in the whole process, where it knows their dtype.

    Raises:
        UsageError: it is none of `libraries`.
    """
    here = dict.fromkeys((*libraries(), *libraries(torch.bfloat16)))
    if name not in here:
        raise UsageError(
            f"the library {name} for matrix products is not here",
            expected=" or ".join(sorted(here)),
            found=f"{name} ({_openblas().words})" if name == "openblas" else name,
            do="use torch" if name == "amx" else "install scipy-openblas32, or use torch",
        )
    _choice.name = name


@contextmanager
def using(name: str) -> Iterator[None]:
    """`use` for a while, for tests and comparisons."""
    before = _choice.name
    use(name)
    try:
        yield
    finally:
        _choice.name = before


def uses_openblas() -> bool:
    """Whether float32 products on a CPU are OpenBLAS'."""
    return _choice.name != "torch" and libraries()[0] == "openblas"


def uses_amx() -> bool:
    """Whether bfloat16 products on a CPU are Strop's own."""
    return _choice.name != "torch" and libraries(torch.bfloat16)[0] == "amx"


def describe() -> str:
    """What computes float32 products on a CPU, for people."""
    if uses_openblas():
        return _openblas().words
    return "torch" if _openblas().sgemm else f"torch ({_openblas().words})"


def set_threads(count: int) -> None:
    """Lets ``count`` threads share a product. Torch's own threads are set with torch."""
    library.set_threads(count)


@dataclass(frozen=True, slots=True)
class _OpenBLAS:
    """What was found: the address of its sgemm (0: nothing) and the words for it, or why there is none."""

    sgemm: int
    words: str


@cache
def _openblas() -> _OpenBLAS:
    """Opens OpenBLAS once, holds it to one thread a call and hands its sgemm to the native library."""
    if library.native() is None:
        return _OpenBLAS(0, "OpenBLAS is called by the native library, which is not used")
    try:
        package = importlib.import_module("scipy_openblas32")
        path = _shared_library(Path(package.get_lib_dir()))
        opened = ctypes.CDLL(str(path))
        sgemm = ctypes.cast(opened.scipy_cblas_sgemm, ctypes.c_void_p).value or 0
        opened.scipy_openblas_set_num_threads(1)
        opened.scipy_openblas_get_config.restype = ctypes.c_char_p
        opened.scipy_openblas_get_corename.restype = ctypes.c_char_p
        version = opened.scipy_openblas_get_config().decode().removeprefix("OpenBLAS ").split()[0]
        core = opened.scipy_openblas_get_corename().decode()
    except ImportError:
        return _OpenBLAS(0, "scipy-openblas32 is not installed")
    except (OSError, AttributeError) as error:
        return _OpenBLAS(0, f"scipy-openblas32 cannot be used: {error}")
    library.function("set_sgemm", "p")(sgemm)
    return _OpenBLAS(sgemm, f"OpenBLAS {version}, {core}")


def _shared_library(folder: Path) -> Path:
    """The library in the package's folder."""
    found = sorted(folder.glob(f"libscipy_openblas*{_SUFFIX}"))
    if not found:
        raise FileNotFoundError(f"no libscipy_openblas*{_SUFFIX} in {folder}")
    return found[0]
