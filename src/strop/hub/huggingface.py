"""Hugging Face's hub, through its own library: what a repository holds, and its files.

Files of data sets go to that library's cache (HF_HOME, HF_HUB_CACHE), where other programs find them too. A model's
files are taken from there where they are, and otherwise fetched by `strop.hub.transfer`: the library starts a file
anew that was broken off. HF_ENDPOINT names a mirror. With HF_HUB_OFFLINE only what was fetched before is used. A
private repository needs what ``hf auth login`` keeps; Strop hands it on to the hub alone.
"""

from __future__ import annotations

import hashlib
import http.client
import os
from pathlib import Path
from typing import Any, NoReturn

from strop.hub.hashes import file_sha256
from strop.hub.repository import DATA_SET, MODEL, Kind, Repository, is_commit
from strop.hub.store import offline, read_repository, repository_folder, write_repository
from strop.hub.transfer import NotWholeError, Told, fetch_file


def look_up(name: str, revision: str, kind: Kind = DATA_SET) -> Repository:
    """What a repository holds.

    Args:
        name: owner/name.
        revision: branch, tag or commit; empty for the default branch.
        kind: data set or model.

    Raises:
        InputError: the kind's: the hub cannot be asked, or has no such repository or revision.
    """
    kept = read_repository("hf", name, revision, kind) if is_commit(revision) or offline() else None
    if kept is not None:
        return kept
    if offline():
        raise kind.error(
            f"hf:{name} has not been fetched yet",
            expected=f"a {kind.people} that is on this machine, as HF_HUB_OFFLINE says",
            found="nothing kept of it" + (f" at {revision}" if revision else ""),
            do="unset HF_HUB_OFFLINE once, or name a local " + ("folder" if kind is MODEL else "file"),
        )
    hub = _library()
    try:
        api = hub.HfApi(endpoint=_endpoint())
        info = api.repo_info(name, repo_type=kind.name, revision=revision or None, files_metadata=True)
        files = {
            file.rfilename: (file.size, file.lfs.sha256 if file.lfs is not None else None)
            for file in info.siblings or ()
        }
        repository = Repository(info.sha or "", files)
        if "README.md" in files and kind is DATA_SET:
            card = download(name, repository, "README.md").read_text(encoding="utf-8", errors="replace")
            repository = Repository(repository.commit, files, card)
    except _errors(hub) as error:
        _refuse(f"hf:{name}" + (f"@{revision}" if revision else ""), error, hub, kind)
    write_repository("hf", name, revision, repository, kind)
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
        _refuse(f"hf:{name}, file {file}", error, hub, DATA_SET)
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
        raise DATA_SET.error(
            f"{what} did not arrive whole", expected=f"SHA-256 {sha256}", found=f"SHA-256 {found}", do="ask again"
        )


def fetch(name: str, repository: Repository, file: str, progress: Told | None = None) -> Path:
    """One file of a model, fetched unless it is here, into a folder that holds them all under their own names.

    Raises:
        ModelError: it does not arrive whole.
    """
    target = repository_folder("hf", name, MODEL) / repository.commit / file
    hub = _library()
    if target.exists() or _linked(hub, name, repository, file, target):
        return target
    size, sha256 = repository.files.get(file, (None, None))
    if offline():
        raise MODEL.error(
            f"hf:{name}, file {file} has not been fetched yet",
            expected="a model that is on this machine, as HF_HUB_OFFLINE says",
            do="unset HF_HUB_OFFLINE once, or name a local folder",
        )
    address = hub.hf_hub_url(name, file, revision=repository.commit, endpoint=_endpoint())
    headers = {**hub.utils.build_hf_headers(), "Accept-Encoding": "identity"}
    try:
        fetch_file(address, target, size=size, sha256=sha256, headers=headers, progress=progress)
    except NotWholeError as error:
        raise MODEL.error(
            f"hf:{name}, file {file} did not arrive whole",
            expected=error.expected,
            found=error.found,
            do="ask again",
        ) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        _refuse(f"hf:{name}, file {file}", error, hub, MODEL)
    return target


def _linked(hub: Any, name: str, repository: Repository, file: str, target: Path) -> bool:
    """Take a file out of the library's own cache, where another program has put it, if it is what the hub names.

    The hash is remembered, so what identifies the model later is not computed twice.
    """
    found = hub.try_to_load_from_cache(
        name, file, cache_dir=os.environ.get("HF_HUB_CACHE"), revision=repository.commit, repo_type="model"
    )
    size, sha256 = repository.files.get(file, (None, None))
    if not isinstance(found, str) or (size is not None and Path(found).stat().st_size != size):
        return False
    if sha256 is not None and file_sha256(Path(found)) != sha256:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(Path(found).resolve())
    except OSError:  # a file system or an account without links
        return False
    return True


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


def _refuse(what: str, error: Exception, hub: Any, kind: Kind) -> NoReturn:
    errors = hub.errors
    if isinstance(error, errors.GatedRepoError):
        found, do = f"a {kind.people} whose owner lets in only some", "ask for access on its page, then: hf auth login"
    elif isinstance(error, errors.RevisionNotFoundError):
        found, do = "no such revision", "name a branch, a tag or a commit of it"
    elif isinstance(error, errors.RepositoryNotFoundError):
        found = f"no such {kind.people} on the hub, and no such path here"
        do = f"check the name; a private {kind.people} needs: hf auth login"
    else:
        found = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        do = "check the network; HF_ENDPOINT names a mirror, HF_HUB_OFFLINE=1 takes what was fetched before"
    raise kind.error(
        f"{what} cannot be fetched", expected=f"a {kind.people} on Hugging Face", found=found, do=do
    ) from error
