"""What lint has found so far: for each kind the samples it concerns, and a few of them in words.

Samples are named by number: i for the i-th learned sample, ~i (that is -1 - i) for the i-th held-out one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from strop.data.findings import Finding, Instance, Severity
from strop.data.lint.kinds import KINDS
from strop.data.lint.private import mask
from strop.data.records import Conversation, Place

SHOWN = 5
"""Instances that a finding shows."""

_ORDER: dict[Severity, int] = {"stop": 0, "warn": 1, "note": 2}
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


class Cases:
    """Collects samples by kind.

    Args:
        learned: the samples that are learned.
        held_out: those that are held out.
    """

    def __init__(self, learned: Sequence[Conversation], held_out: Sequence[Conversation] = ()) -> None:
        self._learned, self._held_out = learned, held_out
        self._rows: defaultdict[str, set[int]] = defaultdict(set)
        self._shown: defaultdict[str, dict[int, str]] = defaultdict(dict)
        self._details: dict[str, str] = {}

    def add(self, kind: str, row: int, text: str, start: int = 0, end: int | None = None, note: str = "") -> None:
        """Record that a sample is of a kind; a second time changes nothing.

        Args:
            kind: a name in `KINDS`.
            row: the sample's number.
            text: where it is seen.
            start: the first character to show.
            end: the one behind the last; None for the end of the text.
            note: words to stand before the excerpt.
        """
        rows = self._rows[kind]
        if row in rows:
            return
        rows.add(row)
        shown = self._shown[kind]
        if len(shown) < SHOWN:
            shown[row] = f"{note}: {excerpt(text, start, end)}" if note else excerpt(text, start, end)

    def detail(self, kind: str, sentence: str) -> None:
        """Add a sentence to what a finding says."""
        self._details[kind] = sentence

    def rows(self, kind: str) -> list[int]:
        """The numbers of all samples of a kind, ascending."""
        return sorted(self._rows.get(kind, ()))

    def forget(self, kind: str) -> None:
        """Take back a kind, as when it turns out to be the rule and not the exception."""
        self._rows.pop(kind, None)
        self._shown.pop(kind, None)

    def place(self, row: int) -> Place:
        """Where a sample stands."""
        return self._learned[row].place if row >= 0 else self._held_out[~row].place

    def findings(self) -> list[Finding]:
        """All kinds that were found: what stops a run first, then by count."""
        found = [self._finding(kind) for kind, rows in self._rows.items() if rows]
        return sorted(found, key=lambda finding: (_ORDER[finding.severity], -finding.count, finding.kind))

    def _finding(self, name: str) -> Finding:
        kind, rows = KINDS[name], self._rows[name]
        total = len(self._learned) + (len(self._held_out) if any(row < 0 for row in rows) else 0)
        says = kind.says.format(share=f"{len(rows):,} of {total:,} samples")
        if name in self._details:
            says = f"{says} {self._details[name]}"
        instances = tuple(Instance(self.place(row), text) for row, text in self._shown[name].items())
        return Finding(name, kind.severity, says, kind.do, len(rows), instances)


def excerpt(text: str, start: int = 0, end: int | None = None, width: int = 96) -> str:
    """A piece of text in one line: secrets masked, unseen characters named, cut to a width.

    Args:
        text: where the piece stands.
        start: its first character.
        end: the one behind its last; None for the end of the text.
        width: characters to show; where the piece is shorter, what stands around it is shown as well.
    """
    end = len(text) if end is None else end
    end = min(end, start + width)
    margin = (width - (end - start)) // 2
    left, right = max(0, start - margin), min(len(text), end + margin)
    # A secret that the cut would halve is only known for one while it is whole.
    far_left = max(0, left - 200)
    window = mask(text[far_left : right + 200])[left - far_left : right - far_left]
    line = " ".join(_UNSEEN.sub(lambda found: f"<U+{ord(found[0]):04X}>", window).split())
    line = re.sub("•{4,}", "•••", line)
    return f"{'…' if left else ''}{line}{'…' if right < len(text) else ''}"
