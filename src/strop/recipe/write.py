"""From a recipe back to YAML that reads as the same recipe; the other half of `strop.recipe.tree`.

Every field is written, whether given or not, each with a comment that says where its value came from:

    train:
      lr: 0.0001           # flag --train.lr
      epochs: 3.0          # default

Texts are quoted unless they are plain words, so that any YAML reader, of version 1.1 or 1.2, finds the same values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from strop.recipe.fields import FIELDS
from strop.recipe.schema import Recipe

_PLAIN: Final = re.compile(r"[A-Za-z_./][\w./@+-]*(,[\w./@+-]+)*", re.ASCII)
_WORDS: Final = frozenset({"null", "none", "true", "false", "yes", "no", "on", "off", "y", "n", ".inf", ".nan"})
_COMMENT_COLUMN: Final = 36


def scalar(value: Any) -> str:
    """Write one value as a YAML scalar on one line.

    Numbers keep every digit (`repr`), with a dot before an exponent (1.0e-05), since YAML 1.1 reads `1e-05` as text.
    """
    if value is None:
        return "null"
    if isinstance(value, float):
        text = repr(value)
        return text if "." in text else text.replace("e", ".0e")
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
        return value if plain else _quoted(value)
    return str(value)


def _quoted(text: str) -> str:
    """JSON's quoting, which YAML's double quotes understand, with everything that does not print as an escape."""
    return "".join(
        char if char.isprintable() else f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"
        for char in json.dumps(text, ensure_ascii=False)
    )


def _commented(line: str, source: str) -> str:
    comment = "".join(char if char.isprintable() else "?" for char in source)
    return f"{line:<{_COMMENT_COLUMN}} # {comment}"


def value_at(recipe: Recipe, path: str) -> Any:
    """The value of a recipe at a dotted path."""
    value: Any = recipe
    for name in path.split("."):
        value = getattr(value, name)
    return value


def to_yaml(recipe: Recipe, sources: Mapping[str, str]) -> str:
    """Write a whole recipe as YAML.

    Args:
        recipe: the recipe.
        sources: by path, where each value came from; becomes the comment on its line.

    Returns:
        YAML that `strop.recipe.from_yaml` reads as an equal recipe, with a newline at its end.
    """
    lines: list[str] = []
    section = ""
    for field in FIELDS:
        if field.section and field.section != section:
            section = field.section
            lines.append(f"{section}:")
        indent = "  " if field.section else ""
        value, source = value_at(recipe, field.path), sources.get(field.path, "default")
        if isinstance(value, tuple) and value:
            lines.append(_commented(f"{indent}{field.name}:", source))
            lines += [f"{indent}  - {scalar(item)}" for item in value]
        else:
            text = "[]" if isinstance(value, tuple) else scalar(value)
            lines.append(_commented(f"{indent}{field.name}: {text}", source))
    return "\n".join(lines) + "\n"
