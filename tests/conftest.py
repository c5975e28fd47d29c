"""What several rooms' tests need."""

from __future__ import annotations

from pathlib import Path

import pytest

from strop.model.starter import starter_folder


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The starter model's folder, fetched and converted once a machine. Several workers may ask at once."""
    return starter_folder()
