"""One command line at a time, without colours and in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from strop.cli.main import main


@pytest.fixture(autouse=True)
def plain_output(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("STROP_TRACEBACK", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run one command line; give exit code, standard output and standard error."""

    def run_line(*tokens: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(tokens)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_line
