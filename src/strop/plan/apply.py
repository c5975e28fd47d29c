"""A plan put into force: the processor's threads and matrix library, the allocator, the base's places, the engine."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

import torch

from strop.kernels import blas
from strop.model.decoder import Decoder
from strop.model.engine import Engine
from strop.model.workspace import Work
from strop.plan.plan import Plan

# mallopt's names in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE_BYTES = 4 << 20


def use_processor(plan: Plan) -> None:
    """Puts a plan's threads and matrix library into force, for the whole process."""
    _return_large_blocks()
    torch.set_num_threads(plan.threads)
    if plan.device == "cpu":
        blas.set_threads(plan.threads)
        blas.use(plan.matmul if plan.matmul in blas.libraries() else "torch")


def make_engine(decoder: Decoder, plan: Plan, work: Work) -> Engine:
    """An engine that computes as a plan says: dequantised copies, the head's dtype, what layers keep."""
    decoder.loss_chunk = plan.loss_chunk
    decoder.keep_dense(plan.dense_layers)
    decoder.keep_head(dense=plan.head == "dense")
    return Engine(decoder, work)


@cache
def _return_large_blocks() -> None:
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
