"""Every kernel compiles for GPUs that are not here: Triton's interpreter accepts what its compiler refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("compile_kernels.py")
MODULES = {path.stem for path in (Path(__file__).parents[3] / "src/strop/kernels/triton").glob("*.py")}
WITHOUT_KERNELS = {"__init__", "found", "tuning", "spans", "attention_tiles", "maths"}
# Shared memory of a program on the cards that have least of it: RTX 30 and 40 (compute capability 8.6 and 8.9).
LEAST_SHARED = 99 * 1024


def compiled(*words: str) -> dict[str, dict[str, int]]:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, str(SCRIPT), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def fits(kernels: dict[str, dict[str, int]]) -> None:
    assert {name.split(".")[0] for name in kernels} == MODULES - WITHOUT_KERNELS
    assert {name: use for name, use in kernels.items() if use["shared"] > LEAST_SHARED} == {}


def test_every_kernel_compiles_for_hopper():
    kernels = compiled("quick", "90")
    fits(kernels)
    # What does not fit into registers goes to memory and back: a number or two may, tiles may not.
    assert {name: use for name, use in kernels.items() if use["stack"] > 16} == {}


@pytest.mark.slow
def test_every_kernel_compiles_in_every_dtype_for_ampere_and_hopper():
    fits(compiled("80", "90"))
