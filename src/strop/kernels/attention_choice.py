"""Which implementation computes attention: one that was asked for, where it can, else the first in order that can.

The choice follows from the tensors, the documents and the scoring alone, so that a backward pass is computed by what
its forward pass was computed by. Names and what they stand for: `strop.kernels.attention`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from strop.errors import UsageError
from strop.kernels import attention_varlen, library, select
from strop.kernels.attention_scores import PLAIN, Scoring, Span
from strop.kernels.triton import found

# In order of preference on any one device.
NAMES = ("native", "triton", "varlen", "sdpa", "plain")

# What the native library computes on; its sums are float32 in either.
_NATIVE = (torch.float32, torch.bfloat16)

# Wider heads do not fit into the tiles of the kernels.
_WIDEST = 256


@dataclass(slots=True)
class _Choice:
    """The implementation that was asked for; empty: the best there is."""

    name: str = ""


_choice = _Choice()


def available(
    device: torch.device, scoring: Scoring = PLAIN, *, dtype: torch.dtype = torch.bfloat16, width: int = 128
) -> tuple[str, ...]:
    """What can compute attention on a device, the first in order first.

    Args:
        device: where the tensors lie.
        scoring: how scores are made.
        dtype: of queries, keys and values.
        width: numbers of a head.
    """
    simple = scoring.softcap is None and scoring.slopes_H is None and not scoring.window
    can = {
        "native": simple and device.type == "cpu" and dtype in _NATIVE and library.native() is not None,
        "triton": width <= _WIDEST and device.type == "cuda" and not found.reason(device),
        "varlen": attention_varlen.can(device, dtype, width, scoring),
        "sdpa": simple,
        "plain": True,
    }
    return tuple(name for name in NAMES if can[name])


def use(name: str) -> None:
    """Computes attention with this implementation from now on, wherever it can, in the whole process.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in NAMES:
        raise UsageError(
            f"no implementation of attention is called {name}",
            expected=" or ".join(NAMES),
            found=name,
            do="leave the choice to Strop, or name one of these",
        )
    _choice.name = name


@contextmanager
def using(name: str) -> Iterator[None]:
    """`use` for a while, for tests and comparisons."""
    before = _choice.name
    use(name)
    try:
        yield
    finally:
        _choice.name = before


def chosen(
    width: int,
    spans: Sequence[Span],
    scoring: Scoring,
    qkv_TO: Tensor,
    *others: Tensor,
    row_sums_HT: Tensor | None = None,
) -> str:
    """The implementation for a call.

    Args:
        width: numbers of a head.
        spans: the documents.
        scoring: how scores are made.
        qkv_TO: queries, keys and values.
        others: whatever else the implementation reads or writes, of the same type.
        row_sums_HT: the sums of rows that it writes or reads, float32.
    """
    names = (_choice.name, *NAMES) if _choice.name else NAMES
    tensors = (qkv_TO, *others)
    sums = () if row_sums_HT is None else (row_sums_HT,)
    return next(name for name in names if _computes(name, width, spans, scoring, tensors, sums))


def _computes(
    name: str,
    width: int,
    spans: Sequence[Span],
    scoring: Scoring,
    tensors: tuple[Tensor, ...],
    sums: tuple[Tensor, ...],
) -> bool:
    qkv_TO = tensors[0]
    match name:
        case "native":
            return (
                _is_causal(spans, scoring)
                and qkv_TO.dtype in _NATIVE
                and select.uses_native(*tensors, dtype=qkv_TO.dtype)
                and select.uses_native(*sums)
            )
        case "triton":
            return width <= _WIDEST and select.uses_triton(*tensors, *sums)
        case "varlen":
            return (
                attention_varlen.can(qkv_TO.device, qkv_TO.dtype, width, scoring)
                and attention_varlen.understands(spans, scoring)
                and not select.is_forced("torch")
            )
        case "sdpa":
            return _is_causal(spans, scoring)
        case _:
            return True


def _is_causal(spans: Sequence[Span], scoring: Scoring) -> bool:
    return scoring.is_causal(max((span.seen for span in spans), default=0))
