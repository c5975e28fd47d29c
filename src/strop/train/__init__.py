"""Training: the loop, the step, the optimiser, the course of the learning rate, and what stops a run.

`strop.train(recipe)` is the public call, and importing any module of this room makes Python bind the room itself to
that name. So the room can be called; the call is `strop.train.api.train`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from strop.recipe import Recipe, Resolved
    from strop.run.journal import Listener
    from strop.train.api import Run


class _Room(ModuleType):
    def __call__(
        self,
        recipe: Recipe | Resolved,
        *,
        run: str | Path | None = None,
        plan: Mapping[str, str] | None = None,
        listener: Listener | None = None,
    ) -> Run:
        """Trains a recipe; see `strop.train.api.train`."""
        from strop.train.api import train

        return train(recipe, run=run, plan=plan, listener=listener)


sys.modules[__name__].__class__ = _Room
