"""Puts what writes tiny GGUF files where the tests of this room find it."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "model"))
