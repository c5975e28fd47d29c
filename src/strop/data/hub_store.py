"""What is kept of a hub's answers: which files a repository holds at a commit, so that a pinned id needs no network.

$STROP_CACHE/hub/hf/owner--name/<revision>.json     {"commit": …, "files": {path: [size, sha256]}, "card": …}
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from urllib.parse import quote

from strop.data.sources_hub import Hub, Repository

_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


def hub_folder() -> Path:
    """Where Strop keeps what it fetches from hubs."""
    import platformdirs

    chosen = os.environ.get("STROP_CACHE")
    cache = Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("strop", appauthor=False)
    return cache / "hub"


def repository_folder(hub: Hub, name: str) -> Path:
    """The folder of one data set."""
    return hub_folder() / hub / name.replace("/", "--")


def offline() -> bool:
    """Whether HF_HUB_OFFLINE says that nothing may be asked of the network; of no hub, whatever its name."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on")


def is_commit(revision: str) -> bool:
    """Whether a revision names a commit, whose files never change."""
    return _COMMIT.fullmatch(revision) is not None


def read_repository(hub: Hub, name: str, revision: str) -> Repository | None:
    """What is known of a revision; None where nothing is, or it cannot be read."""
    try:
        kept = json.loads(_file(hub, name, revision).read_text(encoding="utf-8"))
        files = {str(path): (size, sha256) for path, (size, sha256) in kept["files"].items()}
        return Repository(str(kept["commit"]), files, str(kept["card"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_repository(hub: Hub, name: str, revision: str, repository: Repository) -> None:
    """Keep what a revision is, under its own name and under its commit's."""
    kept = {"commit": repository.commit, "files": repository.files, "card": repository.card}
    for key in {revision, repository.commit}:
        file = _file(hub, name, key)
        file.parent.mkdir(parents=True, exist_ok=True)
        staging = file.with_name(f"{file.name}.{os.getpid()}.part")
        staging.write_text(json.dumps(kept), encoding="utf-8")
        staging.replace(file)


def _file(hub: Hub, name: str, revision: str) -> Path:
    return repository_folder(hub, name) / f"{quote(revision, safe='') or '(default)'}.json"
