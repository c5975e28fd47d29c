"""Models on a hub: which of a repository's files make a model folder, brought onto this machine, pinned to a commit.

    owner/name                     Hugging Face, where nothing local is called so
    ms:owner/name@v1.0             ModelScope, the revision "v1.0"
    hf:owner/name@1a2b…            a commit: asked for once, then never again
    owner/name-GGUF:q4_k_m.gguf    one GGUF file of it

Fetched are config, tokenizer and safetensors, nothing else: pickled weights (``*.bin``, ``*.pt``) and code never. The
space is looked at first, every hash that the hub tells is checked, and what was broken off goes on where it ended. The
files of a commit lie together in $STROP_CACHE/hub, and are a model folder as any other.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from strop.errors import ModelError
from strop.foreign import is_there, read_json
from strop.hub.hashes import cache_folder
from strop.hub.repository import MODEL, HubId, Repository, has_hub, parse_id, refuse_strange_paths
from strop.hub.store import repository_folder

Note = Callable[[str], None]
Progress = Callable[[int, int], None]

INDEX = "model.safetensors.index.json"
_NEEDED = "config.json"
_TEXTS = frozenset(
    (
        *("config.json", "generation_config.json", "chat_template.jinja", "tokenizer_config.json"),
        *("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "merges.txt"),
        *("added_tokens.json", "special_tokens_map.json", INDEX),
    )
)
_SPARE_BYTES = 1 << 30


def model_id(text: str) -> HubId | None:
    """Read a model's hub id; None for what is none.

    Without ``hf:`` or ``ms:`` it is one only where it could not be meant as a path: no ending of a model's file, and no
    folder on this machine that it would lie in.
    """
    hub = parse_id(text)
    if hub is None or has_hub(text):
        return hub
    return None if hub.name.endswith((".gguf", ".safetensors")) or is_there(Path(hub.name).parent) else hub


def pinned_model(hub: HubId, note: Note | None = None) -> HubId:
    """The same id with the commit that its revision is now.

    Raises:
        ModelError: the hub cannot be asked, or has no such model or revision.
    """
    repository = _repository(hub)
    if note is not None and hub.revision != repository.commit:
        note(f"{hub} is commit {repository.commit[:12]}")
    return replace(hub, revision=repository.commit)


def fetch_model(hub: HubId, progress: Progress | None = None) -> Path:
    """Bring a model's files onto this machine.

    Args:
        hub: the id.
        progress: called with (bytes here, bytes in all).

    Returns:
        The model's folder; or its file, where the id selects a GGUF file.

    Raises:
        ModelError: as `pinned_model`; it holds no weights that are read; there is no space; or a file does not arrive
            whole.
    """
    repository = _repository(hub)
    folder = repository_folder(hub.hub, hub.name, MODEL) / repository.commit
    names = chosen_files(hub, repository)
    fetch = _client(hub).fetch
    if INDEX in names:  # small, and says which shards there are
        fetch(hub.name, repository, INDEX)
        names = _with_shards(hub, repository, names, folder / INDEX)
    missing = [name for name in names if not is_there(folder / name)]
    if missing:
        _check_space(hub, folder, repository.files, missing)
        told = _Sum(sum(repository.files[name][0] or 0 for name in missing), progress)
        for name in missing:
            fetch(hub.name, repository, name, told.add)
    return folder / hub.selection if hub.selection else folder


def chosen_files(hub: HubId, repository: Repository) -> list[str]:
    """The files that make the model, those of an index of shards aside.

    Raises:
        ModelError: it holds none that are read; with the way out.
    """
    if hub.selection:
        if hub.selection in repository.files and hub.selection.endswith(".gguf"):
            return [hub.selection]
        raise _unclear(hub, repository, f"has no file {hub.selection}" if hub.selection else "")
    texts = [name for name in repository.files if name in _TEXTS or name.endswith(".tiktoken")]
    if not any(name.endswith(".model") for name in texts):  # such as InternLM's V7_sft.model
        texts += [name for name in repository.files if name.endswith(".model") and "/" not in name]
    if _NEEDED not in texts:
        raise _unclear(hub, repository, f"has no {_NEEDED}")
    if "model.safetensors" in repository.files:
        return sorted({*texts, "model.safetensors"} - {INDEX})
    if INDEX not in texts:
        raise _unclear(hub, repository, "has no weights that are read")
    return sorted(texts)


def _with_shards(hub: HubId, repository: Repository, names: list[str], index: Path) -> list[str]:
    try:
        shards = {str(name) for name in read_json(index)["weight_map"].values()}
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise ModelError(f"{hub}: {INDEX} cannot be read", found=repr(error), do="take another revision") from None
    unknown = sorted(shards - set(repository.files))
    if unknown:
        raise ModelError(
            f"{hub}: {INDEX} names {unknown[0]}",
            expected="files of the repository",
            found="no such file",
            do="take another revision",
        )
    return [*names, *sorted(shards)]


def _unclear(hub: HubId, repository: Repository, why: str) -> ModelError:
    """What to do about a repository that is not a model folder with safetensors."""
    files = [PurePosixPath(name) for name in repository.files]
    ggufs = sorted(str(file) for file in files if file.suffix == ".gguf")
    pickled = sorted(str(file) for file in files if file.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if ggufs:
        found, do = ", ".join(ggufs[:8]), f"name one: {replace(hub, selection=ggufs[0])}"
    elif pickled:
        found = f"{pickled[0]}, which can run code when it is opened"
        do = (
            "take a revision or a copy with safetensors (Hugging Face's bot offers one as refs/pr/…), or convert it "
            f"where you trust it: AutoModelForCausalLM.from_pretrained({hub.name!r}).save_pretrained(FOLDER)"
        )
    else:
        found, do = ", ".join(sorted(str(file) for file in files)[:8]) or "nothing", "check the name"
    return ModelError(f"{hub} {why}", expected="config.json and *.safetensors, or a .gguf file", found=found, do=do)


def _check_space(
    hub: HubId, folder: Path, files: Mapping[str, tuple[int | None, str | None]], missing: list[str]
) -> None:
    existing = folder
    while not existing.exists():
        existing = existing.parent
    parts = (folder / f"{name}.part" for name in missing)
    needed = sum(files[name][0] or 0 for name in missing) - sum(part.stat().st_size for part in parts if part.exists())
    free = shutil.disk_usage(existing).free
    if needed + _SPARE_BYTES > free:
        raise ModelError(
            f"{hub} does not fit on the disk",
            expected=f"{(needed + _SPARE_BYTES) / 1e9:.1f} GB free under {cache_folder()}",
            found=f"{free / 1e9:.1f} GB",
            do="free some, or set STROP_CACHE to a folder on a larger disk",
        )


class _Sum:
    """Bytes of several files as one progress."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self.progress = 0, total, progress

    def add(self, count: int) -> None:
        self.done += count
        if self.progress is not None:
            self.progress(self.done, max(self.total, self.done))


def _client(hub: HubId) -> Any:
    if hub.hub == "ms":
        from strop.hub import modelscope

        return modelscope
    from strop.hub import huggingface

    return huggingface


@lru_cache(maxsize=16)
def _repository(hub: HubId) -> Repository:
    """What a repository holds; asked once a process, so that a branch that moves meanwhile changes nothing."""
    repository: Repository = _client(hub).look_up(hub.name, hub.revision, MODEL)
    refuse_strange_paths(str(hub), repository, MODEL)
    return repository
