"""What stops a run: numbers that are not finite."""

from __future__ import annotations

from collections.abc import Sequence

from strop.errors import Stopped


class NotFinite(Stopped):
    """A loss or a gradient was NaN or infinite; the adapter was not moved."""

    def __init__(self, what: str, samples: Sequence[int]) -> None:
        listed = ", ".join(map(str, samples[:8])) + (" …" if len(samples) > 8 else "")
        super().__init__(
            f"the {what} is not finite",
            expected="finite numbers",
            found=f"NaN or infinity, in samples {listed}",
            do="lower --train.lr, or look at these samples; the last checkpoint is whole",
        )
