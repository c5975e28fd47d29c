"""Tiles of attention by head size, dtype and generation: M queries by N keys. The first of each list runs untuned.

Before Hopper the first fits into the 99 KiB of shared memory that a program has on a card of the RTX 30 and 40 series.
Hopper has 227 KiB, and its matrix units take 64 rows of the left factor at a time: queries where they gather, keys
where their gradients are summed. The first there is the one of fewest instructions a score whose loops keep everything
in registers (`benchmarks/gpu_compiled.py --tiles`). The rest of a list is there to be measured. float32 is multiplied
without tensor cores, exactly, for comparisons; its tiles are small, and one size does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from strop.kernels.triton.tuning import Config

HOPPER = 9


def forward_configs(width: int, dtype: torch.dtype, generation: int) -> tuple[Config, ...]:
    """For heads padded to a width, on a device of a major compute capability."""
    if dtype is torch.float32:
        return (_config(16, 16, 4, 1),) if width > 128 else (_config(32, 32, 4, 1),)
    if width > 128:
        small, *large = _config(64, 32, 4, 1), _config(128, 64, 8, 2), _config(128, 32, 8, 2)
    elif width > 64:
        small, *large = _config(64, 64, 4, 2), _config(128, 64, 8, 3), _config(128, 128, 8, 2), _config(64, 64, 4, 3)
    else:
        small, *large = _config(64, 64, 4, 2), _config(128, 64, 8, 3), _config(128, 64, 4, 3), _config(128, 128, 8, 2)
    return _ordered(small, large, generation)


def query_configs(width: int, dtype: torch.dtype, generation: int) -> tuple[Config, ...]:
    """For the gradient of queries."""
    if dtype is torch.float32:
        return (_config(16, 16, 4, 1),) if width > 64 else (_config(32, 32, 4, 1),)
    if width > 128:
        small, *large = _config(32, 32, 4, 1), _config(64, 32, 4, 1), _config(64, 32, 8, 2)
    elif width > 64:
        small, *large = _config(64, 32, 4, 1), _config(128, 64, 8, 2), _config(128, 32, 8, 2), _config(64, 64, 4, 2)
    else:
        small, *large = _config(64, 64, 4, 1), _config(128, 64, 8, 2), _config(64, 64, 4, 3)
    return _ordered(small, large, generation)


def key_configs(width: int, dtype: torch.dtype, generation: int) -> tuple[Config, ...]:
    """For the gradients of keys and values."""
    if dtype is torch.float32:
        return (_config(16, 16, 4, 1),) if width > 64 else (_config(32, 32, 4, 1),)
    if width > 128:
        # Larger tiles spill registers on Hopper too, or ask for twice the instructions a score.
        return (_config(32, 32, 4, 1), _config(32, 64, 8, 2))
    if width > 64:
        small, *large = _config(32, 64, 4, 1), _config(32, 128, 8, 2), _config(64, 64, 8, 2), _config(64, 128, 8, 2)
    else:
        small, *large = _config(64, 64, 4, 1), _config(32, 128, 8, 2), _config(64, 128, 8, 2), _config(64, 64, 4, 2)
    return _ordered(small, large, generation)


# By the name that a choice is kept under.
CONFIGS: dict[str, Callable[[int, torch.dtype, int], tuple[Config, ...]]] = {
    "attention.forward": forward_configs,
    "attention.queries": query_configs,
    "attention.keys": key_configs,
}


def _ordered(small: Config, large: list[Config], generation: int) -> tuple[Config, ...]:
    return (*large, small) if generation >= HOPPER else (small, *large)


def _config(queries: int, keys: int, warps: int, stages: int) -> Config:
    return Config({"M": queries, "N": keys}, warps, stages)
