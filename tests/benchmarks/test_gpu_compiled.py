"""What is told of compiled kernels: how many programs fit, what loops hold, and the whole table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from card import compiling

# As cuobjdump writes it: a loop that multiplies inside one that does not, and a branch forward.
CODE = """
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0010*/              @!P0 LDG.E.U8 R5, desc[UR4][R2.64] ;
        /*0020*/                   LDGSTS.E [R9], desc[UR4][R2.64] ;
        /*0030*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0040*/                   STL.64 [R1], R4 ;
        /*0050*/               @P1 BRA 0x20 ;
        /*0060*/                   LDL R4, [R1] ;
        /*0070*/               @P2 BRA 0x0 ;
        /*0080*/                   BRA 0x90 ;
        /*0090*/                   STG.E.128 desc[UR4][R2.64], R4 ;
"""


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "programs"),
    [
        (255, 98_560, 8, 1),  # registers: 8 warps of 255 are all that there are
        (40, 2048, 4, 12),  # registers: 40 · 32 numbers a warp
        (32, 0, 4, 16),  # warps
        (16, 0, 1, 32),  # programs
        (64, 100 << 10, 4, 2),  # shared memory, and 1 KiB of each program
    ],
)
def test_programs_on_a_multiprocessor_of_hopper(registers, shared, warps, programs):
    assert compiling.resident(registers, shared, warps, 90) == programs


def test_instructions_are_counted_by_loops():
    code = compiling._instructions(CODE)
    assert len(code) == 10
    assert compiling._counted(name for _, name, _ in code) == {
        "load 128": 1,
        "load 8": 1,
        "async less": 1,
        "wgmma": 1,
        "spill": 2,
        "store 128": 1,
    }
    assert compiling._loops(code) == [{"all": 4, "async less": 1, "wgmma": 1, "spill": 1}]


@pytest.mark.slow
def test_every_kernel_is_told_of(tmp_path: Path):
    script = Path(__file__).parents[2] / "benchmarks/gpu_compiled.py"
    command = [sys.executable, str(script), "--json", str(tmp_path / "compiled.json")]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "compiled.json").read_text())["kernels"]
    tiles = [each for each in found if each["kernel"].startswith("attention.") and "instructions_a_score" in each]
    assert len(tiles) >= 8
    assert {each["multiplies"] for each in tiles} == {"wgmma"}
    assert {each["spilled_in_loops"] for each in found} == {0}
    assert all(each["programs"] >= 1 for each in found)
