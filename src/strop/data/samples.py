"""The samples of a data set as a sequence that makes each when it is asked for, and arrays of what all are like.

    samples[3]            Example: its tokens are read from the store now
    samples[:6]           Samples: six of them, still unread
    lengths(samples)      int64 [S], without making a single Example

A million examples in a list are a million objects and some gigabytes; the store's rows (`strop.data.store`) are one
array. Whoever needs a number of every sample takes `lengths`, `taught`, `untaught`; these take a list of examples too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from strop.data.records import Example, Place
from strop.data.store import FIRST, PLAIN, RECORD_BITS, Store

if TYPE_CHECKING:
    import numpy.typing as npt


class Samples(Sequence[Example]):
    """Samples of a store, in an order. Immutable; two are equal only if they are the same object.

    Args:
        store: where they are kept; several sequences may share one.
        numbers_S: int64 [S], which of the store's samples, in order; None for all.
        id_offset: added to the ids that the store knows.
    """

    def __init__(self, store: Store, numbers_S: npt.NDArray[np.int64] | None = None, id_offset: int = 0) -> None:
        self.store, self._id_offset = store, id_offset
        self._numbers_S = np.arange(len(store.rows)) if numbers_S is None else numbers_S

    def __len__(self) -> int:
        return len(self._numbers_S)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Samples: ...
    def __getitem__(self, index: int | slice) -> Example | Samples:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return self.store.sample(int(self._numbers_S[index]), self._id_offset)

    def __iter__(self) -> Iterator[Example]:
        return (self.store.sample(number, self._id_offset) for number in self._numbers_S.tolist())

    def take(self, chosen: npt.NDArray[Any]) -> Samples:
        """Some of the samples, by their places in this sequence or by a mask."""
        return Samples(self.store, self._numbers_S[chosen], self._id_offset)

    @cached_property
    def lengths_S(self) -> npt.NDArray[np.int64]:
        """Tokens of each sample."""
        return self._column("tokens")

    @cached_property
    def taught_S(self) -> npt.NDArray[np.int64]:
        """Positions of each sample that have a target."""
        return self._column("taught")

    @property
    def learned_S(self) -> npt.NDArray[np.int64]:
        """Learned tokens of each sample."""
        first_S: npt.NDArray[np.bool_] = self.marks_S & FIRST != 0
        return self.taught_S + first_S

    def learned_of(self, index: int) -> npt.NDArray[np.bool_]:
        """What of a sample is learned [T], without reading what it says."""
        return self.store.learned(int(self._numbers_S[index]))

    @property
    def files_S(self) -> npt.NDArray[np.int64]:
        """The number of the file of each sample, among ``store.files``."""
        return self._column("file")

    def with_id(self, number: int) -> Example:
        """The sample of an `Example.id`.

        Raises:
            IndexError: there is none.
        """
        return self[int(np.flatnonzero(self.ids_S == number)[0])]

    @cached_property
    def untaught_S(self) -> npt.NDArray[np.int64]:
        """Positions of each sample before the first one that has a target; all but the last where none has."""
        return self._column("untaught")

    @property
    def marks_S(self) -> npt.NDArray[np.int64]:
        """What was noticed about each sample (`strop.data.marks`)."""
        return self._column("marks")

    @property
    def said_S2(self) -> npt.NDArray[np.uint64]:
        """What each sample's conversation says, as 128 bits [S, 2]."""
        return self.store.rows["said"][self._numbers_S]

    @property
    def asked_S2(self) -> npt.NDArray[np.uint64]:
        """What each sample's conversation asks, as 128 bits [S, 2]."""
        return self.store.rows["asked"][self._numbers_S]

    @property
    def ids_S(self) -> npt.NDArray[np.int64]:
        """Each sample's `Example.id`."""
        return self._column("id") + self._id_offset

    @property
    def records_S(self) -> npt.NDArray[np.int64]:
        """The number of each sample's record in its own source."""
        return self._column("id") & ((1 << RECORD_BITS) - 1)

    def contents_S2(self, seed: int) -> npt.NDArray[np.uint64]:
        """`content_key` of each sample for a seed, as 128 bits [S, 2]; for 0 it is kept, for others 3 µs a sample."""
        if seed == 0:
            return self.store.rows["content"][self._numbers_S]
        keys = b"".join(self.store.content(number, seed) for number in self._numbers_S.tolist())
        return np.frombuffer(keys, np.uint64).reshape(-1, 2)

    @property
    def wholes_S2(self) -> npt.NDArray[np.uint64]:
        """What each sample's tokens are and what is learned of them, as 128 bits [S, 2]."""
        return self.store.rows["whole"][self._numbers_S]

    def place(self, index: int) -> Place:
        """Where a sample's record stands, without reading the sample."""
        return self.store.place(int(self._numbers_S[index]))

    def files(self) -> set[str]:
        """The files that the samples come from."""
        return {self.store.files[number] for number in np.unique(self._column("file")).tolist()}

    def within(self, files: set[str]) -> Samples:
        """The samples that come from some files."""
        numbers = [number for number, file in enumerate(self.store.files) if file in files]
        return self.take(np.isin(self._column("file"), numbers))

    def _column(self, name: str) -> npt.NDArray[np.int64]:
        return self.store.rows[name][self._numbers_S].astype(np.int64)


