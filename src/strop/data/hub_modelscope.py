"""ModelScope's hub over plain HTTPS: what a data set holds, and its files.

    GET /api/v1/datasets/owner/name                             {"Data": {"Id": …}}
    GET /api/v1/datasets/owner/name/commits?Ref=…               {"Data": {"Commit": [{"Id": …}, …]}}
    GET /api/v1/datasets/ID/repo/tree?Revision=…&Recursive=…    {"Data": {"Files": [{"Path", "Type", "Size", …}]}}
    GET /api/v1/datasets/owner/name/repo?Revision=…&FilePath=…  the file; a Range is honoured

A file is written beside its final name and takes it when its size and, where the hub tells it, its SHA-256 are right; a
download that was broken off is taken up where it ended. MODELSCOPE_ENDPOINT names another server. With HF_HUB_OFFLINE
only what was fetched before is used.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import urllib.error
import urllib.request
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlencode

from strop.data.hub_store import is_commit, offline, read_repository, repository_folder, write_repository
from strop.data.sources_hub import Repository
from strop.errors import DataError

_PAGE = 100
_MOST_PAGES = 1000
_PIECE = 1 << 20
_SECONDS = 60
_MOST_ANSWER_BYTES = 32 << 20
_ERRORS = (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError, RecursionError)


def look_up(name: str, revision: str) -> Repository:
    """What a data set holds.

    Args:
        name: owner/name.
        revision: branch, tag or commit; empty for the branch "master".

    Raises:
        DataError: the hub cannot be asked, or has no such data set or revision.
    """
    kept = read_repository("ms", name, revision) if is_commit(revision) or offline() else None
    if kept is not None:
        return kept
    if offline():
        raise _is_offline(f"ms:{name}" + (f"@{revision}" if revision else ""))
    wanted = revision or "master"
    try:
        identity = _data(f"/api/v1/datasets/{quote(name)}")["Id"]
        commits = _data(f"/api/v1/datasets/{quote(name)}/commits", Ref=wanted, PageNumber=1, PageSize=1)
        commit = str(commits["Commit"][0]["Id"])
        files = _files(identity, commit)
        repository = Repository(commit, files)
        if "README.md" in files:
            card = download(name, repository, "README.md").read_text(encoding="utf-8", errors="replace")
            repository = Repository(commit, files, card)
    except _ERRORS as error:
        raise _refusal(f"ms:{name}" + (f"@{revision}" if revision else ""), error) from error
    write_repository("ms", name, revision, repository)
    return repository


def download(name: str, repository: Repository, file: str) -> Path:
    """One file of a data set, fetched unless it is here.

    Raises:
        DataError: it does not arrive whole.
    """
    target = repository_folder("ms", name) / repository.commit / PurePosixPath(file)
    if target.exists():
        return target
    if offline():
        raise _is_offline(f"ms:{name}, file {file}")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(target.name + ".part")
    size, sha256 = repository.files.get(file, (None, None))
    query = {"Source": "SDK", "Revision": repository.commit, "FilePath": file, "View": "False"}
    try:
        # A connection that breaks ends an answer early: on with it, as long as more arrives each time.
        had = -1
        while had < (had := _receive(f"/api/v1/datasets/{quote(name)}/repo", query, staging, size)) < (size or 0):
            pass
        digest, length = _measure(staging)
    except _ERRORS as error:
        raise _refusal(f"ms:{name}, file {file}", error) from error
    if size is not None and length < size:
        raise _refusal(f"ms:{name}, file {file}", OSError(f"the connection ends behind {length} of {size} bytes"))
    if (size is not None and length != size) or (sha256 and digest != sha256):
        staging.unlink()
        raise DataError(
            f"ms:{name}, file {file} did not arrive whole",
            expected=f"{size} bytes" + (f", SHA-256 {sha256[:16]}…" if sha256 else ""),
            found=f"{length} bytes, SHA-256 {digest[:16]}…",
            do="ask again",
        )
    staging.replace(target)
    return target


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
    with _open(path, query, 0) as answer:
        body = json.loads(answer.read(_MOST_ANSWER_BYTES))
    if body.get("Data") is None:
        raise ValueError(str(body.get("Message") or "an answer without data")[:200])
    return body["Data"]


def _receive(path: str, query: dict[str, str], staging: Path, size: int | None) -> int:
    """Write what a path gives behind what is already there, of more than there should be one piece too many.

    Returns:
        How many bytes there are then.
    """
    start = staging.stat().st_size if staging.exists() else 0
    try:
        answer = _open(path, query, start)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing
            return start
        raise
    with answer, staging.open("ab" if answer.status == 206 else "wb") as file:
        while piece := answer.read(_PIECE):
            file.write(piece)
            if size is not None and file.tell() > size:
                break
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def _open(path: str, query: Any, start: int) -> Any:
    domain = os.environ.get("MODELSCOPE_DOMAIN") or "www.modelscope.cn"
    endpoint = os.environ.get("MODELSCOPE_ENDPOINT") or f"https://{domain}"
    if not endpoint.startswith(("https://", "http://")):
        raise ValueError(f"MODELSCOPE_ENDPOINT is {endpoint!r}, which is no http address")
    address = endpoint.rstrip("/") + path + (f"?{urlencode(query)}" if query else "")
    headers = {"User-Agent": "strop", **({"Range": f"bytes={start}-"} if start else {})}
    request = urllib.request.Request(address, headers=headers)  # noqa: S310 - http and https only, see above
    return urllib.request.build_opener(_Redirects).open(request, timeout=_SECONDS)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect to another server, and never from https to something that others can read and change."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """The request that a redirect asks for."""
        if not newurl.startswith("https://") and not (newurl.startswith("http://") and req.type == "http"):
            raise ValueError(f"a redirect to {newurl[:100]!r}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_offline(what: str) -> DataError:
    return DataError(
        f"{what} has not been fetched yet",
        expected="a data set that is on this machine, as HF_HUB_OFFLINE says",
        found="nothing kept of it",
        do="unset HF_HUB_OFFLINE once, or name a local file",
    )


def _measure(file: Path) -> tuple[str, int]:
    """SHA-256 and length of a file."""
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256")
    return digest.hexdigest(), file.stat().st_size


def _refusal(what: str, error: Exception) -> DataError:
    missing = isinstance(error, urllib.error.HTTPError) and error.code in (403, 404)
    return DataError(
        f"{what} cannot be fetched",
        expected="a data set on ModelScope",
        found="no such data set or revision, or not for everybody"
        if missing
        else f"{type(error).__name__}: {error}"[:200],
        do="check the name and the revision" if missing else "check the network, or download it and name the folder",
    )
