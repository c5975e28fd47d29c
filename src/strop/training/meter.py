"""Memory of this process on its device: now, and at its peak."""

from __future__ import annotations

import sys

import psutil
import torch

from strop.plan import gpu


def memory_bytes(device: torch.device) -> int:
    """Bytes in use: resident memory on a CPU; on a GPU torch's reservation and, beside it, the context."""
    if device.type == "cuda":
        return gpu.used_bytes(str(device))
    return int(psutil.Process().memory_info().rss)


def peak_bytes(device: torch.device) -> int:
    """The most that was in use since the process began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) + gpu.outside_bytes(str(device))
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kibibytes on Linux, bytes on macOS.
    return peak if sys.platform == "darwin" else peak * 1024
