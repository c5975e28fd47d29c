"""Data sets on a hub: which of a repository's files are meant, brought onto this machine, pinned to a commit.

    owner/name                        Hugging Face, where no local path is called so; its split "train"
    hf:owner/name:test                its split "test"
    hf:owner/name@v1.0:main/train     the revision "v1.0", the configuration "main", its split "train"
    hf:owner/name:data/a.jsonl        one of its files
    ms:owner/name@master:train        ModelScope

Which files are a split's is read from the ``configs`` of the repository's card (README.md) where it has them, and from
names of folders and files otherwise. Only those are fetched. Nothing in a repository is ever run: one that holds a
loading script and no data files is refused.

A revision is resolved to its commit first; `pinned` gives the id with it, which is what a run records. What is fetched
stays: a pinned id is read again without the network. HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and MODELSCOPE_ENDPOINT hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from strop.data.naming import SPLITS, natural, split_of
from strop.errors import DataError
from strop.foreign import is_there
from strop.hub.repository import DATA_SET, Hub, HubId, Repository, has_hub, parse_id, refuse_strange_paths

Note = Callable[[str], None]

_PLAIN_FOLDERS = ("data",)


def hub_id(text: str) -> HubId | None:
    """Read a hub id; None for what is none.

    Without ``hf:`` or ``ms:`` it is one only where it could not be meant as a path: no ending of a data file, and no
    folder on this machine that it would lie in.
    """
    hub = parse_id(text)
    if hub is not None and not has_hub(text):
        from strop.data.sources import format_of

        if format_of(PurePosixPath(hub.name)) or is_there(Path(hub.name).parent):
            return None
    return hub


def pinned(hub: HubId, note: Note | None = None) -> HubId:
    """The same id with the commit that its revision is now.

    Args:
        hub: the id.
        note: told the commit and the files.

    Raises:
        DataError: the hub cannot be asked, or has no such data set, revision or split.
    """
    repository = _repository(hub)
    names = chosen_files(hub, repository)
    if note is not None:
        sizes = [repository.files[name][0] for name in names]
        total = f", {sum(size or 0 for size in sizes) / 1e6:.1f} MB" if all(sizes) else ""
        note(f"{hub} is commit {repository.commit[:12]}: {len(names)} file{'s' if len(names) > 1 else ''}{total}")
    return replace(hub, revision=repository.commit)


def fetch(hub: HubId) -> list[tuple[Path, str]]:
    """Bring the files that an id means onto this machine.

    Returns:
        Each file with what places and messages call it: ``hf:owner/name@1a2b3c4d5e6f/data/train.jsonl``.

    Raises:
        DataError: as `pinned`; or a file does not arrive whole.
    """
    repository = _repository(hub)
    download = _client(hub.hub).download
    label = f"{hub.hub}:{hub.name}@{repository.commit[:12]}"
    return [(download(hub.name, repository, name), f"{label}/{name}") for name in chosen_files(hub, repository)]


def chosen_files(hub: HubId, repository: Repository) -> list[str]:
    """The files of a repository that an id means, in natural order.

    Raises:
        DataError: there are none, or it is not clear which are meant; with what there is to choose from.
    """
    from strop.data.sources import data_files

    if hub.selection in repository.files:
        return [hub.selection]
    paths = [PurePosixPath(name) for name in repository.files if not name.startswith(".")]
    data = [PurePosixPath(file) for file in data_files(paths)]
    if not data:
        raise _no_data(hub, paths)
    configuration, _, split = hub.selection.rpartition("/")
    declared = _declared(repository.card)
    groups = _by_card(declared, data) if declared else _by_names(data)
    split_files = _choose(hub, groups, configuration, split, "configuration")
    files = _choose(hub, split_files, split, "", "split")
    _refuse_copies(hub, files)
    return [str(file) for file in sorted(files, key=lambda file: (natural(file), str(file)))]


def _choose(hub: HubId, groups: Mapping[str, Any], wanted: str, inner: str, kind: str) -> Any:
    """One of a mapping's entries: the one that is named, the usual one, or the only one."""
    usual = ("train",) if kind == "split" else ("default",)
    if not wanted:
        if len(groups) == 1:
            return next(iter(groups.values()))
        wanted = next((name for name in usual if name in groups), "")
    if wanted in groups:
        return groups[wanted]
    example = next(iter(groups))
    selection = f"{example}/{inner or 'train'}" if kind == "configuration" else example
    raise DataError(
        f"{hub}: which {kind}?" if not wanted else f"{hub} has no {kind} {wanted!r}",
        expected=f"one {kind} of " + ", ".join(name or "(no name)" for name in groups),
        found=wanted or f"{len(groups)} of them",
        do=f"name it: {replace(hub, selection=selection)}",
    )


