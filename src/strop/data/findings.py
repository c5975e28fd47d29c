"""What is noticed about a data set: each kind of finding with its count, its cure and places to look at.

stop    a run on this data is refused: what it would learn is not what its owner means
warn    probably a mistake; the run starts
note    worth knowing
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from strop.data.records import Place

Severity: TypeAlias = Literal["stop", "warn", "note"]


@dataclass(frozen=True, slots=True)
class Instance:
    """One case of a finding.

    Args:
        place: where the record stands.
        text: what to see there, in a line.
    """

    place: Place
    text: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of thing that was noticed.

    Args:
        kind: its name, as ``--json`` has it: ``exact-duplicates``.
        severity: what it means for a run.
        what: the finding in a sentence, counts included.
        do: what to do about it.
        count: how many records it concerns.
        instances: a few of them.
    """

    kind: str
    severity: Severity
    what: str
    do: str
    count: int
    instances: tuple[Instance, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The finding as ``--json`` has it."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "what": self.what,
            "do": self.do,
            "count": self.count,
            "instances": [{"place": str(one.place), "text": one.text} for one in self.instances],
        }
