"""Dropout whose mask is a function of (seed, step, sample, projection, position, feature), and of nothing else.

The mask of an element does not depend on the pack a sample lies in, on its neighbours, on the device or on whether
the layer is computed a second time, so that a plan never changes the result and a resume needs no random state.

    key_T     one 32-bit number a token: hash of (seed, step, sample, position); made once a pack
    salt      one 32-bit number a projection
    keep[t, i] = hash(key_T[t] ⊕ salt, i) ≥ p · 2^32
"""

from __future__ import annotations

import torch
from torch import Tensor

from strop.kernels.random import MASK32, hash32


def token_keys(step_key: int, sample_ids_T: Tensor, positions_T: Tensor) -> Tensor:
    """One key a token.

    Args:
        step_key: 32-bit number that stands for (seed, step).
        sample_ids_T: int64 [T], the sample of each token.
        positions_T: int64 [T], the token's place in its sample.

    Returns:
        int64 [T] of 32-bit numbers.
    """
    return hash32(hash32(hash32(sample_ids_T & MASK32) ^ step_key) ^ positions_T)


def keep_mask(key_T: Tensor, salt: int, features: int, probability: float) -> Tensor:
    """The elements that stay: bool [T, features], each true with chance 1 - probability."""
    feature_I = hash32(torch.arange(features, device=key_T.device))
    threshold = round(probability * 2**32)
    return hash32(hash32(key_T ^ salt)[:, None] ^ feature_I) >= threshold


def dropout(x_TI: Tensor, key_T: Tensor, salt: int, probability: float) -> Tensor:
    """x with dropped elements at zero and the rest scaled by 1 / (1 - probability)."""
    keep_TI = keep_mask(key_T, salt, x_TI.shape[1], probability)
    return x_TI * keep_TI * (1.0 / (1.0 - probability))
