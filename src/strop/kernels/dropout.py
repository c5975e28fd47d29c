"""Dropout whose mask is a function of (seed, step, sample, projection, position, feature), and of nothing else.

The mask of an element does not depend on the pack a sample lies in, on its neighbours, on the device or on whether
the layer is computed a second time, so that a plan never changes the result and a resume needs no random state.

    key_T     one 32-bit number a token: hash of (seed, step, sample, position); made once a pack
    salt      one 32-bit number a projection
    keep[t, i] = hash(key_T[t] ⊕ salt, i) ≥ p · 2^32

`dropout` is the differentiable reference; `dropout_into` and `add_dropped` are it and its gradient, written into memory
that the caller gives, natively or by Triton where `strop.kernels.select` says so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from strop.kernels import library, select
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
    return hash32(hash32(key_T ^ salt)[:, None] ^ feature_I) >= _threshold(probability)


def _threshold(probability: float) -> int:
    return round(probability * 2**32)


def dropout(x_TI: Tensor, key_T: Tensor, salt: int, probability: float) -> Tensor:
    """x with dropped elements at zero and the rest scaled by 1 / (1 - probability)."""
    keep_TI = keep_mask(key_T, salt, x_TI.shape[1], probability)
    return x_TI * keep_TI * (1.0 / (1.0 - probability))


def dropout_into(x_TI: Tensor, key_T: Tensor, salt: int, probability: float, out_TI: Tensor) -> Tensor:
    """`dropout` of x [T, I] into ``out_TI``, which is returned. Rows may lie apart."""
    if name := _native_name("drop", x_TI, key_T, probability, out_TI):
        _call_native(name, x_TI, key_T, salt, probability, out_TI)
        return out_TI
    if _uses_triton(x_TI, key_T, probability, out_TI):
        _call_triton(x_TI, key_T, salt, probability, out_TI, add=False)
        return out_TI
    return out_TI.copy_(dropout(x_TI, key_T, salt, probability))


def add_dropped(grad_TI: Tensor, key_T: Tensor, salt: int, probability: float, into_TI: Tensor) -> None:
    """Adds the gradient of dropout's input to ``into_TI`` [T, I], given that of its output. Rows may lie apart."""
    if name := _native_name("add_dropped", grad_TI, key_T, probability, into_TI):
        _call_native(name, grad_TI, key_T, salt, probability, into_TI)
    elif _uses_triton(grad_TI, key_T, probability, into_TI):
        _call_triton(grad_TI, key_T, salt, probability, into_TI, add=True)
    else:
        into_TI.add_(dropout(grad_TI, key_T, salt, probability))


def _native_name(operation: str, x_TI: Tensor, key_T: Tensor, probability: float, out_TI: Tensor) -> str:
    fits = _fits(probability) and select.uses_native(key_T, dtype=torch.int64)
    return select.native_name(operation, x_TI, out_TI) if fits else ""


def _uses_triton(x_TI: Tensor, key_T: Tensor, probability: float, out_TI: Tensor) -> bool:
    keys = key_T.dtype is torch.int64 and key_T.is_contiguous() and key_T.device == x_TI.device
    return keys and _fits(probability) and select.uses_triton(x_TI, out_TI)


def _fits(probability: float) -> bool:
    """A chance so near to 1 that its threshold is 2^32 does not fit 32 bits."""
    return _threshold(probability) <= MASK32


def _call_triton(x_TI: Tensor, key_T: Tensor, salt: int, probability: float, out_TI: Tensor, *, add: bool) -> None:
    from strop.kernels.triton import dropout as kernels

    kernels.drop(x_TI, key_T, salt, _threshold(probability), 1.0 / (1.0 - probability), out_TI, add=add)


def _call_native(name: str, x_TI: Tensor, key_T: Tensor, salt: int, probability: float, out_TI: Tensor) -> None:
    library.function(name, "plpuufplll")(
        *(x_TI.data_ptr(), x_TI.stride(0), key_T.data_ptr(), salt, _threshold(probability), 1.0 / (1.0 - probability)),
        *(out_TI.data_ptr(), out_TI.stride(0), *x_TI.shape),
    )
