"""From what the user calls a model to its folder: a folder, a .gguf file, a name that is fetched, or an id on a hub.

A folder or file of that name goes before a hub. A .gguf is converted once into the cache, under its own hash; later
runs find the folder there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from strop.errors import ModelError
from strop.foreign import home_path, is_there
from strop.hub.hashes import cache_folder, file_sha256
from strop.hub.models import fetch_model, model_id, pinned_model
from strop.model.gguf_convert import gguf_to_folder
from strop.model.starter import STARTER_NAME, starter_folder

Note = Callable[[str], None]
Bar = Callable[[str], Callable[[int, int], None]]
"""Given what is done, a callback (done, in all)."""

_PARTS = 1000


def _no_bar(_what: str) -> Callable[[int, int], None]:
    return lambda _done, _total: None


def _told(say: Note, bar: Bar) -> Callable[[str, float], None]:
    """Turns progress (what, share done) into one sentence each time something else begins, and a bar."""
    said: dict[str, Callable[[int, int], None]] = {}

    def report(what: str, share: float) -> None:
        if what not in said:
            said[what] = bar(what)
            say(what)
        said[what](round(share * _PARTS), _PARTS)

    return report


def whole_model(model: str, note: Note | None = None) -> str:
    """What a model is called from any folder and at any time: an absolute path, or a hub id pinned to its commit.

    Raises:
        ModelError: the hub cannot be asked, or has no such model or revision.
    """
    path = home_path(model)
    if model == STARTER_NAME:
        return model
    if is_there(path):
        return str(path.resolve())
    hub = model_id(model)
    return model if hub is None else str(pinned_model(hub, note))


def model_folder(model: str, note: Note | None = None, bar: Bar = _no_bar) -> Path:
    """The folder of a model, fetched or converted first where need be.

    Args:
        model: a folder, a .gguf file, the name of the starter model, or an id on a hub.
        note: told in a sentence what takes long.
        bar: shows how far that is.

    Raises:
        ModelError: there is no such model, or it cannot be fetched.
    """
    say = note or (lambda _text: None)
    if model == STARTER_NAME:
        return starter_folder(_told(say, bar))
    path = home_path(model)
    hub = None if is_there(path) else model_id(model)
    if hub is not None:
        hub = pinned_model(hub, note)
        path = fetch_model(hub, bar(f"fetching {hub.hub}:{hub.name}"))
    if path.suffix == ".gguf" and is_there(path) and path.is_file():
        folder = cache_folder() / "gguf" / f"{path.stem}-{file_sha256(path)[:16]}"
        return gguf_to_folder(path, folder, _told(say, bar), replace=True)
    if not is_there(path) or not path.is_dir():
        raise ModelError(
            f"there is no model {model}",
            expected=f"a model folder, a .gguf file, the name {STARTER_NAME}, or an id on a hub such as owner/name",
            found="a file that is none of them" if is_there(path) else "no such file or folder",
            do="check the path; hf:owner/name and ms:owner/name name a model on Hugging Face and on ModelScope",
        )
    return path
