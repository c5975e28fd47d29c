"""Tells a folder of unpacked wheels that Strop is installed: its name and version, which a run's record asks for.

    python benchmarks/card/site.py FOLDER

`make gpu` with GPU_PYTHON uses the sources as they lie, where nothing can be built or installed.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def write_metadata(folder: Path) -> Path:
    """Writes the `.dist-info` that `importlib.metadata` reads, from pyproject.toml."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    place = folder / f"{project['name']}-{project['version']}.dist-info"
    place.mkdir(parents=True, exist_ok=True)
    text = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (place / "METADATA").write_text(text, encoding="utf-8")
    return place


if __name__ == "__main__":
    print(write_metadata(Path(sys.argv[1])))
