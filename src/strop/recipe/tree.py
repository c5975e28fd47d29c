"""A YAML text as a tree of scalars, each with its line; no types, no tags, no code.

A YAML library that builds Python objects guesses types from spelling: `no` becomes false, `1e-4` a text, `12:30` a
number of minutes. Here nothing is guessed. The text is read into three kinds of nodes, and what a scalar means is
decided later by the field that it stands for (`strop.recipe.values`).

    train: {lr: 1e-4}          Mapping(line 1) ─ "train" → Mapping(line 1) ─ "lr" → Scalar("1e-4", line 1)
    watch:                                     ─ "watch" → Mapping(line 3) ─ "ask" → Sequence ─ Scalar("Why?", line 3)
      ask: [Why?]

Refused, with file, line and column: broken YAML, tags (`!!python/…`), a key given twice, merge keys (`<<`), more than
one document, text that is not UTF-8, and anything larger than a recipe can be (`MAX_BYTES`, `MAX_DEPTH`,
`MAX_NODES`). Anchors work; an alias is the same node again, so nothing grows by repeating it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from strop.errors import UsageError

MAX_BYTES: Final = 1_000_000
MAX_DEPTH: Final = 20
MAX_NODES: Final = 20_000


@dataclass(frozen=True)
class Scalar:
    """One value as it was written. ``quoted`` is true for quoted and block scalars: `none` is none, `"none"` a word."""

    text: str
    quoted: bool = False
    line: int = 0


@dataclass(frozen=True)
class Sequence:
    """A list."""

    items: tuple[Node, ...]
    line: int


@dataclass(frozen=True)
class Mapping:
    """Names and values, in the order of the text; no name occurs twice."""

    entries: tuple[tuple[Scalar, Node], ...]
    line: int


Node = Scalar | Sequence | Mapping


def decode(data: bytes, name: str) -> str:
    """Decode the bytes of a recipe.

    Raises:
        UsageError: more than `MAX_BYTES`, or not UTF-8.
    """
    if len(data) > MAX_BYTES:
        raise UsageError(
            f"{name} is too large for a recipe",
            expected=f"at most {MAX_BYTES:,} bytes",
            found=f"{len(data):,} bytes",
            do="give the recipe, not the data, as the .yaml file",
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{name}:{line}: the recipe is not UTF-8 text",
            expected="UTF-8",
            found=f"byte 0x{data[error.start]:02x}",
            do="save the file as UTF-8",
        ) from None


def read_tree(text: str, name: str) -> Node | None:
    """Read a YAML text into its tree.

    Args:
        text: the YAML.
        name: what errors call it, usually the file's path.

    Returns:
        The tree, or None when the text holds nothing but comments.

    Raises:
        UsageError: broken YAML, or something that a recipe may not hold; names file, line and column.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        return _Builder(YAML(typ="safe", pure=True).parse(text), name).document()
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise UsageError(
            f"{place}: the YAML is broken",
            expected="YAML",
            found=", ".join(part for part in (error.context, error.problem) if part),
            do=_cure(error.problem or ""),
        ) from None
    except YAMLError as error:
        position = getattr(error, "position", 0)
        line = text.count("\n", 0, position) + 1
        raise UsageError(
            f"{name}:{line}: the YAML holds a character that is not allowed",
            expected="printable text",
            found=f"character {ord(text[position]):#06x}" if position < len(text) else str(error),
            do='remove it, or write it as an escape in double quotes, such as "\\t"',
        ) from None
    except (OverflowError, ValueError) as error:  # "\UFFFFFFFF": the library asks Python for that character
        raise UsageError(
            f"{name}: the YAML holds an escape that stands for no character",
            expected='"\\U00000000" to "\\U0010FFFF"',
            found=str(error),
            do="look for a backslash and a U in double quotes; single quotes keep a backslash as it is",
        ) from None


def _cure(problem: str) -> str:
    if "mapping values are not allowed" in problem:
        return "check the indentation; put text that holds a colon and a space into quotes"
    if "'\\t'" in problem:
        return "indent with spaces, not with tabs"
    if "cannot start any token" in problem:
        return "put the value into quotes"
    if "escape character" in problem:
        return "a backslash in double quotes begins an escape: use single quotes, or write it twice"
    if "stream end" in problem or "end of stream" in problem:
        return "close the bracket or quote that is still open"
    return "check the indentation, brackets and quotes on this line and on the one above"


class _Builder:
    """Builds the tree from the parser's events. Depth and size are checked on the way, before anything can grow."""

    def __init__(self, events: Iterator[Any], name: str) -> None:
        self._events = events
        self._name = name
        self._anchors: dict[str, Node] = {}
        self._count = 0

    def document(self) -> Node | None:
        tree: Node | None = None
        documents = 0
        for event in self._events:
            kind = type(event).__name__
            if kind == "DocumentStartEvent":
                documents += 1
                if documents > 1:
                    raise self._refuse(event, "a second document begins here", "one document", "remove the line ---")
            elif kind not in ("StreamStartEvent", "StreamEndEvent", "DocumentEndEvent"):
                tree = self._node(event, 1)
        return None if isinstance(tree, Scalar) and not tree.text and not tree.quoted else tree

    def _node(self, event: Any, depth: int) -> Node:
        self._count += 1
        if depth > MAX_DEPTH or self._count > MAX_NODES:
            raise self._refuse(
                event,
                "this is nested too deeply or too long for a recipe",
                f"at most {MAX_DEPTH} levels and {MAX_NODES:,} values",
                "give the recipe, not the data, as the .yaml file",
            )
        kind = type(event).__name__
        if kind == "AliasEvent":
            if event.anchor not in self._anchors:
                raise self._refuse(
                    event, f"*{event.anchor} has no anchor before it", f"&{event.anchor} above", "add it"
                )
            return self._anchors[event.anchor]
        if event.tag is not None:
            raise self._refuse(event, f"tags are not read: {event.tag}", "plain YAML", "remove the tag")
        line = event.start_mark.line + 1
        node: Node
        if kind == "ScalarEvent":
            node = Scalar(event.value, event.style is not None, line)
        elif kind == "SequenceStartEvent":
            node = Sequence(tuple(self._items(depth)), line)
        else:
            node = Mapping(tuple(self._entries(depth)), line)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _items(self, depth: int) -> Iterator[Node]:
        for event in self._events:
            if type(event).__name__ == "SequenceEndEvent":
                return
            yield self._node(event, depth + 1)

    def _entries(self, depth: int) -> Iterator[tuple[Scalar, Node]]:
        lines: dict[str, int] = {}
        for event in self._events:
            if type(event).__name__ == "MappingEndEvent":
                return
            key = self._node(event, depth + 1)
            if not isinstance(key, Scalar):
                raise self._refuse(event, "a list or mapping stands where a name should", "a name", "write NAME: VALUE")
            if key.text == "<<":
                raise self._refuse(event, "merge keys (<<) are not read", "NAME: VALUE", "write the fields out")
            if key.text in lines:
                raise self._refuse(
                    event,
                    f"{key.text} is given twice; the first is on line {lines[key.text]}",
                    "each name once",
                    "remove one of the two",
                )
            lines[key.text] = key.line
            yield key, self._node(next(self._events), depth + 1)

    def _refuse(self, event: Any, what: str, expected: str, do: str) -> UsageError:
        mark = event.start_mark
        return UsageError(f"{self._name}:{mark.line + 1}:{mark.column + 1}: {what}", expected=expected, do=do)
