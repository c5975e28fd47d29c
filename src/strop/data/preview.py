"""What is learned, for the eye: a sample's text in runs of one kind, and how long samples are.

    context   read, not learned
    learned   the answers
    stop      the learned stop tokens

Runs are decoded as parts of the whole text, not one by one: a character that is spread over several tokens stays a
character, and a space that a tokenizer hides in a token stays a space. What a command prints in colour and what a
web page shows are both made of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from strop.data.records import Example
from strop.data.samples import lengths
from strop.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy.typing as npt

Kind: TypeAlias = Literal["context", "learned", "stop"]


@dataclass(frozen=True, slots=True)
class Bucket:
    """One bar of a histogram: how many samples have low ≤ length ≤ high, in tokens."""

    low: int
    high: int
    count: int


def segments(example: Example, tokenizer: Tokenizer) -> list[tuple[str, Kind]]:
    """Cut a sample's text into runs of one kind, in order; together they are the whole text.

    Args:
        example: the sample.
        tokenizer: the tokenizer that made it.
    """
    stop_ids = tokenizer.stop_ids
    kinds: list[Kind] = [
        "context" if not learned else "stop" if token in stop_ids else "learned"
        for token, learned in zip(example.tokens.tolist(), example.learned.tolist(), strict=True)
    ]
    runs: list[tuple[str, Kind]] = []
    shown, end = "", 0
    for kind, run in groupby(kinds):
        start, end = end, end + len(list(run))
        text = tokenizer.decode(example.tokens[:end].tolist())
        if not text.startswith(shown):
            # A decoder that looks back; the run on its own is the best there is.
            runs.append((tokenizer.decode(example.tokens[start:end].tolist()), kind))
        else:
            runs.append((text[len(shown) :], kind))
        shown = text
    return runs


def length_histogram(examples: Sequence[Example] | npt.NDArray[np.int64], buckets: int = 12) -> list[Bucket]:
    """Count samples by length.

    Args:
        examples: the samples, or their lengths [S].
        buckets: at most so many bars, all of one width: 1, 2 or 5 times a power of ten.

    Returns:
        The bars from the shortest sample's to the longest one's, empty ones between them included.
    """
    lengths_S = examples if isinstance(examples, np.ndarray) else lengths(examples)
    if not len(lengths_S):
        return []
    low, high = int(lengths_S.min()), int(lengths_S.max())
    widths = (factor * 10**power for power in range(20) for factor in (1, 2, 5))
    width = next(width for width in widths if high // width - low // width < buckets)
    first = low // width
    counts = np.bincount(lengths_S // width - first).tolist()
    return [Bucket((first + i) * width, (first + i + 1) * width - 1, count) for i, count in enumerate(counts)]
