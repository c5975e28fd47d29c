"""Strop fine-tunes chat models with QLoRA on your own data, and proves what it did.

    import strop

    recipe = strop.Recipe(model="smollm2-135m-instruct", data={"train": "questions.jsonl", "map": "question:answer"})
    run = strop.train(recipe)                      # -> strop.Run, the figures and the folder of the run
    model = strop.load(run.folder)                 # -> strop.TunedModel, base and adapter in memory
    print(model.ask(["What is 12 + 30?"])[0].text)

Everything is imported when it is first used, so that `import strop` costs nothing.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strop.errors import StropError
    from strop.evaluate.tuned import TunedModel
    from strop.evaluate.tuned import load_tuned as load
    from strop.recipe import Recipe
    from strop.training.api import Run, resume, train

__all__ = ["Recipe", "Run", "StropError", "TunedModel", "load", "resume", "train"]

_HOMES = {
    "Recipe": ("strop.recipe", "Recipe"),
    "Run": ("strop.training.api", "Run"),
    "StropError": ("strop.errors", "StropError"),
    "TunedModel": ("strop.evaluate.tuned", "TunedModel"),
    "load": ("strop.evaluate.tuned", "load_tuned"),
    "resume": ("strop.training.api", "resume"),
    "train": ("strop.training.api", "train"),
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        # Threads that spin while they wait took 20 % of a step (docs/decisions/0007-passive-threads.md); OpenMP reads
        # this when torch is imported, so that it is too late where a program has done so before.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        module, attribute = _HOMES[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'strop' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
