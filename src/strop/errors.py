"""The tree of errors that Strop raises on purpose.

    StropError                  exit 1   a fault of ours
    ├── UsageError              exit 2   wrong command line, wrong recipe, a run folder in the way
    ├── InputError              exit 3   wrong data or model
    │   ├── DataError
    │   ├── TemplateError
    │   └── ModelError
    ├── BudgetError             exit 4   does not fit the memory budget
    └── Stopped                 exit 5   stopped; can be resumed
        └── SaveError                    what was computed could not be written; the last good checkpoint stands

An error says what failed, what was expected, what was found and what to do, and names the file, line, field or
tensor. The command line prints these four parts and leaves with the class's exit code; no traceback reaches a user
for a fault of theirs.
"""

from __future__ import annotations

from typing import Any, ClassVar


class StropError(Exception):
    """A failure with its place and its cure.

    Args:
        what: what failed, with the file, line, field or tensor.
        expected: what would have been right.
        found: what was there instead.
        do: what the user can do about it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, expected: str = "", found: str = "", do: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.expected = expected
        self.found = found
        self.do = do

    def __str__(self) -> str:
        parts = [self.what]
        parts += [
            f"{name}: {text}"
            for name, text in (("expected", self.expected), ("found", self.found), ("do", self.do))
            if text
        ]
        return "\n  ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """The error as the object that ``--json`` prints."""
        return {
            "error": type(self).__name__,
            "what": self.what,
            "expected": self.expected,
            "found": self.found,
            "do": self.do,
            "exit": self.exit_code,
        }


class UsageError(StropError):
    """Wrong command line or recipe, or a run folder that is in the way."""

    exit_code = 2


class InputError(StropError):
    """Wrong data or model."""

    exit_code = 3


class DataError(InputError):
    """The data cannot be learned from as it is."""


class TemplateError(InputError):
    """The chat template cannot be rendered, or would teach something other than the answers."""


class ModelError(InputError):
    """The model folder or file cannot be read, or is of a kind that is not supported."""


class BudgetError(StropError):
    """The run does not fit into the memory budget."""

    exit_code = 4


class Stopped(StropError):
    """The run was stopped; ``strop resume`` continues it from the last checkpoint."""

    exit_code = 5


class SaveError(Stopped):
    """Something could not be written: a full or read-only disk, a quota, no permission, a device that fails.

    Args:
        path: what could not be written.
        need_bytes: how much room it needs; None where that is not known.
        free_bytes: how much room there is; None where the file system does not say.
    """

    def __init__(
        self,
        what: str,
        *,
        expected: str = "",
        found: str = "",
        do: str = "",
        path: str = "",
        need_bytes: int | None = None,
        free_bytes: int | None = None,
    ) -> None:
        super().__init__(what, expected=expected, found=found, do=do)
        self.path, self.need_bytes, self.free_bytes = path, need_bytes, free_bytes

    def as_dict(self) -> dict[str, Any]:
        """The error as the object that ``--json`` prints, with path, need and free bytes."""
        facts = {"path": self.path, "need_bytes": self.need_bytes, "free_bytes": self.free_bytes}
        return {**super().as_dict(), **facts}
