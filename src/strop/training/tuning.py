"""The configurations that a run's kernels were compiled with, kept beside its numbers: they may decide the last bits.

    what the probe measured ──▶ tuning.json of every checkpoint ──▶ taken up before a resumed run computes anything

The file is there only where a choice is not the default, so that most checkpoints are as they were. Readers that do not
know it verify it and pass it by.
"""

from __future__ import annotations

import json
from pathlib import Path

from strop.errors import InputError
from strop.foreign import read_json
from strop.kernels.triton import tuning
from strop.model.tensor_bytes import Content

TUNING_FILE = "tuning.json"


def tuning_files() -> dict[str, Content]:
    """The file of this process's choices, by its name; none where all are the default."""
    kept = tuning.choices()
    if not kept:
        return {}
    text = (json.dumps(kept, indent=2) + "\n").encode()
    return {TUNING_FILE: (len(text), [text])}


def take_up_tuning(folder: Path) -> None:
    """Takes up the choices of a checkpoint, the default ones where it has none.

    Raises:
        InputError: the file holds something else.
    """
    path = folder / TUNING_FILE
    if not path.exists():
        tuning.load({})
        return
    try:
        found = read_json(path)
        if not isinstance(found, dict) or not all(type(number) is int and number >= 0 for number in found.values()):
            raise ValueError("not numbers by name")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read",
            expected="the number of a configuration by the name of a kernel",
            found=str(error)[:200],
            do="go on from an older checkpoint, or remove the file: the last bits may then differ",
        ) from None
    tuning.load(found)
