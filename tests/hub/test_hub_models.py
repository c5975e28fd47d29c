"""Models on hubs: which files are meant, and both hubs' protocols, on a server of our own."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from hub_server import COMMIT, HubServer, serving
from strop.errors import ModelError
from strop.hub import hashes, models
from strop.hub.models import chosen_files, fetch_model, model_id, pinned_model
from strop.hub.repository import HubId, Repository
from strop.model.source import model_folder, whole_model

INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
FILES = {
    "README.md": b"# a model",
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "V7_sft.model": b"\x0a",
    "modeling_other.py": b"raise SystemExit",
    "model.safetensors.index.json": INDEX.encode(),
    "model-1.safetensors": bytes(range(256)) * 5000,
    "model-2.safetensors": bytes(range(255, -1, -1)) * 300,
    "model-9.safetensors": b"not of the index",
    "pytorch_model.bin": b"pickle",
}
WANTED = {
    *("config.json", "tokenizer.json", "V7_sft.model", "model.safetensors.index.json"),
    *("model-1.safetensors", "model-2.safetensors"),
}


class Fault(NamedTuple):
    """What goes wrong with one file, and how often."""

    file: str
    kind: str
    times: int


class Hub(HubServer):
    """A hub with one model, owner/name."""

    sent: list[int]
    secrets: list[str]
    faults: list[Fault]
    other_host: list[str]

    def route(self, path: str, query: dict[str, str]) -> None:
        if "Authorization" in self.headers:
            self.secrets.append(path)
        if path.startswith("/api/models/owner/name"):
            siblings = [
                {"rfilename": name, "size": len(data)}
                | ({"lfs": {"size": len(data), "sha256": sha(data), "pointerSize": 1}} if "safetensors" in name else {})
                for name, data in FILES.items()
            ]
            self.info(path, siblings)
        elif path.startswith(f"/owner/name/resolve/{COMMIT}/"):
            self.file(path.partition(f"{COMMIT}/")[2])
        elif path.startswith("/elsewhere/"):
            self.file(path.removeprefix("/elsewhere/"))
        elif path == "/api/v1/models/owner/name/commits" and query["Ref"] in ("master", "v1", COMMIT):
            self.data({"Commit": [{"Id": COMMIT}]})
        elif path == "/api/v1/models/owner/name/repo/files" and query["Revision"] == COMMIT:
            listed = [{"Path": n, "Type": "blob", "Size": len(d), "Sha256": sha(d)} for n, d in FILES.items()]
            self.data({"Files": [{"Path": "folder", "Type": "tree"}, *listed]})
        elif path == "/api/v1/models/owner/name/repo" and query["Revision"] == COMMIT:
            self.file(query["FilePath"])
        else:
            self.nothing()

    def file(self, name: str) -> None:
        content = FILES[name]
        fault = next((fault for fault in self.faults if fault.file == name), None)
        if fault is not None:
            self.faults.remove(fault)
            if fault.times > 1:
                self.faults.append(fault._replace(times=fault.times - 1))
        kind = fault.kind if fault else ""
        if kind == "elsewhere":
            self.answer(302, b"", {"Location": f"{self.other_host[0]}/elsewhere/{name}"})
            return
        if kind == "other":
            content = content[::-1]
        left = len(content) - self.start()
        self.sent.append(left)
        if kind == "cut":
            self.send_response(206 if self.start() else 200)
            self.send_header("Content-Length", str(left))
            self.end_headers()
            self.wfile.write(content[self.start() :][: left // 2])
            self.close_connection = True
        else:
            self.content(content, {"ETag": f'"{sha(content)}"'})


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("OneHub", (Hub,), {"asked": [], "sent": [], "faults": [], "secrets": [], "other_host": []})
    models._repository.cache_clear()
    with serving(handler, tmp_path, monkeypatch, hosts=2) as ports:
        handler.other_host.append(f"http://localhost:{ports[1]}")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield handler
    models._repository.cache_clear()


@pytest.mark.parametrize("model", ["owner/name", "hf:owner/name@v1", "ms:owner/name", "ms:owner/name@v1"])
def test_the_files_of_a_model_are_fetched_and_no_others(hub: type[Hub], model: str) -> None:
    steps: list[tuple[str, int, int]] = []

    def bar(what: str) -> object:
        return lambda done, total: steps.append((what, done, total))

    folder = model_folder(model, None, bar)  # type: ignore[arg-type]
    assert {path.name for path in folder.iterdir()} == WANTED
    assert all((folder / name).read_bytes() == FILES[name] for name in WANTED)
    what, done, total = steps[-1]
    assert what.startswith("fetching") and done == total
    assert not any(word in path for path in hub.asked for word in (".bin", ".py", "README", "model-9"))
    hub.asked.clear()
    models._repository.cache_clear()
    assert model_folder(f"{model[:2] if model[2] == ':' else 'hf'}:owner/name@{COMMIT}") == folder
    assert hub.asked == []


def test_a_commit_is_what_a_run_records(hub: type[Hub], tmp_path: Path) -> None:
    notes: list[str] = []
    assert whole_model("owner/name@v1", notes.append) == f"hf:owner/name@{COMMIT}"
    assert notes == [f"hf:owner/name@v1 is commit {COMMIT[:12]}"]
    assert whole_model("ms:owner/name") == f"ms:owner/name@{COMMIT}"
    (tmp_path / "here").mkdir()
    assert whole_model("here") == str(tmp_path / "here")
    assert whole_model("smollm2-135m-instruct") == "smollm2-135m-instruct"


@pytest.mark.parametrize("text", ["name", "a/b/c", "./owner/name", "owner/name.gguf", "/owner/name", "here/name"])
def test_what_is_meant_as_a_path_is_no_id(hub: type[Hub], text: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    assert model_id(text) is None
    with pytest.raises(ModelError, match="there is no model"):
        model_folder(text)
    assert hub.asked == []


def test_a_folder_of_that_name_goes_first(hub: type[Hub], tmp_path: Path) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert model_folder("owner/name") == Path("owner/name")
    assert hub.asked == []


@pytest.mark.parametrize("kind", ["hf", "ms"])
def test_a_broken_connection_is_taken_up_where_it_ended(hub: type[Hub], kind: str) -> None:
    hub.faults.append(Fault("model-1.safetensors", "cut", 2))
    folder = fetch_model(HubId(kind, "owner/name"))  # type: ignore[arg-type]
    whole = len(FILES["model-1.safetensors"])
    assert (folder / "model-1.safetensors").read_bytes() == FILES["model-1.safetensors"]
    large = [count for count in hub.sent if count > 100_000]
    assert large == [whole, whole - whole // 2, whole - whole // 2 - (whole - whole // 2) // 2]


@pytest.mark.parametrize("kind", ["hf", "ms"])
def test_the_next_command_goes_on_where_a_killed_one_ended(hub: type[Hub], tmp_path: Path, kind: str) -> None:
    part = tmp_path / "strop" / "hub" / kind / "models--owner--name" / COMMIT / "model-1.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(FILES["model-1.safetensors"][:100_000])
    folder = fetch_model(HubId(kind, "owner/name"))  # type: ignore[arg-type]
    assert (folder / "model-1.safetensors").read_bytes() == FILES["model-1.safetensors"]
    assert len(FILES["model-1.safetensors"]) - 100_000 in hub.sent
    assert {path.name for path in folder.iterdir()} == WANTED


@pytest.mark.parametrize("kind", ["hf", "ms"])
def test_other_bytes_than_announced_are_refused_and_not_kept(hub: type[Hub], kind: str) -> None:
    hub.faults.append(Fault("model-2.safetensors", "other", 1))
    with pytest.raises(ModelError, match=r"model-2\.safetensors did not arrive whole") as caught:
        fetch_model(HubId(kind, "owner/name"))  # type: ignore[arg-type]
    assert sha(FILES["model-2.safetensors"])[:16] in caught.value.expected
    assert (fetch_model(HubId(kind, "owner/name")) / "model-2.safetensors").is_file()  # type: ignore[arg-type]


def test_a_secret_stays_with_its_host(hub: type[Hub]) -> None:
    hub.faults.append(Fault("model-1.safetensors", "elsewhere", 1))
    folder = fetch_model(HubId("hf", "owner/name"))
    assert (folder / "model-1.safetensors").read_bytes() == FILES["model-1.safetensors"]
    assert any(path.endswith("/config.json") for path in hub.secrets)
    assert any(path.startswith("/elsewhere/") for path in hub.asked)
    assert not any(path.startswith("/elsewhere/") for path in hub.secrets)


def test_files_that_another_program_fetched_are_taken(hub: type[Hub], tmp_path: Path) -> None:
    snapshot = tmp_path / "hf" / "models--owner--name" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for name in ("model-1.safetensors", "config.json"):
        (snapshot / name).write_bytes(FILES[name])
    folder = fetch_model(HubId("hf", "owner/name"))
    assert (folder / "model-1.safetensors").read_bytes() == FILES["model-1.safetensors"]
    assert not any(path.endswith(("model-1.safetensors", "/config.json")) for path in hub.asked)


def test_what_another_program_has_and_is_damaged_is_not_taken(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "hf" / "models--owner--name" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    whole = FILES["model-1.safetensors"]
    (snapshot / "model-1.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    pinned_model(HubId("hf", "owner/name"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="has not been fetched yet"):
        fetch_model(HubId("hf", "owner/name"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    folder = fetch_model(HubId("hf", "owner/name"))
    assert (folder / "model-1.safetensors").read_bytes() == whole
    assert not (folder / "model-1.safetensors").is_symlink()


def test_offline_takes_what_is_here_and_says_what_is_not(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder("hf:owner/name")
    hub.asked.clear()
    models._repository.cache_clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert model_folder("hf:owner/name") == folder
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(ModelError, match="has not been fetched yet"):
        model_folder("hf:owner/name")
    with pytest.raises(ModelError, match="hf:owner/other has not been fetched yet"):
        model_folder("hf:owner/other")
    assert hub.asked == []


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ("owner/none", "no such model on the hub"),
        ("hf:owner/name@v9", "no such revision"),
        ("ms:owner/none", "no such model or revision"),
        ("ms:owner/name@v9", "no such model or revision"),
    ],
)
def test_what_a_hub_does_not_have_is_said(hub: type[Hub], model: str, found: str) -> None:
    with pytest.raises(ModelError, match="cannot be fetched") as caught:
        model_folder(model)
    assert found in caught.value.found


def test_space_is_looked_at_first(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=10**9))
    with pytest.raises(ModelError, match="does not fit on the disk") as caught:
        fetch_model(HubId("hf", "owner/name"))
    assert "STROP_CACHE" in caught.value.do
    assert not any("safetensors" in path and "index" not in path for path in hub.asked)


def repository(*names: str) -> Repository:
    return Repository(COMMIT, dict.fromkeys(names, (None, None)))


def test_a_single_file_of_weights_goes_before_shards() -> None:
    names = ("config.json", "model.safetensors", "model.safetensors.index.json", "consolidated.safetensors")
    chosen = chosen_files(HubId("hf", "o/n"), repository(*names, "tokenizer.model", "spare.model"))
    assert chosen == ["config.json", "model.safetensors", "tokenizer.model"]


@pytest.mark.parametrize(
    ("names", "selection", "words"),
    [
        (["config.json", "pytorch_model.bin"], "", ["run code", "save_pretrained", "o/n"]),
        (["README.md", "a-q4.gguf", "b-q8.gguf"], "", ["a-q4.gguf, b-q8.gguf", "hf:o/n:a-q4.gguf"]),
        (["config.json", "model.safetensors"], "c.gguf", ["has no file c.gguf"]),
        (["config.json", "model.safetensors"], "config.json", ["has no file config.json"]),
        (["README.md"], "", ["has no config.json"]),
    ],
)
def test_what_is_no_model_folder_is_said_with_the_way_out(names: list[str], selection: str, words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        chosen_files(HubId("hf", "o/n", "", selection), repository(*names))
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_gguf_file_is_selected() -> None:
    assert chosen_files(HubId("hf", "o/n", "", "a.gguf"), repository("a.gguf", "b.gguf")) == ["a.gguf"]


def test_a_path_that_leads_out_of_the_cache_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    models._repository.cache_clear()
    monkeypatch.setattr("strop.hub.modelscope.look_up", lambda *_: repository("../../evil.safetensors"))
    with pytest.raises(ModelError, match=r"evil\.safetensors"):
        pinned_model(HubId("ms", "owner/name"))
    models._repository.cache_clear()


def test_a_hash_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STROP_CACHE", str(tmp_path / "strop"))
    monkeypatch.setattr(hashes, "_GRAIN_SECONDS", -1.0)
    file, read = tmp_path / "a", []
    file.write_bytes(b"first")
    assert hashes.file_sha256(file, read.append) == sha(b"first")
    assert hashes.file_sha256(file, read.append) == sha(b"first")
    assert read == [5]
    times = file.stat()
    file.write_bytes(b"other")
    import os

    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # size and time of writing as before
    assert hashes.file_sha256(file, read.append) == sha(b"other")
    monkeypatch.setattr(hashes, "_GRAIN_SECONDS", 60.0)
    file.write_bytes(b"third")
    assert hashes.file_sha256(file) == sha(b"third")
    assert hashes.known_sha256(file) is None
