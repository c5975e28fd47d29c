"""Products of 16-bit matrices on a CPU, cut into few sizes of rows.

torch hands them to oneDNN, which compiles code for every shape that it meets and keeps it: 0.6 to 1.7 MB a shape (torch
2.13, AMX). A step multiplies in thirty ways, and every pack has another count of rows, so that a run would grow by some
sixty megabytes with each new length of pack; a small cache (`ONEDNN_PRIMITIVE_CACHE_CAPACITY`) still let a third of it
grow. Here as many rows as are a multiple of 512 are one piece, of 4,096 at most, and the others another, padded: ten
sizes, of which the packs of a run have few.

    1,900 rows = 1536 + 364 of 512            40 rows = 40 of 64

Whoever adds up over rows, as a gradient of weights does, pads with zeros and adds the pieces up in float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_STEP, _LARGEST = 512, 4096
_SHORT = (64, 256)
# As few rows as answers have at a time are multiplied as they are: there are few such shapes.
_FEW = 8


def applies(*matrices: Tensor) -> bool:
    """Whether these are cut: all in bfloat16 on a CPU."""
    return all(matrix.is_cpu and matrix.dtype is torch.bfloat16 for matrix in matrices)


def padded(most: int) -> int:
    """Rows of the largest piece that is padded, of products of up to so many rows."""
    return 0 if most <= _FEW else next(size for size in (*_SHORT, _STEP) if min(most, _STEP) <= size)


def product(a_MK: Tensor, b_KN: Tensor, out_MN: Tensor, *, alpha: float = 1.0, add: bool = False) -> Tensor:
    """Writes alpha · a · b to ``out_MN``, or adds it, and returns ``out_MN``."""
    for rows, size in _pieces(len(a_MK)):
        count = rows.stop - rows.start
        if count == size:
            _product(a_MK[rows], b_KN, out_MN[rows], alpha, add)
            continue
        a_SK, out_SN = a_MK.new_zeros(size, a_MK.shape[1]), out_MN.new_zeros(size, out_MN.shape[1])
        a_SK[:count] = a_MK[rows]
        if add:
            out_SN[:count] = out_MN[rows]
        _product(a_SK, b_KN, out_SN, alpha, add)
        out_MN[rows] = out_SN[:count]
    return out_MN


def inner(left_TM: Tensor, right_TN: Tensor) -> Tensor:
    """leftᵀ · right, a sum over T rows: float32 [M, N]."""
    total_MN = torch.zeros(left_TM.shape[1], right_TN.shape[1])
    for rows, size in _pieces(len(left_TM)):
        left_SM, right_SN = (_padded(matrix[rows], size) for matrix in (left_TM, right_TN))
        total_MN += left_SM.T @ right_SN
    return total_MN


def _product(a_MK: Tensor, b_KN: Tensor, out_MN: Tensor, alpha: float, add: bool) -> None:
    if add or alpha != 1.0:
        out_MN.addmm_(a_MK, b_KN, beta=1.0 if add else 0.0, alpha=alpha)
    else:
        torch.mm(a_MK, b_KN, out=out_MN)


def _padded(matrix: Tensor, rows: int) -> Tensor:
    if len(matrix) == rows:
        return matrix
    padded = matrix.new_zeros(rows, matrix.shape[1])
    padded[: len(matrix)] = matrix
    return padded


def _pieces(total: int) -> Iterator[tuple[slice, int]]:
    """Rows in order, each piece with the size that it is multiplied at."""
    if total <= _FEW:
        yield slice(0, total), total
        return
    start = 0
    while start < total:
        left = total - start
        whole = min(left // _STEP * _STEP, _LARGEST)
        size = whole or next(size for size in (*_SHORT, _STEP) if left <= size)
        yield slice(start, min(start + size, total)), size
        start += size
