"""From a recipe's text, or the flags of a command line, to what was given for each field.

    train: {lr: 1e-4}             "train.lr" → Given(Scalar("1e-4"), "recipe.yaml:1")
    --train.lr 1e-4        ──▶    "train.lr" → Given(Scalar("1e-4"), "flag --train.lr")
    --watch.ask A --watch.ask B   "watch.ask" → Given(Sequence(A, B), "flag --watch.ask")

A name that is no field is refused with its place and the nearest names. Faults are collected, not raised one by one,
so that a recipe with three wrong names is put right in one go (`raise_all`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from strop.errors import UsageError
from strop.foreign import is_there
from strop.recipe.fields import FIELD, FIELDS, SECTIONS
from strop.recipe.names import normal, suggest, suggest_section
from strop.recipe.tree import MAX_BYTES, Mapping, Node, Scalar, Sequence, decode, read_tree
from strop.recipe.values import COMMA_LISTS, Given, is_null, written


def read_file(path: Path) -> str:
    """Read a recipe's text.

    Raises:
        UsageError: no such file, a folder, not readable, too large, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        there = is_there(path)
        if there and path.is_dir():
            found = "a folder"
        elif there:
            found = f"a file that cannot be read: {error.strerror}"
        else:
            found = "no such file"
        near = "" if there else _neighbour(path)
        raise UsageError(
            f"the recipe {path} cannot be read",
            expected="a YAML file",
            found=found,
            do=f"did you mean {near} ?" if near else "check the path",
        ) from None
    return decode(data, str(path))


def _neighbour(path: Path) -> str:
    """A recipe beside the missing one with nearly the same name; empty when there is none."""
    from strop.recipe.names import nearest_of

    if not is_there(path.parent) or not path.parent.is_dir():
        return ""
    names = sorted(other.name for other in path.parent.iterdir() if other.suffix in (".yaml", ".yml"))
    near = nearest_of(path.name, names)
    return str(path.with_name(near)) if near else ""


def given_in_text(text: str, name: str, folder: Path | None) -> tuple[dict[str, Given], list[UsageError]]:
    """Collect what a recipe's text gives.

    Args:
        text: the YAML.
        name: what sources and errors call it, usually the file's path.
        folder: what relative paths in it are relative to; None to leave them as they are.

    Returns:
        What is given by path, and the faults found.

    Raises:
        UsageError: the text is no YAML, or not a mapping at its top.
    """
    tree = read_tree(text, name)
    if tree is None:
        tree = Mapping((), 1)
    if not isinstance(tree, Mapping):
        raise UsageError(
            f"{name}:{tree.line}: a recipe is a mapping from names to values",
            expected="lines such as model: FOLDER and data: {train: FILE}",
            found=written(tree),
            do="begin the recipe with model: and data:",
        )
    given: dict[str, Given] = {}
    faults: list[UsageError] = []
    for key, node in tree.entries:
        source = f"{name}:{key.line}"
        if key.text in SECTIONS:
            if isinstance(node, Mapping):
                for path, value, place in _in_section(key.text, node, name):
                    if path in FIELD:
                        given[path] = Given(value, place, folder)
                    else:
                        faults.append(unknown(path, place, inside=key.text))
            elif not (isinstance(node, Scalar) and is_null(node)):
                faults.append(_not_a_section(key.text, node, source))
                first = next(field for field in FIELDS if field.section == key.text)
                if first.required:  # meant all the same, so not missing as well
                    given[first.path] = Given(node, source, folder)
        elif key.text in FIELD and not FIELD[key.text].section:
            given[key.text] = Given(node, source, folder)
        else:
            faults.append(_unknown_at_top(key.text, node, source))
    return given, faults


def _in_section(section: str, node: Mapping, name: str) -> Iterator[tuple[str, Node, str]]:
    """Give a section's lines as (path, value, source)."""
    for key, value in node.entries:
        yield f"{section}.{key.text}", value, f"{name}:{key.line}"


def _not_a_section(section: str, node: Node, source: str) -> UsageError:
    first = next(field.name for field in FIELDS if field.section == section)
    value = written(node) if isinstance(node, Scalar) else "…"
    return UsageError(
        f"{source}: {section} is a section, not a value",
        expected=f"fields below {section}: " + ", ".join(f.name for f in FIELDS if f.section == section),
        found=written(node),
        do=f"did you mean {section}: {{{first}: {value}}} ?",
    )


