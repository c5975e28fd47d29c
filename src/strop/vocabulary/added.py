"""Added tokens: strings that are found in a text before anything else happens to it, as ``tokenizer.json`` has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Added:
    """One added token.

    Attributes:
        content: its text.
        special: a control token: never read out of data.
        lstrip: takes the white space before it.
        rstrip: takes the white space behind it.
        single_word: only between word borders.
        normalized: looked for after normalisation.
    """

    content: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False

    def entry(self, index: int) -> Json:
        """The token as an item of ``added_tokens``."""
        flags = {name: getattr(self, name) for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        return {"id": index, "content": self.content, **flags}


def entries(added: Mapping[int, Added]) -> list[Json]:
    """The list ``added_tokens``, in the order of the ids."""
    return [added[index].entry(index) for index in sorted(added)]


def place(vocabulary: dict[str, int], added: Mapping[int, Added]) -> None:
    """Give added tokens their ids in a vocabulary; what stood under such an id is renamed to it.

    The library numbers added tokens itself unless the vocabulary has them; so it gets them, whatever the gaps.
    """
    by_id = {index: token for token, index in vocabulary.items()}
    for index, token in added.items():
        old = by_id.get(index)
        if old != token.content:
            if old is not None:
                del vocabulary[old]
            vocabulary[token.content] = index


def unnamed(index: int) -> str:
    """A name for an entry that no text may spell: the replacement for pieces that are not in use."""
    return f"\ufffe{index}\ufffe"


def numbered(contents: Iterable[str], start: int) -> dict[int, Added]:
    """Control tokens with consecutive ids, from an iterable."""
    return {start + place: Added(content) for place, content in enumerate(contents)}
