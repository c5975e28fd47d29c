"""The records of a data set with their numbers, read as they are asked for, and what its files hold.

Mixture ──files──▶ SHA-256 of what they hold: whether samples that were kept are of this data
        ──read──▶ (number, Record), (number, Record), …  those that ``data.rows`` chooses
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

from strop.data.mixture import Mixture, Source
from strop.data.records import Record
from strop.data.sources import files_of
from strop.data.split import choose_rows
from strop.foreign import home_path


class Reading:
    """What is read of some sources.

    Args:
        train: the sources, as the recipe writes them, or one source that is meant as it stands.
        rows: use so many rows; None for all.
        seed: the recipe's seed.

    Attributes:
        sources: the sources.
        bytes: what their files take up.
        labels: what places call the files, in the order of reading.

    Raises:
        DataError: there are no files.
        UsageError: a source is written in a way that means nothing.
    """

    def __init__(self, train: str | tuple[str, ...] | Source, rows: int | None, seed: int) -> None:
        self._mixture = Mixture((train,) if isinstance(train, Source) else train, seed)
        self._rows, self._seed = rows, seed
        self.sources = self._mixture.sources
        self._files = [(source, file, label) for source in self.sources for file, label in files_of(source.path)]
        self.labels = [label for _, _, label in self._files]
        self.bytes = sum(file.stat().st_size for _, file, _ in self._files)
        self._available = 0

    @property
    def names(self) -> str:
        """The sources, for messages."""
        return ", ".join(map(str, self.sources))

    @property
    def is_chosen_from(self) -> bool:
        """Whether the seed decides which rows are read."""
        return self._rows is not None or any(source.count is not None or source.weight % 1 for source in self.sources)

    @property
    def available(self) -> int:
        """Records that were read, chosen or not."""
        return self._available

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """For each source, once all is read: the rows that it has, and the number of the first record behind it."""
        return self._mixture.bounds

    def content(self) -> bytes | None:
        """What the files hold, what they are called below their source, and how much of it is used.

        Returns:
            32 bytes; None where a file cannot be read.
        """
        digest = hashlib.sha256()
        try:
            for source, file, _ in self._files:
                root = home_path(source.path)
                name = file.relative_to(root).as_posix() if root.is_dir() else file.name
                digest.update(json.dumps([name, source.weight, source.count]).encode("ascii"))
                with file.open("rb", buffering=0) as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
        except (OSError, ValueError):
            return None
        return digest.digest()

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        """The chosen records with their numbers; each time read anew."""
        chosen = None if self._rows is None else iter(choose_rows(self._mixture, self._rows, self._seed))
        following = None if chosen is None else next(chosen, None)
        for number, record in enumerate(self._mixture):
            self._available = number + 1
            if chosen is None:
                yield number, record
            elif number == following:
                following = next(chosen, None)
                yield number, record