class ById(Mapping[int, Example]):
    """Samples by their `Example.id`, each made when it is asked for.

    Args:
        parts: the samples.
    """

    def __init__(self, *parts: Samples) -> None:
        self.parts = parts
        self._at = {number: (part, at) for part in parts for at, number in enumerate(part.ids_S.tolist())}

    def __getitem__(self, number: int) -> Example:
        part, at = self._at[number]
        return part[at]

    def __iter__(self) -> Iterator[int]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)


class Joined(Sequence[Example]):
    """Sequences of samples, one behind another, of stores that need not be the same."""

    def __init__(self, *parts: Samples) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        index = range(len(self))[index]
        for part in self._parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)

    @property
    def lengths_S(self) -> npt.NDArray[np.int64]:
        """Tokens of each sample."""
        return np.concatenate([part.lengths_S for part in self._parts])

    @property
    def marks_S(self) -> npt.NDArray[np.int64]:
        """What was noticed about each sample."""
        return np.concatenate([part.marks_S for part in self._parts])


def lengths(examples: Sequence[Example]) -> npt.NDArray[np.int64]:
    """Tokens of each sample [S]."""
    if isinstance(examples, Samples | Joined):
        return examples.lengths_S
    return np.array([len(example) for example in examples], np.int64)


def learned_counts(examples: Sequence[Example]) -> npt.NDArray[np.int64]:
    """Learned tokens of each sample [S]."""
    if isinstance(examples, Samples):
        return examples.learned_S
    return np.array([int(np.count_nonzero(example.learned)) for example in examples], np.int64)


def learned_of(examples: Sequence[Example], index: int) -> npt.NDArray[np.bool_]:
    """What of one sample is learned [T]."""
    return examples.learned_of(index) if isinstance(examples, Samples) else examples[index].learned


def taught(examples: Sequence[Example]) -> npt.NDArray[np.int64]:
    """Positions of each sample that have a target [S]: its learned tokens, but for the very first token."""
    if isinstance(examples, Samples):
        return examples.taught_S
    return np.array([int(np.count_nonzero(example.learned[1:])) for example in examples], np.int64)


def untaught(examples: Sequence[Example]) -> npt.NDArray[np.int64]:
    """Positions of each sample before the first one that has a target [S]; all but the last where none has."""
    if isinstance(examples, Samples):
        return examples.untaught_S
    return np.array([_untaught(example) for example in examples], np.int64)


def files_of(examples: Sequence[Example]) -> set[str]:
    """The files that samples come from."""
    return examples.files() if isinstance(examples, Samples) else {example.place.file for example in examples}


def places_in(examples: Sequence[Example], files: set[str]) -> list[Place]:
    """Where the samples stand that come from some files."""
    if isinstance(examples, Samples):
        chosen = examples.within(files)
        return [chosen.place(index) for index in range(len(chosen))]
    return [example.place for example in examples if example.place.file in files]


def asking(examples: Sequence[Example]) -> Sequence[Example]:
    """The samples that ask something: all but plain texts."""
    if isinstance(examples, Samples):
        return examples.take(examples.marks_S & PLAIN == 0)
    return [one for one in examples if one.conversation is None or one.conversation.messages]


def store_of(examples: Sequence[Example]) -> object:
    """What holds the samples: two sequences may share a store."""
    return examples.store if isinstance(examples, Samples) else examples


def held_bytes(examples: Sequence[Example]) -> int:
    """Bytes of memory that samples take up at most."""
    if isinstance(examples, Samples):
        return examples.store.held_bytes
    return sum(example.tokens.nbytes + example.learned.nbytes for example in examples)


def _untaught(example: Example) -> int:
    aims = example.learned[1:]
    first = int(aims.argmax()) if len(aims) else 0
    return first if len(aims) and aims[first] else len(example) - 1
