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
WITHOUT_KERNELS = {"__init__", "found", "tuning", "spans", "attention_parts", "attention_tiles", "maths", "tune"}
# Shared memory of a program: of Hopper, and of the Ampere and Ada cards that have least of it (RTX 30 and 40).
SHARED = {"sm_90": 227 * 1024, "sm_80": 99 * 1024}


def compiled(*words: str) -> dict[str, dict[str, int]]:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, str(SCRIPT), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def fits(kernels: dict[str, dict[str, int]]) -> None:
    assert {name.split(".")[0] for name in kernels} == MODULES - WITHOUT_KERNELS
    assert {name: use for name, use in kernels.items() if use["shared"] > SHARED[name.split()[-1]]} == {}


def test_every_kernel_compiles_for_hopper():
    kernels = compiled("quick", "90")
    fits(kernels)
    # What does not fit into registers goes to memory and back: a number or two may, tiles may not.
    assert {name: use for name, use in kernels.items() if use["stack"] > 16} == {}


@pytest.mark.slow
@pytest.mark.parametrize("target", ["80", "90"])
def test_every_kernel_compiles_in_every_dtype(target):
    fits(compiled(target))


@pytest.mark.slow
def test_every_tile_of_attention_compiles():
    kernels = compiled("tiles", "90")
    # Those that do not fit are passed over when they are measured, but then they need not be listed.
    assert {name: use for name, use in kernels.items() if use["shared"] > SHARED["sm_90"]} == {}
