"""Products of float32 are float32's on a card too, where they are compared."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def whole_float32() -> Iterator[None]:
    """No TF32: a run under a float32 plan has none either."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before
