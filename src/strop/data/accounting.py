"""What is refused, counted: by reason, and whether it is so much that a run should not start.

    read = learned + held out + refused

A few bad rows are what large data sets have. Many mean that the file is not what its owner takes it for, and a run on
the rest would be another experiment than the one that was meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from strop.data.examples import Dataset
from strop.data.records import Place, Refusal
from strop.errors import DataError

_REASONS = 5
_PLACES = 3


@dataclass(frozen=True, slots=True)
class Reason:
    """Refusals for one reason.

    Args:
        reason: why.
        cure: what to do, of the first of them.
        count: how many.
        places: the first of them.
    """

    reason: str
    cure: str
    count: int
    places: tuple[Place, ...]


def by_reason(refused: Sequence[Refusal]) -> list[Reason]:
    """Group refusals by reason, the most frequent first."""
    groups: dict[str, list[Refusal]] = {}
    for refusal in refused:
        groups.setdefault(refusal.reason, []).append(refusal)
    ordered = sorted(groups.values(), key=len, reverse=True)
    return [
        Reason(group[0].reason, group[0].cure, len(group), tuple(refusal.place for refusal in group[:_PLACES]))
        for group in ordered
    ]


def check_refused(dataset: Dataset, limit: float) -> None:
    """Stop where a larger share of the records is refused than the recipe allows.

    Args:
        dataset: what was read.
        limit: the recipe's ``data.refuse_limit``.

    Raises:
        DataError: the share is larger, of what is learned from or of the held-out samples' own file; with the
            reasons, their counts and first places.
    """
    parts = (
        ("the data", dataset.refused, dataset.read),
        ("the held-out data", dataset.held_out_refused, dataset.held_out_read),
    )
    for name, refused, read in parts:
        if len(refused) > limit * read:
            raise _too_many(name, refused, read, limit)


def _too_many(name: str, refused: Sequence[Refusal], read: int, limit: float) -> DataError:
    reasons = by_reason(refused)
    told = "; ".join(map(_told, reasons[:_REASONS]))
    more = f"; and {len(reasons) - _REASONS} other reasons" if len(reasons) > _REASONS else ""
    return DataError(
        f"{len(refused)} of {read} records of {name} are refused",
        expected=f"at most {limit:.4g} of them, as data.refuse_limit says",
        found=told + more,
        do=f"{reasons[0].cure}; strop data shows all; or go on without them: --data.refuse_limit 1",
    )


def _told(reason: Reason) -> str:
    places = ", ".join(map(str, reason.places)) + (", …" if reason.count > _PLACES else "")
    return f"{reason.count} × {reason.reason} ({places})"
