"""A GPU before anything runs on it: how it shall compute, and what its memory holds beside torch's own.

    used on the card = torch's reservation + this process's context, libraries and kernels + other processes

The driver tells the first and the sum. What other processes hold is settled at the first look and taken to stay: on a
card of its own it is nothing, and the rest is this process's, exactly. Where more is in use than any context takes,
others are there, and the context is taken to be as large as a common one.
"""

from __future__ import annotations

import gc
import os
import sys
from functools import cache

import torch

# A context with its libraries and kernels takes less than the first on any card we know of; the second is common.
LARGEST_CONTEXT = 1 << 30
COMMON_CONTEXT = 512 << 20
# Of torch's 32-bit version number, where the allocator's settings have a name for all devices.
_ALLOCATOR_NAMED = (2, 9)


def prepare(device: str) -> None:
    """Has a GPU compute the same bits every time, in full precision, for the whole process.

    Sums are made in a fixed order; float32 products are not rounded to TensorFloat-32, and 16-bit ones add up in
    float32. Best before anything has run on the device: cuBLAS and the allocator read their settings once.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    name = "PYTORCH_ALLOC_CONF" if version >= _ALLOCATOR_NAMED else "PYTORCH_CUDA_ALLOC_CONF"
    if sys.platform == "linux" and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        # Packs of many sizes would leave holes in blocks that cannot grow.
        os.environ.setdefault(name, "expandable_segments:True")
    torch.cuda.set_device(_index(device))
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # set through a property


def default_dtype(device: str) -> str:
    """What products are made in: bfloat16 where the tensor cores know it (Ampere and later), else float32."""
    return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"


def memory(device: str) -> tuple[int, int]:
    """(bytes of the card, bytes of it that this process has or may have)."""
    _, total = torch.cuda.mem_get_info(device)
    return total, total - others_bytes(device)


def used_bytes(device: str) -> int:
    """What this process holds of the card: torch's reservation, and what is outside it."""
    return torch.cuda.memory_reserved(device) + outside_bytes(device)


def outside_bytes(device: str) -> int:
    """What this process holds of the card beside torch's reservation: context, libraries, kernels."""
    return max(_beside_torch(device) - others_bytes(device), 0)


def give_back(device: str) -> None:
    """Gives the card what torch keeps of it and nothing uses, so that what is reserved is what is needed."""
    if device.startswith("cuda"):
        gc.collect()
        torch.cuda.empty_cache()


def forget_peak(device: str) -> None:
    """Counts the peak of torch's memory anew: what timing took is no part of a run."""
    torch.cuda.reset_peak_memory_stats(_index(device))


def others_bytes(device: str) -> int:
    """What other processes held of the card when it was first looked at."""
    return _others(_index(device))


@cache
def _others(index: int) -> int:
    return split_use(_beside_torch(f"cuda:{index}"))[1]


def _index(device: str) -> int:
    """The number of a device; the current one where the name has none."""
    number = torch.device(device).index
    return torch.cuda.current_device() if number is None else number


def split_use(beside_torch: int) -> tuple[int, int]:
    """(this process's context, other processes) of what is in use beside torch's own."""
    if beside_torch <= LARGEST_CONTEXT:
        return beside_torch, 0
    return COMMON_CONTEXT, beside_torch - COMMON_CONTEXT


def _beside_torch(device: str) -> int:
    free, total = torch.cuda.mem_get_info(device)
    return max(total - free - torch.cuda.memory_reserved(device), 0)
