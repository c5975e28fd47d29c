"""Putting a recipe together: default < recipe file < arguments < flags, each value with its source.

    resolve("recipe.yaml", overrides=[("train.lr", "1e-4")])

Paths. `model`, `data.train` and, when it is a path, `data.eval` may be written in a recipe file relative to the file
itself: a relative path that exists in the file's folder means that one. Any other is left as it is, and so is relative
to the current folder (or the name of a model). On the command line paths are always relative to the current folder.
A leading `~` is the home folder in both.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from strop.errors import UsageError
from strop.foreign import is_there
from strop.recipe.fields import FIELD, FIELDS
from strop.recipe.provenance import Resolved, checked
from strop.recipe.read import given_by_flags, given_in_text, raise_all, read_file
from strop.recipe.tree import Scalar
from strop.recipe.values import Given, NotTaken, complaint, convert

PATHS: Final = frozenset({"model", "data.train", "data.eval"})
"""Fields whose texts are paths, or may be."""

_AMOUNT: Final = re.compile(r"(\*\d+(\.\d+)?|#\d+)$")
"""How much of a source is used, behind its path (`strop.data.mixture`)."""

_WILDCARD: Final = re.compile(r"[*?\[]")


def resolve(
    file: str | Path | None = None,
    *,
    model: str | None = None,
    data: str | None = None,
    overrides: Sequence[tuple[str, str]] = (),
) -> Resolved:
    """Put a recipe together from a file, the command line's arguments and its flags.

    Args:
        file: a recipe file, YAML.
        model: the argument MODEL; replaces the file's ``model``.
        data: the argument DATA; replaces the file's ``data.train``.
        overrides: flags, as pairs of a path and a text, in order; they replace what file and arguments say.

    Returns:
        The recipe, with the source of each value.

    Raises:
        UsageError: the file cannot be read, a name is unknown, a value is not taken, model or data is missing, or an
            argument and a flag give the same field. Faults in several fields are reported together.
    """
    given: dict[str, Given] = {}
    faults: list[UsageError] = []
    if file is not None:
        path = Path(file)
        in_file, faults = given_in_text(read_file(path), str(file), path.parent)
        given |= in_file
    by_flag, flag_faults = given_by_flags(overrides)
    faults += flag_faults
    for path_of, name, text in (("model", "MODEL", model), ("data.train", "DATA", data)):
        if text is None:
            continue
        given[path_of] = Given(Scalar(text, quoted=True), f"argument {name}")
        if path_of in by_flag:
            faults.append(
                UsageError(
                    f"{path_of} is given twice",
                    expected=f"the argument {name} or the flag --{path_of}",
                    found="both",
                    do="leave one of the two out",
                )
            )
    return _resolved(given | by_flag, faults, str(file) if file is not None else "")


def from_yaml(text: str, name: str = "recipe.yaml") -> Resolved:
    """Read a recipe from YAML; paths stay as they are written. The other half of `Resolved.to_yaml`.

    Args:
        text: the YAML.
        name: what sources and errors call it.

    Raises:
        UsageError: as `resolve`.
    """
    given, faults = given_in_text(text, name, None)
    return _resolved(given, faults, name)


def _resolved(given: dict[str, Given], faults: list[UsageError], file: str) -> Resolved:
    tree: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for field in FIELDS:
        place = tree.setdefault(field.section, {}) if field.section else tree
        entry = given.get(field.path)
        if entry is None:
            continue
        sources[field.path] = entry.source
        try:
            value = convert(field, entry.node)
        except NotTaken as reason:
            faults.append(complaint(field, entry.source, str(reason)))
            continue
        place[field.name] = _placed(value, entry.folder) if field.path in PATHS else value
    faults += _missing([field.path for field in FIELDS if field.required and field.path not in given], file)
    recipe, out_of_range = checked(tree, sources)
    raise_all([*faults, *out_of_range])
    assert recipe is not None  # a recipe that cannot be built has at least one fault
    return Resolved(recipe, sources)


def _placed(value: Any, folder: Path | None) -> Any:
    """Resolve a path, or each of several, against the recipe file's folder, when it exists there."""
    if isinstance(value, tuple):
        return tuple(_placed(item, folder) for item in value)
    if not isinstance(value, str):
        return value
    path = os.path.expanduser(value)  # noqa: PTH111 - pathlib would rewrite hub-like names and raise without a home
    if folder is None:
        return path
    beside = folder / path  # an absolute path stays what it is
    if is_there(beside):
        return os.path.normpath(beside)
    amount = _AMOUNT.search(path)
    if amount and amount.start() and not is_there(path):
        return str(_placed(path[: amount.start()], folder)) + amount[0]
    wildcard = _WILDCARD.search(path)
    if wildcard and is_there((folder / path[: wildcard.start()]).parent):
        return os.path.normpath(beside)
    return path


def _missing(paths: list[str], file: str) -> list[UsageError]:
    """The fault of leaving out fields that have no default, if any are."""
    if not paths:
        return []
    words = {"model": "model", "data.train": "data"}
    examples = {"model": "model: FOLDER", "data.train": "data: {train: FILE}"}
    what = " and no ".join(words[path] for path in paths) + (" is given" if len(paths) == 1 else " are given")
    return [
        UsageError(
            f"{file}: no {what}" if file else f"no {what}",
            expected=" · ".join(f"{words[path]}: {FIELD[path].description}" for path in paths),
            do="write " + " and ".join(examples[path] for path in paths) if file else "strop train MODEL DATA",
        )
    ]
