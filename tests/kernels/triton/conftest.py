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
        mend_bfloat16(monkeypatch)
    with select.forced("triton"):
        yield


def mend_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter (3.9.0) cuts float32 off to bfloat16, and multiplies bfloat16 as whole numbers of 16 bits.

    A GPU rounds to the nearest and widens.
    """
    from triton import language
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def cast_impl(self, source, kind):
        if source.dtype.scalar is language.float32 and kind.scalar is language.bfloat16:
            numbers = torch.from_numpy(source.data.copy()).to(torch.bfloat16).view(torch.int16)
            return TensorHandle(numbers.numpy().view("uint16"), kind.scalar)
        return cast(self, source, kind)

    def create_dot(self, left, right, *rest):
        wide = [
            cast(self, side, language.float32) if side.dtype.scalar is language.bfloat16 else side
            for side in (left, right)
        ]
        return dot(self, *wide, *rest)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast_impl)
    monkeypatch.setattr(InterpreterBuilder, "create_fp_trunc", cast_impl)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
