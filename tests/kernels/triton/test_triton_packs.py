"""A pack of another length asks for no other kernel: nothing is compiled in the middle of a run.

Triton makes a kernel of its own for a size that 16 divides, and for one that is 1. What differs from pack to pack must
therefore be named in a kernel's `do_not_specialize`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("launched_kernels.py")


def test_packs_of_all_lengths_share_their_kernels(tmp_path: Path):
    from card.made_model import made_model

    command = [sys.executable, str(SCRIPT), str(made_model(tmp_path, "tiny"))]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = json.loads(done.stdout)
    assert {name.split(".")[0] for name, *_ in kernels} >= {"attention", "rms_norm", "activation", "rope", "dropout"}
    assert [name for name, pack, _ in kernels if pack > 0] == []
    # Each is launched again by every pack.
    assert all(launches > 20 for _, _, launches in kernels)
