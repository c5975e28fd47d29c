"""Tiles of attention by head size and dtype: M queries by N keys. The first of each list is what runs untuned.

The first fits into the 99 KiB of shared memory that a program has on a card of the RTX 30 and 40 series
(tests/kernels/triton/test_compile.py holds it to that); the others are for larger chips and are chosen by measurement.
"""

from __future__ import annotations

import torch

from strop.kernels.triton.tuning import Config


def forward_configs(width: int, dtype: torch.dtype) -> tuple[Config, ...]:
    """For heads padded to a width."""
    if dtype is torch.float32:
        return (_config(16, 16, 4, 1),) if width > 128 else (_config(32, 32, 4, 1),)
    if width > 128:
        return (_config(64, 32, 4, 1), _config(128, 32, 8, 2), _config(64, 64, 8, 2))
    if width > 64:
        return (_config(64, 64, 4, 2), _config(128, 64, 8, 2), _config(128, 64, 8, 3), _config(128, 32, 4, 3))
    return (_config(64, 64, 4, 2), _config(128, 64, 4, 3), _config(128, 64, 8, 3), _config(128, 128, 8, 2))


def backward_configs(width: int, dtype: torch.dtype) -> tuple[Config, ...]:
    """The same tiles for the gradients of queries and of keys and values."""
    if dtype is torch.float32:
        return (_config(16, 16, 4, 1),) if width > 64 else (_config(32, 32, 4, 1),)
    if width > 128:
        return (_config(32, 32, 4, 1), _config(64, 32, 8, 1), _config(32, 64, 8, 1))
    if width > 64:
        return (_config(32, 64, 4, 1), _config(64, 64, 8, 1), _config(64, 64, 8, 2), _config(32, 128, 8, 2))
    return (_config(64, 64, 4, 1), _config(64, 64, 4, 2), _config(32, 128, 4, 2), _config(64, 128, 8, 2))


def _config(queries: int, keys: int, warps: int, stages: int) -> Config:
    return Config({"M": queries, "N": keys}, warps, stages)
