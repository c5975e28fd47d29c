"""What is learned, for the eye: a sample's text in runs of one kind, token by token, and how long samples are.

    context   read, not learned
    learned   the answers
    stop      the learned stop tokens

    tokens, learned, weights ──pieces──▶ Piece (text, ids, kind, weight) ──runs──▶ Run (pieces of one kind and weight)

Text is decoded as part of the whole, not token by token: a character that is spread over several tokens stays a
character, and a space that a tokenizer hides in a token stays a space. What a command prints in colour and what a
web page shows are both made of these. Nothing is encoded here: what is shown are the arrays that a step computes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from strop.data.packing import NO_TARGET, Pack
from strop.data.records import Example
from strop.data.samples import lengths
from strop.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy.typing as npt

    from strop.data.records import Learned, Tokens, Weights

Kind: TypeAlias = Literal["context", "learned", "stop"]

_BROKEN = "\ufffd"
"""What a decoder writes where the bytes of a character are not all there."""

_MOST_BYTES = 4
"""Bytes of the longest character in UTF-8, and so the most tokens that it can be spread over."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """One bar of a histogram: how many samples have low ≤ length ≤ high, in tokens."""

    low: int
    high: int
    count: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that make one piece of text: mostly one token, several where a character is spread over them.

    Args:
        text: what they say.
        ids: the tokens.
        kind: whether they are learned.
        weight: how much each counts in the loss; 0 where it is only read.
    """

    text: str
    ids: tuple[int, ...]
    kind: Kind
    weight: float


@dataclass(frozen=True, slots=True)
class Run:
    """Pieces of one kind and weight that follow one another."""

    kind: Kind
    weight: float
    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        """What they say together."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def tokens(self) -> int:
        """How many tokens they are."""
        return sum(len(piece.ids) for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Document:
    """A document of a pack, as it lies there.

    Args:
        sample_id: the sample's `Example.id`; for a shared beginning that of its first sample.
        start: the first position in the pack.
        end: the one behind the last.
        continues: the number, from 0, of the document that this one goes on from; None where it stands alone.
        runs: its text.
    """

    sample_id: int
    start: int
    end: int
    continues: int | None
    runs: tuple[Run, ...]


def pieces(tokenizer: Tokenizer, tokens: Tokens, learned: Learned, weights: Weights | None = None) -> list[Piece]:
    """Cut tokens into pieces of text.

    Args:
        tokenizer: the tokenizer that made them.
        tokens: int32 [T].
        learned: bool [T].
        weights: float32 [T]; None where every learned token counts 1.
    """
    ids, stop_ids = tokens.tolist(), tokenizer.stop_ids
    shares = learned.astype(np.float32).tolist() if weights is None else np.where(learned, weights, 0).tolist()
    kinds: list[Kind] = [
        "context" if not taught else "stop" if token in stop_ids else "learned"
        for token, taught in zip(ids, learned.tolist(), strict=True)
    ]
    found: list[Piece] = []
    # Decoded behind the piece before it: a decoder may drop the space at the very beginning of what it is given.
    start = done = 0
    for end in range(1, len(ids) + 1):
        before, text = tokenizer.decode(ids[start:done]), tokenizer.decode(ids[start:end])
        going_on = end < len(ids) and (kinds[end], shares[end]) == (kinds[done], shares[done])
        if text.endswith(_BROKEN) and going_on and end - done < _MOST_BYTES:
            continue
        text = text[len(before) :] if text.startswith(before) else tokenizer.decode(ids[done:end])
        found.append(Piece(text, tuple(ids[done:end]), kinds[done], shares[done]))
        start, done = done, end
    return found


def runs(found: Iterable[Piece]) -> list[Run]:
    """Put pieces of one kind and weight together."""
    return [
        Run(kind, weight, tuple(group))
        for (kind, weight), group in groupby(found, key=lambda piece: (piece.kind, piece.weight))
    ]


def sample_runs(example: Example, tokenizer: Tokenizer) -> list[Run]:
    """A sample's text, run by run; the texts together are the whole text."""
    return runs(pieces(tokenizer, example.tokens, example.learned, example.weights))


def documents(pack: Pack, tokenizer: Tokenizer) -> list[Document]:
    """A pack's documents, read back from its own arrays: a token is learned where the position before has a target."""
    found = []
    bounds = list(pairwise(pack.starts_D1.tolist()))
    for number, (start, end) in enumerate(bounds):
        learned = np.zeros(end - start, np.bool_)
        learned[1:] = pack.targets_T[start : end - 1] != NO_TARGET
        weights: Weights | None = pack.weights_T
        if weights is not None:
            weights = np.insert(weights[start : end - 1], 0, 0)
        text = runs(pieces(tokenizer, pack.tokens_T[start:end], learned, weights))
        prefix = int(pack.prefix_of_D[number])
        found.append(Document(int(pack.sample_ids_D[number]), start, end, prefix if prefix >= 0 else None, tuple(text)))
    return found


def cut_place(example: Example, whole: Example) -> int | None:
    """Where a sample was cut to fit: the first position at which it goes on unlike the whole one; None if it is whole.

    Args:
        example: the sample as it is learned.
        whole: the same record without a limit.
    """
    if len(example) == len(whole):
        return None
    shorter = min(len(example), len(whole))
    unlike: npt.NDArray[np.int64] = np.flatnonzero(example.tokens[:shorter] != whole.tokens[:shorter])
    return int(unlike[0]) if len(unlike) else shorter


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
