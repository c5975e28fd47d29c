"""Randomness as a function: numbers that follow from a name and an index, and from no state.

Two runs, two devices or two plans that ask for the same name and index get the same number; nothing has to be stored
to resume. `key` turns what a number is for (seed, step, tensor name …) into 32 bits, `hash32` spreads an index.
"""

from __future__ import annotations

import hashlib
from math import prod

import torch
from torch import Tensor

MASK32 = 0xFFFFFFFF


def key(*parts: int | str) -> int:
    """A 32-bit number for a list of integers and names: the start of their BLAKE2b hash."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=4)
    return int.from_bytes(digest.digest(), "little")


def hash32(values: Tensor) -> Tensor:
    """Mixes 32-bit numbers (held in int64), a bijection with good avalanche.

    The constants are those of "lowbias32" by Chris Wellons' search for integer hashes of low bias (bias 0.17).
    """
    values = values ^ (values >> 16)
    values = (values * 0x7FEB352D) & MASK32
    values = values ^ (values >> 15)
    values = (values * 0x846CA68B) & MASK32
    return values ^ (values >> 16)


def uniform(shape: tuple[int, ...], *parts: int | str) -> Tensor:
    """float32 numbers in [0, 1) of a shape, named by ``parts``; on the CPU."""
    index = torch.arange(prod(shape), dtype=torch.int64)
    # Two keyed rounds: one key alone would make every name a permutation of the same 2^32 numbers.
    numbers = hash32(hash32((index & MASK32) ^ key(*parts, "first")) ^ key(*parts, "second"))
    # 24 bits are what a float32 in [0, 1) can hold exactly.
    return ((numbers >> 8).to(torch.float32) * 2.0**-24).view(shape)