def _by_names(data: list[PurePosixPath]) -> dict[str, dict[str, list[PurePosixPath]]]:
    """Configuration → split → files, as folders and files are called."""
    groups: dict[str, dict[str, list[PurePosixPath]]] = {}
    for file in data:
        top = file.parts[0] if len(file.parts) > 1 else ""
        configuration = "" if top.lower() in SPLITS or top.lower() in _PLAIN_FOLDERS else top
        groups.setdefault(configuration, {}).setdefault(split_of(file) or "train", []).append(file)
    return groups


def _by_card(declared: list[Any], data: list[PurePosixPath]) -> dict[str, dict[str, list[PurePosixPath]]]:
    """Configuration → split → files, as the card's ``configs`` says."""
    groups: dict[str, dict[str, list[PurePosixPath]]] = {}
    for entry in declared:
        splits = groups.setdefault(str(entry.get("config_name", "default")), {})
        listed = entry["data_files"]
        for item in listed if isinstance(listed, list) else [listed]:
            split, patterns = (
                (item.get("split", "train"), item.get("path")) if isinstance(item, dict) else ("train", item)
            )
            for pattern in patterns if isinstance(patterns, list) else [patterns]:
                matched = re.compile(_as_expression(str(pattern)))
                splits.setdefault(str(split), []).extend(file for file in data if matched.fullmatch(str(file)))
    return {name: found for name, splits in groups.items() if (found := {k: v for k, v in splits.items() if v})}


def _declared(card: str) -> list[Any]:
    """The entries of ``configs`` in a card's front matter that name files."""
    match = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|$)", card, re.DOTALL)
    if match is None or "data_files" not in match[1]:
        return []
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        front = YAML(typ="safe", pure=True).load(match[1])
    except (YAMLError, ValueError, RecursionError):
        return []
    configs = front.get("configs") if isinstance(front, dict) else None
    entries = configs if isinstance(configs, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and entry.get("data_files")]


def _as_expression(pattern: str) -> str:
    """A card's pattern as a regular expression: ``**/`` any folders, ``*`` and ``?`` inside a name."""
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.removeprefix("./"))
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(meaning.get(piece, re.escape(piece)) for piece in pieces)


def _refuse_copies(hub: HubId, files: list[PurePosixPath]) -> None:
    """The same rows in two formats would be learned twice."""
    from strop.data.sources import format_of

    by_format: dict[str, PurePosixPath] = {}
    for file in files:
        by_format.setdefault(format_of(file), file)
    if len(by_format) > 1:
        raise DataError(
            f"{hub} has the split in several formats",
            expected="one",
            found=", ".join(map(str, by_format.values())),
            do=f"name the file: {replace(hub, selection=str(next(iter(by_format.values()))))}",
        )


def _no_data(hub: HubId, paths: list[PurePosixPath]) -> DataError:
    scripts = [path for path in paths if path.suffix == ".py"]
    endings = sorted({path.suffix or path.name for path in paths})
    return DataError(
        f"{hub} holds no data files",
        expected="json, jsonl, csv, parquet, arrow or txt files",
        found=f"a loading script, {scripts[0]}, which would have to be run" if scripts else ", ".join(endings[:8]),
        do="code from a hub is never run; take the files that the hub has converted, "
        f"{replace(hub, revision='refs/convert/parquet')}, or another copy of the data"
        if scripts and hub.hub == "hf"
        else "take another copy of the data, or download and convert it",
    )


def _client(hub: Hub) -> Any:
    if hub == "ms":
        from strop.hub import modelscope

        return modelscope
    from strop.hub import huggingface

    return huggingface


@lru_cache(maxsize=64)
def _repository(hub: HubId) -> Repository:
    """What a repository holds; asked once a process, so that a branch that moves meanwhile changes nothing."""
    repository: Repository = _client(hub.hub).look_up(hub.name, hub.revision)
    refuse_strange_paths(str(hub), repository, DATA_SET)
    return repository
