"""Where Triton's kernels are tested: on a GPU if there is one, else on the CPU by Triton's interpreter.

`make gpu` runs these same tests on a card.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from strop.kernels import select
from strop.kernels.triton import found

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Skips where kernels run neither way."""
    if why := found.reason(DEVICE):
        pytest.skip(f"no Triton kernels: {why}")
    return DEVICE


@pytest.fixture
def triton(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything inside a test is computed by Triton's kernels where there are any."""
    if found.interpreted():
        widen_products(monkeypatch)
    with select.forced("triton"):
        yield


def widen_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter keeps bfloat16 as 16-bit whole numbers and multiplies those (3.9.0); a GPU widens them."""
    from triton import language
    from triton.runtime.interpreter import InterpreterBuilder

    given = InterpreterBuilder.create_dot

    def create_dot(self, left, right, *rest):
        wide = [
            self.create_fp_ext(side, language.float32) if side.dtype.scalar is language.bfloat16 else side
            for side in (left, right)
        ]
        return given(self, *wide, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
