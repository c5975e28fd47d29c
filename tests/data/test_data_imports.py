"""The data room starts fast and never needs torch."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import strop.data


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_package_itself_loads_nothing_heavy() -> None:
    assert loaded_by("import strop.data").isdisjoint(
        {"torch", "transformers", "numpy", "tokenizers", "jinja2", "rapidfuzz"}
    )


def test_no_module_loads_torch() -> None:
    modules = [module.name for module in pkgutil.iter_modules(strop.data.__path__, "strop.data.")]
    assert len(modules) > 10
    assert loaded_by(f"import {', '.join(modules)}").isdisjoint({"torch", "transformers", "pydantic"})
