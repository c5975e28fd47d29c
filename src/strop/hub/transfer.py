"""One file over HTTP: taken up where it was broken off, whole and right or not there.

    name.part ──bytes behind what is there (Range)──▶ name.part ──size, SHA-256──▶ name

A connection that breaks is tried again a few times; what arrived stays in ``name.part`` for the next command. A lock
keeps two programs from writing one part.
"""

from __future__ import annotations

import http.client
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from strop.hub.hashes import file_sha256

Told = Callable[[int], None]

_PIECE = 1 << 20
_SECONDS = 60
_ATTEMPTS = 3
_BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


class NotWholeError(OSError):
    """What arrived is not what the hub announced."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"expected {expected}, found {found}")
        self.expected = expected
        self.found = found


def fetch_file(
    address: str,
    target: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    headers: Mapping[str, str] | None = None,
    progress: Told | None = None,
) -> None:
    """Bring a file here, unless it is here.

    Args:
        address: http or https.
        target: where; its folder is made.
        size: its bytes, where they are known.
        sha256: its SHA-256, where it is known.
        headers: sent to that host alone.
        progress: called with the bytes that arrived, what an earlier command had left included.

    Raises:
        NotWholeError: it is of another size or content; nothing is kept.
        OSError: the network or the disk says no.
        ValueError: the address, or one that it leads to, is no http, or no https behind https.
    """
    import filelock

    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(target.name + ".part")
    with filelock.FileLock(f"{staging}.lock"):
        if not target.exists():  # another program may have fetched it meanwhile
            _receive(address, dict(headers or {}), staging, progress or (lambda _count: None), size)
            _check(staging, size, sha256)
            staging.replace(target)
    Path(f"{staging}.lock").unlink(missing_ok=True)


def open_address(address: str, headers: Mapping[str, str]) -> Any:
    """An answer; a redirection to another host goes without the headers that are a secret.

    Raises:
        ValueError: the address is not http or https.
        OSError: as `urllib.request.urlopen`.
    """
    if not address.startswith(("https://", "http://")):
        raise ValueError(f"{address!r} is no http address")
    request = urllib.request.Request(address, headers=dict(headers))  # noqa: S310 - http and https only, see above
    return urllib.request.build_opener(_Redirects).open(request, timeout=_SECONDS)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections: secrets go along only within a host, and https leads only to https."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> Any:
        """The request that a redirection asks for."""
        if not newurl.startswith("https://") and not (newurl.startswith("http://") and req.type == "http"):
            raise ValueError(f"a redirect to {newurl[:100]!r}, which is not https")
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and urllib.parse.urlsplit(newurl).netloc != urllib.parse.urlsplit(req.full_url).netloc:
            following.headers.pop("Authorization", None)
            following.headers.pop("Cookie", None)
        return following


def _receive(address: str, headers: dict[str, str], staging: Path, progress: Told, size: int | None) -> None:
    """Write what an address gives behind what is already there, trying again where the connection breaks."""
    had = staging.stat().st_size if staging.exists() else 0
    progress(had)
    failures = 0
    while True:
        broken: Exception = OSError("the connection ends early")
        try:
            _receive_once(address, headers, staging, progress, size)
        except urllib.error.HTTPError:
            raise
        except _BROKEN as error:
            broken = error
        else:
            if size is None:
                return
        has = staging.stat().st_size if staging.exists() else 0
        if size is not None and has >= size:
            return
        failures = 0 if has > had else failures + 1
        had = has
        if failures >= _ATTEMPTS:
            raise OSError(f"the connection ends behind {has} of {size} bytes: {broken}") from broken
        time.sleep(0.05 * 4**failures)


def _receive_once(address: str, headers: dict[str, str], staging: Path, progress: Told, size: int | None) -> None:
    """One answer, written and synced; of more than there should be, one piece too many."""
    start = staging.stat().st_size if staging.exists() else 0
    try:
        answer = open_address(address, {**headers, **({"Range": f"bytes={start}-"} if start else {})})
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing
            return
        raise
    resumed = answer.status == 206
    if not resumed:
        progress(-start)
    with answer, staging.open("ab" if resumed else "wb") as file:
        while piece := answer.read(_PIECE):
            file.write(piece)
            progress(len(piece))
            if size is not None and file.tell() > size:
                break
        file.flush()
        os.fsync(file.fileno())


def _check(staging: Path, size: int | None, sha256: str | None) -> None:
    length = staging.stat().st_size
    found = file_sha256(staging) if sha256 else ""
    if (size is not None and length != size) or (sha256 and found != sha256):
        staging.unlink()
        raise NotWholeError(
            f"{size} bytes" + (f", SHA-256 {sha256[:16]}…" if sha256 else ""),
            f"{length} bytes" + (f", SHA-256 {found[:16]}…" if found else ""),
        )
