"""ModelScope's hub over plain HTTPS: what a repository holds, and its files.

    GET /api/v1/datasets/owner/name                             {"Data": {"Id": …}}
    GET /api/v1/datasets/owner/name/commits?Ref=…               {"Data": {"Commit": [{"Id": …}, …]}}
    GET /api/v1/datasets/ID/repo/tree?Revision=…&Recursive=…    {"Data": {"Files": [{"Path", "Type", "Size", …}]}}
    GET /api/v1/datasets/owner/name/repo?Revision=…&FilePath=…  the file; a Range is honoured
    GET /api/v1/models/owner/name/commits?Ref=…                 as with data sets
    GET /api/v1/models/owner/name/repo/files?Revision=…         {"Data": {"Files": […]}}, all on one page
    GET /api/v1/models/owner/name/repo?Revision=…&FilePath=…    the file

A file is written beside its final name and takes it when its size and, where the hub tells it, its SHA-256 are right; a
download that was broken off is taken up where it ended. MODELSCOPE_ENDPOINT names another server. With HF_HUB_OFFLINE
only what was fetched before is used.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlencode

from strop.errors import InputError
from strop.hub.repository import DATA_SET, MODEL, Kind, Repository, is_commit
from strop.hub.store import offline, read_repository, repository_folder, write_repository
from strop.hub.transfer import NotWholeError, Told, fetch_file, open_address

_PAGE = 100
_MOST_PAGES = 1000
_MOST_ANSWER_BYTES = 32 << 20
_HEADERS = {"User-Agent": "strop"}
_ERRORS = (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError, RecursionError)


def look_up(name: str, revision: str, kind: Kind = DATA_SET) -> Repository:
    """What a repository holds.

    Args:
        name: owner/name.
        revision: branch, tag or commit; empty for the branch "master".
        kind: data set or model.

    Raises:
        InputError: the kind's: the hub cannot be asked, or has no such repository or revision.
    """
    kept = read_repository("ms", name, revision, kind) if is_commit(revision) or offline() else None
    if kept is not None:
        return kept
    if offline():
        raise _is_offline(f"ms:{name}" + (f"@{revision}" if revision else ""), kind)
    place = f"/api/v1/{kind.name}s/{quote(name)}"
    try:
        commits = _data(f"{place}/commits", Ref=revision or "master", PageNumber=1, PageSize=1)
        commit = str(commits["Commit"][0]["Id"])
        files = _files(_data(place)["Id"], commit) if kind is DATA_SET else _model_files(place, commit)
        repository = Repository(commit, files)
        if "README.md" in files and kind is DATA_SET:
            card = download(name, repository, "README.md").read_text(encoding="utf-8", errors="replace")
            repository = Repository(commit, files, card)
    except _ERRORS as error:
        raise _refusal(f"ms:{name}" + (f"@{revision}" if revision else ""), error, kind) from error
    write_repository("ms", name, revision, repository, kind)
    return repository


def download(name: str, repository: Repository, file: str) -> Path:
    """One file of a data set, fetched unless it is here.

    Raises:
        DataError: it does not arrive whole.
    """
    return _fetch(name, repository, file, None, DATA_SET)


def fetch(name: str, repository: Repository, file: str, progress: Told | None = None) -> Path:
    """One file of a model, fetched unless it is here.

    Raises:
        ModelError: it does not arrive whole.
    """
    return _fetch(name, repository, file, progress, MODEL)


def _fetch(name: str, repository: Repository, file: str, progress: Told | None, kind: Kind) -> Path:
    target = repository_folder("ms", name, kind) / repository.commit / PurePosixPath(file)
    if target.exists():
        return target
    if offline():
        raise _is_offline(f"ms:{name}, file {file}", kind)
    size, sha256 = repository.files.get(file, (None, None))
    query = {"Source": "SDK", "Revision": repository.commit, "FilePath": file, "View": "False"}
    try:
        address = _address(f"/api/v1/{kind.name}s/{quote(name)}/repo", query)
        fetch_file(address, target, size=size, sha256=sha256, headers=_HEADERS, progress=progress)
    except NotWholeError as error:
        raise kind.error(
            f"ms:{name}, file {file} did not arrive whole",
            expected=error.expected,
            found=error.found,
            do="ask again",
        ) from error
    except _ERRORS as error:
        raise _refusal(f"ms:{name}, file {file}", error, kind) from error
    return target


def _model_files(place: str, commit: str) -> dict[str, tuple[int | None, str | None]]:
    """All files of a model at a commit."""
    listed = _data(f"{place}/repo/files", Revision=commit, Recursive="True")["Files"]
    return {
        str(entry["Path"]).lstrip("/"): (entry.get("Size"), entry.get("Sha256") or None)
        for entry in listed or ()
        if entry.get("Type") != "tree"
    }


def _files(identity: Any, commit: str) -> dict[str, tuple[int | None, str | None]]:
    """All files of a commit, page by page."""
    files: dict[str, tuple[int | None, str | None]] = {}
    for page in range(1, _MOST_PAGES + 1):
        listed = _data(
            f"/api/v1/datasets/{quote(str(identity), safe='')}/repo/tree",
            Revision=commit,
            Root="/",
            Recursive="True",
            PageNumber=page,
            PageSize=_PAGE,
        )["Files"]
        for entry in listed or ():
            if entry.get("Type") != "tree":
                files[str(entry["Path"]).lstrip("/")] = (entry.get("Size"), entry.get("Sha256") or None)
        if len(listed or ()) < _PAGE:
            break
    return files


def _data(path: str, **query: str | int) -> Any:
    """What the API answers, without its envelope."""
    with open_address(_address(path, query), _HEADERS) as answer:
        body = json.loads(answer.read(_MOST_ANSWER_BYTES))
    if body.get("Data") is None:
        raise ValueError(str(body.get("Message") or "an answer without data")[:200])
    return body["Data"]


def _address(path: str, query: Mapping[str, str | int]) -> str:
    domain = os.environ.get("MODELSCOPE_DOMAIN") or "www.modelscope.cn"
    endpoint = os.environ.get("MODELSCOPE_ENDPOINT") or f"https://{domain}"
    if not endpoint.startswith(("https://", "http://")):
        raise ValueError(f"MODELSCOPE_ENDPOINT is {endpoint!r}, which is no http address")
    return endpoint.rstrip("/") + path + (f"?{urlencode(query)}" if query else "")


def _is_offline(what: str, kind: Kind) -> InputError:
    return kind.error(
        f"{what} has not been fetched yet",
        expected=f"a {kind.people} that is on this machine, as HF_HUB_OFFLINE says",
        found="nothing kept of it",
        do="unset HF_HUB_OFFLINE once, or name a local " + ("folder" if kind is MODEL else "file"),
    )


def _refusal(what: str, error: Exception, kind: Kind) -> InputError:
    missing = isinstance(error, urllib.error.HTTPError) and error.code in (403, 404)
    return kind.error(
        f"{what} cannot be fetched",
        expected=f"a {kind.people} on ModelScope",
        found=f"no such {kind.people} or revision, or not for everybody"
        if missing
        else f"{type(error).__name__}: {error}"[:200],
        do="check the name and the revision" if missing else "check the network, or download it and name the folder",
    )
