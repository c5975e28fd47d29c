"""What several rooms' tests need."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from strop.model.starter import starter_folder
from strop.run.folder import RunFolder
from tiny_run import Tiny, memory_folder, rows, write_model, write_rows


def pytest_configure() -> None:
    """Without a GPU Triton's kernels are interpreted. Triton asks when it is imported, whoever does that first."""
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The starter model's folder, fetched and converted once a machine. Several workers may ask at once."""
    return starter_folder()


@pytest.fixture(scope="session", autouse=True)
def timed_once() -> Iterator[None]:
    """Times the machine once a model and process: plans are then the same from run to run, and tests short.

    Whatever this CPU is faster in, it computes in float32 here unless a test names another dtype: bits and tolerances
    are float32's. `strop.plan.machine.probe` itself is as it is.
    """
    from functools import cache

    from strop.plan import choose

    timed = cache(choose.probe)

    def probe(spec: Any = None, *, device: str | None = None, dtypes: tuple[str, ...] = (), **named: Any) -> Any:
        on_cpu = device == "cpu" or (device is None and not torch.cuda.is_available())
        return timed(spec, device=device, dtypes=dtypes or (("float32",) if on_cpu else ()), **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "probe", probe)
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A tiny model and data; not to be changed."""
    root = tmp_path_factory.mktemp("tiny")
    return Tiny(write_model(root / "model"), write_rows(root / "data.jsonl", rows()))


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A folder in memory where there is one."""
    with memory_folder() as folder:
        yield folder


@pytest.fixture
def own_tiny(tiny: Tiny, tmp_path: Path) -> Tiny:
    """A copy of it, to be damaged."""
    import shutil

    model = shutil.copytree(tiny.model, tmp_path / "own" / "model")
    return Tiny(model, Path(shutil.copy(tiny.data, tmp_path / "own" / "data.jsonl")))


@pytest.fixture(scope="session")
def finished(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of it; not to be changed."""
    return tiny.train(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture(autouse=True)
def restore_matrix_library() -> Iterator[None]:
    """Leaves the library of matrix products as it was: a run chooses it for the whole process."""
    from strop.kernels import blas

    before = blas._choice.name
    yield
    blas._choice.name = before


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """Leaves torch's number of threads as it was."""
    import torch

    from strop.kernels import library

    threads, native = torch.get_num_threads(), library.threads()
    yield
    torch.set_num_threads(threads)
    library.set_threads(native)
