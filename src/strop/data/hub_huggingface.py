"""Hugging Face's hub, through its own library: what a data set holds, and its files.

Files go to that library's cache (HF_HOME, HF_HUB_CACHE), where other programs find them too. What a broken connection
has brought is taken up by version 2 of the library while the command runs, and before it by the next command.
HF_ENDPOINT names a mirror. With HF_HUB_OFFLINE only what was fetched before is used. A private data set needs what
``hf auth login`` keeps; Strop does not look at it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, NoReturn

from strop.data.hub_store import is_commit, offline, read_repository, write_repository
from strop.data.sources_hub import Repository
from strop.errors import DataError


def look_up(name: str, revision: str) -> Repository:
    """What a data set holds.

    Args:
        name: owner/name.
        revision: branch, tag or commit; empty for the default branch.

    Raises:
        DataError: the hub cannot be asked, or has no such data set or revision.
    """
    kept = read_repository("hf", name, revision) if is_commit(revision) or offline() else None
    if kept is not None:
        return kept
    if offline():
        raise DataError(
            f"hf:{name} has not been fetched yet",
            expected="a data set that is on this machine, as HF_HUB_OFFLINE says",
            found="nothing kept of it" + (f" at {revision}" if revision else ""),
            do="unset HF_HUB_OFFLINE once, or name a local file",
        )
    hub = _library()
    try:
        info = hub.HfApi(endpoint=_endpoint()).dataset_info(name, revision=revision or None, files_metadata=True)
        files = {
            file.rfilename: (file.size, file.lfs.sha256 if file.lfs is not None else None)
            for file in info.siblings or ()
        }
        repository = Repository(info.sha or "", files)
        if "README.md" in files:
            card = download(name, repository, "README.md").read_text(encoding="utf-8", errors="replace")
            repository = Repository(repository.commit, files, card)
    except _errors(hub) as error:
        _refuse(f"hf:{name}" + (f"@{revision}" if revision else ""), error, hub)
    write_repository("hf", name, revision, repository)
    return repository


def download(name: str, repository: Repository, file: str) -> Path:
    """One file of a data set, fetched unless it is here.

    Raises:
        DataError: it does not arrive.
    """
    hub = _library()
    kept = hub.try_to_load_from_cache(
        name, file, cache_dir=os.environ.get("HF_HUB_CACHE"), revision=repository.commit, repo_type="dataset"
    )
    try:
        path = hub.hf_hub_download(
            name,
            file,
            repo_type="dataset",
            revision=repository.commit,
            endpoint=_endpoint(),
            cache_dir=os.environ.get("HF_HUB_CACHE"),
            local_files_only=offline(),
        )
    except _errors(hub) as error:
        _refuse(f"hf:{name}, file {file}", error, hub)
    if not isinstance(kept, str):
        _verify(Path(path), repository.files.get(file, (None, None))[1], f"hf:{name}, file {file}")
    return Path(path)


def _verify(path: Path, sha256: str | None, what: str) -> None:
    """Compares what arrived with its hash, which the library leaves to the transport; what differs is not kept."""
    if sha256 is None:  # a small file, which the hub keeps in git
        return
    with path.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != sha256:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise DataError(
            f"{what} did not arrive whole", expected=f"SHA-256 {sha256}", found=f"SHA-256 {found}", do="ask again"
        )


def _library() -> Any:
    # What the library counts about its users is none of a data set's business; it asks before it is imported.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub

    return huggingface_hub


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _errors(hub: Any) -> tuple[type[Exception], ...]:
    """What the library raises where the network or the hub says no."""
    # Its HTTP library, whose errors pass through, has changed over the versions; all have one root.
    request = hub.errors.HfHubHTTPError.__mro__[1]
    return (hub.errors.HfHubHTTPError, hub.errors.HFValidationError, request, OSError)


def _refuse(what: str, error: Exception, hub: Any) -> NoReturn:
    errors = hub.errors
    if isinstance(error, errors.GatedRepoError):
        found, do = "a data set whose owner lets in only some", "ask for access on its page, then: hf auth login"
    elif isinstance(error, errors.RevisionNotFoundError):
        found, do = "no such revision", "name a branch, a tag or a commit of it"
    elif isinstance(error, errors.RepositoryNotFoundError):
        found = "no such data set on the hub, and no such path here"
        do = "check the name; a private data set needs: hf auth login"
    else:
        found = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        do = "check the network; HF_ENDPOINT names a mirror, HF_HUB_OFFLINE=1 takes what was fetched before"
    raise DataError(f"{what} cannot be fetched", expected="a data set on Hugging Face", found=found, do=do) from error
