"""What a hub's repository is: a kind, a commit, and files with their sizes and hashes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, TypeAlias

from strop.errors import DataError, InputError, ModelError

Hub: TypeAlias = Literal["hf", "ms"]

HUBS: Mapping[Hub, str] = {"hf": "Hugging Face", "ms": "ModelScope"}

_NAME = r"[A-Za-z0-9][\w.-]*"
_ID = re.compile(rf"(?:(hf|ms):)?({_NAME}/{_NAME})(?:@([^:@\s]+))?(?::([^:\s]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


@dataclass(frozen=True, slots=True)
class Kind:
    """Data sets or models.

    Attributes:
        name: the hubs' word in the singular.
        people: the word for people.
        error: what is raised when one cannot be had.
    """

    name: Literal["dataset", "model"]
    people: str
    error: type[InputError]


DATA_SET = Kind("dataset", "data set", DataError)
MODEL = Kind("model", "model", ModelError)


@dataclass(frozen=True, slots=True)
class HubId:
    """What is meant by ``hf:owner/name@revision:selection``.

    Attributes:
        hub: "hf" or "ms".
        name: owner/name.
        revision: branch, tag or commit; empty for the hub's default.
        selection: what of it is meant: a split, configuration/split, or a file; empty for the usual.
    """

    hub: Hub
    name: str
    revision: str = ""
    selection: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.hub}:{self.name}{revision}" + (f":{self.selection}" if self.selection else "")


@dataclass(frozen=True, slots=True)
class Repository:
    """What a repository holds at one commit.

    Attributes:
        commit: the commit.
        files: its files' paths, each with its size in bytes and its SHA-256 where the hub tells them.
        card: the text of its README.md.
    """

    commit: str
    files: Mapping[str, tuple[int | None, str | None]]
    card: str = ""


def parse_id(text: str) -> HubId | None:
    """Read ``[hf:|ms:]owner/name[@revision][:selection]``; None for what has another form."""
    match = _ID.fullmatch(text)
    if match is None:
        return None
    hub, name, revision, selection = match.groups()
    return HubId("ms" if hub == "ms" else "hf", name, revision or "", selection or "")


def has_hub(text: str) -> bool:
    """Whether a text says which hub it means, so that it cannot be meant as a path."""
    return text.startswith(("hf:", "ms:"))


def is_commit(revision: str) -> bool:
    """Whether a revision names a commit, whose files never change."""
    return _COMMIT.fullmatch(revision) is not None


def refuse_strange_paths(label: str, repository: Repository, kind: Kind) -> None:
    """Raises the kind's error where a file's path could lead out of the folder that it is written to."""
    for name in repository.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
            raise kind.error(
                f"{label} has a file called {name!r}",
                expected="a path inside it",
                do=f"do not use this {kind.people}",
            )
