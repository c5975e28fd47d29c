"""How the C library gives memory back to the system."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

# mallopt's names in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE_BYTES = 4 << 20


@cache
def return_large_blocks() -> None:
    """Has glibc give large blocks back to the system as soon as they are freed.

    By default every freed block of up to 32 MiB teaches glibc to keep such blocks in its heap, where loading leaves
    holes that count as the process's memory for the rest of the run. A step allocates nothing large, so that nothing
    is lost by it.
    """
    if sys.platform == "linux" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
            mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)
