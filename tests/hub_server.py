"""A hub on this machine: what the servers of models and of data sets have in common."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(http.server.BaseHTTPRequestHandler):
    """Answers as both hubs do; what there is, is said by `route`.

    Attributes:
        asked: every path that was asked for.
    """

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.asked.append(self.path)
        self.route(unquote(url.path), {key: values[0] for key, values in parse_qs(url.query).items()})

    def route(self, path: str, query: dict[str, str]) -> None:
        """Answers a request."""
        raise NotImplementedError

    def info(self, path: str, siblings: list[dict[str, object]]) -> None:
        """Hugging Face's answer about a repository at a revision."""
        if path.partition("/revision/")[2] in ("", "main", "v1", COMMIT):
            self.answer(200, json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": siblings}).encode())
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})

    def data(self, value: object) -> None:
        """ModelScope's answer."""
        self.answer(200, json.dumps({"Code": 200, "Data": value}).encode())

    def nothing(self) -> None:
        """There is no such repository."""
        self.answer(404, b'{"error": "none"}', {"X-Error-Code": "RepoNotFound"})

    def start(self) -> int:
        """The byte that a range begins at; 0 without one."""
        wanted = self.headers.get("Range", "")
        return int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted.startswith("bytes=") else 0

    def content(self, content: bytes, headers: dict[str, str]) -> None:
        """A file, or the part of it that is asked for."""
        if "Range" not in self.headers:
            self.answer(200, content, headers)
            return
        part = f"bytes {self.start()}-{len(content) - 1}/{len(content)}"
        self.answer(206, content[self.start() :], {**headers, "Content-Range": part})

    def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", "Accept-Ranges": "bytes", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.body(body, headers or {})

    def body(self, body: bytes, headers: dict[str, str]) -> None:
        """Sends what belongs to the headers."""
        self.wfile.write(body)


@contextmanager
def serving(
    handler: type[HubServer], folder: Path, monkeypatch: pytest.MonkeyPatch, hosts: int = 1
) -> Iterator[list[int]]:
    """The hub under so many addresses, of which the first is both hubs' endpoint; caches lie in the folder.

    Yields:
        The hosts' ports.
    """
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(hosts)]
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in servers]
    for thread in threads:
        thread.start()
    ports = [server.server_address[1] for server in servers]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{ports[0]}")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", f"http://127.0.0.1:{ports[0]}")
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "hf"))
    monkeypatch.setenv("STROP_CACHE", str(folder / "strop"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.chdir(folder)
    try:
        yield ports
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()
