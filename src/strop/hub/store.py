"""What is kept of a hub's answers: which files a repository holds at a commit, so that a pinned id needs no network.

$STROP_CACHE/hub/hf/owner--name/<revision>.json     {"commit": …, "files": {path: [size, sha256]}, "card": …}
$STROP_CACHE/hub/hf/models--owner--name/…           the same of a model
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import quote

from strop.hub.hashes import cache_folder
from strop.hub.repository import DATA_SET, MODEL, Hub, Kind, Repository


def repository_folder(hub: Hub, name: str, kind: Kind = DATA_SET) -> Path:
    """The folder of one repository."""
    prefix = "models--" if kind is MODEL else ""
    return cache_folder() / "hub" / hub / (prefix + name.replace("/", "--"))


def offline() -> bool:
    """Whether HF_HUB_OFFLINE says that nothing may be asked of the network; of no hub, whatever its name."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on")


def read_repository(hub: Hub, name: str, revision: str, kind: Kind = DATA_SET) -> Repository | None:
    """What is known of a revision; None where nothing is, or it cannot be read."""
    try:
        kept = json.loads(_file(hub, name, revision, kind).read_text(encoding="utf-8"))
        files = {str(path): (size, sha256) for path, (size, sha256) in kept["files"].items()}
        return Repository(str(kept["commit"]), files, str(kept["card"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_repository(hub: Hub, name: str, revision: str, repository: Repository, kind: Kind = DATA_SET) -> None:
    """Keep what a revision is, under its own name and under its commit's."""
    kept = {"commit": repository.commit, "files": repository.files, "card": repository.card}
    for key in {revision, repository.commit}:
        file = _file(hub, name, key, kind)
        file.parent.mkdir(parents=True, exist_ok=True)
        staging = file.with_name(f"{file.name}.{os.getpid()}.part")
        staging.write_text(json.dumps(kept), encoding="utf-8")
        staging.replace(file)


def _file(hub: Hub, name: str, revision: str, kind: Kind) -> Path:
    return repository_folder(hub, name, kind) / f"{quote(revision, safe='') or '(default)'}.json"
