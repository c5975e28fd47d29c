"""What the names of files say: their order, and which split of a data set they belong to.

2.json < 10.json                       natural order, folder by folder
train/algebra/1.json                   train, by its folder
data/train-00000-of-00002.parquet      train, by its name
training_notes.json                    none
"""

from __future__ import annotations

import re
from pathlib import PurePath

SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
"""Names of folders and files that hold one split of a data set each."""

_FILE_OF_SPLIT = re.compile(rf"({'|'.join(SPLITS)})(?=[-_.]|$)", re.IGNORECASE)


def natural(path: PurePath) -> list[list[tuple[int, int, str]]]:
    """A sorting key under which 2.json comes before 10.json, folder by folder."""
    return [
        [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in re.split(r"(\d+)", part)]
        for part in path.parts
    ]


def split_of(file: PurePath) -> str:
    """The split that a file belongs to, by the first of its folders that is called so, or by its own name.

    Args:
        file: the path below the data set's folder.

    Returns:
        One of `SPLITS`; empty where nothing says it.
    """
    for folder in file.parts[:-1]:
        if folder.lower() in SPLITS:
            return folder.lower()
    match = _FILE_OF_SPLIT.match(file.name)
    return match[1].lower() if match else ""