def _unknown_at_top(name: str, node: Node, source: str) -> UsageError:
    section = suggest_section(name) if isinstance(node, Mapping) else ""
    if not section:
        return unknown(name, source)
    return UsageError(
        f"{source}: a recipe has no section {name}",
        expected="one of " + ", ".join(SECTIONS),
        do=f"did you mean {section}: ?",
    )


def unknown(path: str, source: str, inside: str = "") -> UsageError:
    """The error for a name that is no field, with the fields that may have been meant.

    Args:
        path: the name as it was written.
        source: where: ``recipe.yaml:12``, ``flag --lr``.
        inside: the section of the file that it stands in; empty at the top and for flags.
    """
    suggestion = suggest(path)
    on_line = source.startswith("flag")
    if suggestion.paths:
        meant = " or ".join(_spelled(meant, inside, on_line) for meant in suggestion.paths)
        do = f"did you mean {meant} ?"
    elif suggestion.note:
        do = suggestion.note
    else:
        do = "strop train --help lists the fields of a recipe"
    section = normal(path).rpartition(".")[0]
    known = [field.name for field in FIELDS if section and field.section == section]
    if suggestion.paths:
        expected = " or ".join(suggestion.paths)
    elif known:
        expected = f"a field of {section}: {', '.join(known)}"
    else:
        expected = "a field of the recipe, as section.field"
    return UsageError(f"{source}: a recipe has no field {path}", expected=expected, do=do)


def _spelled(path: str, inside: str, on_line: bool) -> str:
    """How a field is written in the place where another name stands now."""
    if on_line:
        return f"--{path}"
    section, _, name = path.rpartition(".")
    if section == inside:
        return f"{name}:"
    return f"{name}: below {section}:" if section else f"{name}: at the top"


def given_by_flags(overrides: Iterable[tuple[str, str]]) -> tuple[dict[str, Given], list[UsageError]]:
    """Collect what flags give. A flag that is repeated counts the last time; `data.train` and `watch.ask` gather
    all their texts.

    Args:
        overrides: pairs of a path and a text, in the order of the command line; ``-`` in a path counts as ``_``.
            For these two a text that begins with ``[`` is a YAML (or JSON) list of questions.

    Returns:
        What is given by path, and the faults found.
    """
    given: dict[str, Given] = {}
    faults: list[UsageError] = []
    gathered: dict[str, list[Node]] = {}
    for written_path, text in overrides:
        path, source = normal(written_path), f"flag --{written_path}"
        if path not in FIELD:
            faults.append(unknown(written_path, source))
            continue
        node: Node = Scalar(text)
        several = FIELD[path].kind in ("texts", "text or texts")
        if text.lstrip().startswith("[") and (several or path in COMMA_LISTS):
            try:
                node = _list(text, source)
            except UsageError as fault:
                faults.append(fault)
                continue
        if several:
            texts = gathered.setdefault(path, [])
            texts += node.items if isinstance(node, Sequence) else [Scalar(text, quoted=True)]
            # One text alone may have commas for several.
            node = texts[0] if FIELD[path].kind == "text or texts" and len(texts) == 1 else Sequence(tuple(texts), 0)
        given[path] = Given(node, source)
    return given, faults


def _list(text: str, source: str) -> Sequence:
    """Read a flag's text as a YAML list, which every JSON list is too."""
    try:
        tree = read_tree(text, source)
    except UsageError as fault:
        raise UsageError(
            f"{source}: this begins with [ but is no list",
            expected='a list, such as ["first question", "second question"]',
            found=fault.found or fault.what,
            do='close the list; for a question that begins with [ write it inside a list: ["[1, 2] has what sum?"]',
        ) from None
    if not isinstance(tree, Sequence):
        raise UsageError(
            f"{source}: this begins with [ but is no list",
            expected='a list, such as ["first question", "second question"]',
            found=written(tree) if tree else "nothing",
            do='for a question that begins with [ write it inside a list: ["[1, 2] has what sum?"]',
        )
    return tree


def raise_all(faults: list[UsageError]) -> None:
    """Raise the faults as one error; do nothing when there are none.

    Raises:
        UsageError: the one fault, or all of them below each other.
    """
    if not faults:
        return
    if len(faults) == 1:
        raise faults[0]
    lines = []
    for number, fault in enumerate(faults, 1):
        parts = [
            fault.what,
            fault.found and f"found {fault.found}",
            fault.expected and f"expected {fault.expected}",
            fault.do,
        ]
        lines.append(f"{number}. " + "; ".join(part for part in parts if part))
    raise UsageError(
        f"{len(faults)} things are wrong with the recipe",
        found="\n".join(lines),
        do="put these right; nothing was started",
    )
