"""A data set cleaned and written: what lint can repair is repaired, what it would drop is dropped, each said.

    samples to learn, against those held out ──fix──┐
                                                    ├──▶ OUT.jsonl, in reading order
    samples held out of the same data ─────────fix──┘

Held-out samples that have a file of their own stay out of it; refused records cannot be in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strop.data.counts import is_first
from strop.data.findings import Finding, Instance
from strop.data.lint import fix, write_fixed
from strop.data.records import Conversation, Example
from strop.errors import UsageError

if TYPE_CHECKING:
    from strop.review.survey import Survey
    from strop.run.journal import Journal


@dataclass(frozen=True, slots=True)
class Change:
    """What was done about one kind of finding.

    Args:
        kind: the finding's kind.
        what: what was done, in a sentence, count included.
        instances: a few of the samples, with what was there and what is now.
    """

    kind: str
    what: str
    instances: tuple[Instance, ...]


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A cleaned file and what it took.

    Args:
        file: where it is.
        written: samples in it.
        refused: records that are not in it because they were refused.
        changes: what was done.
        left: what is still found in it.
        solved: kinds of findings that it has not, whatever was changed: too many records are refused no more.
    """

    file: Path
    written: int
    refused: int
    changes: tuple[Change, ...]
    left: tuple[Finding, ...]
    solved: tuple[str, ...] = ()

    def solves(self, finding: Finding) -> bool:
        """Whether a finding of the data is not one of the cleaned file any more."""
        changed = finding.kind in self.solved or any(change.kind == finding.kind for change in self.changes)
        return changed and all(one.kind != finding.kind for one in self.left)

    def as_dict(self) -> dict[str, Any]:
        """The account as ``--json`` has it."""
        return {
            "file": str(self.file),
            "written": self.written,
            "refused": self.refused,
            "changes": [
                {
                    "kind": change.kind,
                    "what": change.what,
                    "instances": [{"place": str(one.place), "text": one.text} for one in change.instances],
                }
                for change in self.changes
            ],
            "left": [finding.as_dict() for finding in self.left],
        }


def refuse_existing(target: Path) -> None:
    """Say before any work that a file is in the way.

    Raises:
        UsageError: it is there already.
    """
    if target.exists():
        raise UsageError(
            f"--fix {target}: it is there already",
            expected="the name of a new file",
            found="a folder" if target.is_dir() else "a file",
            do="name another file, or remove this one first",
        )


def write_cleaned(survey: Survey, target: Path, journal: Journal) -> Cleaned:
    """Clean a data set and write it.

    Args:
        survey: the data set.
        target: the .jsonl file to write.
        journal: is told how far the work has come.

    Raises:
        UsageError: the file is there already or cannot be written.
    """
    refuse_existing(target)
    learned, held_out = _records(survey.dataset.learned), _records(survey.dataset.held_out)
    control, progress = tuple(survey.tokenizer.special_tokens), journal.progress("cleaning")
    done = fix([said for _, said in learned], [said for _, said in held_out], control_tokens=control, progress=progress)
    kept = [(learned[row][0], said) for row, said in zip(done.kept, done.conversations, strict=True)]
    changes = list(done.changes)
    if not isinstance(survey.recipe.data.eval, str):
        # They stand in the same data, and are chosen anew from the cleaned file.
        also = fix([said for _, said in held_out], control_tokens=control, progress=progress)
        kept += [(held_out[row][0], said) for row, said in zip(also.kept, also.conversations, strict=True)]
        changes += also.changes
    kept.sort(key=lambda numbered: numbered[0])
    written = write_fixed(target, (said for _, said in kept))
    shown = tuple(Change(one.kind, one.what, one.instances) for one in changes)
    # Refused records are not in the file; those of held-out samples with a file of their own stay where they are.
    solved = () if survey.dataset.held_out_refused or not written else ("too-many-refused",)
    return Cleaned(target, written, len(survey.dataset.refused), shown, tuple(done.left), solved)


def _records(samples: Sequence[Example]) -> list[tuple[int, Conversation]]:
    """The records of samples, each once, with their ids."""
    firsts = (sample for sample in samples if is_first(sample))
    return [(sample.id, sample.conversation) for sample in firsts if sample.conversation is not None]
