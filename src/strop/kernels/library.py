"""The native library: found, checked, opened once.

    native/_native.so ──there? opens? right ABI? STROP_NATIVE?──▶ ctypes.CDLL, or None and the reason in words

`hatch_build.py` compiles it when Strop is installed; without it every operation computes with torch. A library of
another version of the sources says another ABI number and is not used. The environment variable ``STROP_NATIVE`` is
``off`` (torch computes), or the name of an instruction set (``plain``, ``avx2``, ``avx512``, ``amx``, ``neon``) to use
instead of the best; all give the same bytes, but for products: what attention computes in fused multiply-adds, and in
bfloat16 by AMX, is rounded otherwise.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from strop.errors import UsageError

ABI = 3
PATH = Path(__file__).parent / "native" / f"_native{ {'win32': '.dll', 'darwin': '.dylib'}.get(sys.platform, '.so') }"

_TYPES = {
    "p": ctypes.c_void_p,
    "l": ctypes.c_int64,
    "i": ctypes.c_int,
    "u": ctypes.c_uint32,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
    "s": ctypes.c_char_p,
}


@cache
def native() -> ctypes.CDLL | None:
    """The library, or None; the same for the whole process.

    Raises:
        UsageError: ``STROP_NATIVE`` names an instruction set that this machine does not have.
    """
    return _found()[0]


@cache
def reason() -> str:
    """Why the library is used, or why not: a few words for ``strop doctor``."""
    return _found()[1]


@cache
def function(name: str, arguments: str, result: str = "") -> Callable[..., Any]:
    """An exported function, ready to be called; ask for it only where `native()` is not None.

    Args:
        name: its name without ``strop_``.
        arguments: a letter an argument: p pointer (as a number: ``tensor.data_ptr()``), l int64, i int, u uint32,
            f float, d double, s bytes.
        result: the same for what it returns; empty for nothing.
    """
    library = native()
    assert library is not None, "asked for a native function without the library"
    prototype = getattr(library, f"strop_{name}")
    prototype.argtypes = [_TYPES[letter] for letter in arguments]
    prototype.restype = _TYPES[result] if result else None
    return prototype  # type: ignore[no-any-return]


def set_threads(count: int) -> None:
    """Lets ``count`` threads share every native operation, the caller's included; without the library, nothing."""
    if native() is not None:
        function("set_threads", "i")(count)


def threads() -> int:
    """How many threads share a native operation."""
    return int(function("threads", "", "i")()) if native() is not None else 1


def instruction_set() -> str:
    """The instruction set in use: ``amx``, ``avx512``, ``avx2``, ``neon`` or ``plain``; empty without the library."""
    return bytes(function("isa", "", "s")()).decode() if native() is not None else ""


def release() -> None:
    """Frees the memory that the threads keep to work in."""
    if native() is not None:
        function("release", "")()


@cache
def _found() -> tuple[ctypes.CDLL | None, str]:
    wish = os.environ.get("STROP_NATIVE", "")
    if wish == "off":
        return None, "switched off by STROP_NATIVE=off"
    library, why = _open(PATH)
    if library is None:
        return None, why
    import torch

    # Until someone says otherwise: as many threads as torch uses, which knows of OMP_NUM_THREADS and the like.
    library.strop_set_threads(torch.get_num_threads())
    if wish and not library.strop_use(wish.encode()):
        raise UsageError(
            f"STROP_NATIVE={wish}: no such instruction set here",
            expected="off, or one of plain, avx2, avx512, amx, neon that this CPU has",
            found=wish,
            do="unset STROP_NATIVE: the best is chosen by itself",
        )
    return library, f"STROP_NATIVE={wish}" if wish else "compiled when Strop was installed"


def _open(path: Path) -> tuple[ctypes.CDLL | None, str]:
    """The library at a path, if it opens and is of this version."""
    if not path.exists():
        return None, "not compiled: no C compiler worked when Strop was installed"
    try:
        library = ctypes.CDLL(str(path))
        abi = library.strop_abi()
    except (OSError, AttributeError) as error:
        return None, f"cannot be loaded: {error}"
    if abi != ABI:
        return None, f"out of date (ABI {abi}, {ABI} is needed): install Strop again"
    return library, ""
