"""From what the user calls a model to its folder: a folder, a .gguf file, or a name that is fetched.

A .gguf is converted once into the cache, under its own hash; later runs find the folder there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from strop.errors import ModelError
from strop.model.gguf_convert import file_sha256, gguf_to_folder
from strop.model.starter import STARTER_NAME, cache_folder, starter_folder

Note = Callable[[str], None]


def _each_once(say: Note) -> Callable[[str, float], None]:
    """Turns progress (what, share done) into one sentence each time something else begins."""
    said: set[str] = set()

    def report(what: str, _share: float) -> None:
        if what not in said:
            said.add(what)
            say(what)

    return report


def model_folder(model: str, note: Note | None = None) -> Path:
    """The folder of a model, fetched or converted first where need be.

    Args:
        model: a folder, a .gguf file, or the name of the starter model.
        note: told in a sentence what takes long.

    Raises:
        ModelError: there is no such model.
    """
    say = note or (lambda _text: None)
    if model == STARTER_NAME:
        return starter_folder(_each_once(say))
    path = Path(model).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        folder = cache_folder() / "gguf" / f"{path.stem}-{file_sha256(path)[:16]}"
        return gguf_to_folder(path, folder, _each_once(say), replace=True)
    if not path.is_dir():
        raise ModelError(
            f"there is no model {model}",
            expected=f"a model folder, a .gguf file, or the name {STARTER_NAME}",
            found="a file that is neither" if path.is_file() else "no such file or folder",
            do="check the path; models of a hub must be fetched to a folder first",
        )
    return path
