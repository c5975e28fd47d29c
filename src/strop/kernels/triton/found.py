"""Whether Triton's kernels run on a device, and if not, why.

    STROP_TRITON=off? ── a CUDA device, of a generation that computes in bfloat16? ── Triton there? ── a kernel runs?

Triton needs a C compiler when it first launches a kernel. Therefore a small one is launched before any is relied on;
where that fails, torch computes, and the reason is kept in words.
"""

from __future__ import annotations

import os
from functools import cache
from subprocess import SubprocessError

import torch

# Ampere: the first with bfloat16 and asynchronous copies, which the kernels' tiles are laid out for.
_OLDEST = (8, 0)


def interpreted() -> bool:
    """Whether Triton's interpreter runs kernels, on any device, instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET", "") == "1"


@cache
def reason(device: torch.device) -> str:
    """Why kernels do not run on a device; empty where they do. The same for the whole process."""
    if os.environ.get("STROP_TRITON", "") == "off":
        return "switched off by STROP_TRITON=off"
    if device.type != "cuda" and not interpreted():
        return f"no kernels for {device.type} devices"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < _OLDEST:
        return "the device is older than Ampere"
    try:
        from strop.kernels.triton import launch
    except ImportError:
        return "Triton is not installed"
    try:
        runs = launch.runs(device)
    except (RuntimeError, OSError, SubprocessError, launch.TritonError) as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        return f"Triton cannot launch a kernel: {words[0]}"
    return "" if runs else "Triton computes a wrong sum"


def version() -> str:
    """Triton's version, for people; empty where there is none."""
    try:
        import triton
    except ImportError:
        return ""
    return str(triton.__version__)
