"""A run that a living process trains is refused to a second one by the command line, and free again after a SIGKILL."""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from strop.cli.main import main
from strop.run.folder import RunFolder
from strop.run.writer import OWNER
from strop.training.session import resume_run
from tiny_run import Tiny, events

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send to a process")

ENDLESS = {"train.steps": 20_000, "watch.every": 20_000, "train.save_every": 5}


class Killed(BaseException):
    """The process is gone."""


class Until:
    """Ends a process at an event."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def on_event(self, event: dict[str, Any]) -> None:
        if event["kind"] == self.kind:
            raise Killed


def test_a_second_process_is_refused_and_a_killed_one_is_not_in_the_way(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = RunFolder(tmp_path / "runs" / "run")
    line = tiny.flags(run.path, ENDLESS)
    with subprocess.Popen([sys.executable, "-m", "strop", *line], stderr=subprocess.DEVNULL) as process:
        try:
            while process.poll() is None and not events(run, "save"):
                time.sleep(0.02)
            for second in (["resume", str(run.path)], line):
                assert main(second) == 2
                said = capsys.readouterr().err
                assert "Traceback" not in said
                assert f"another process is at work on the run {run.path}" in said
                assert f"process {process.pid} on {platform.node()}" in said
                assert f"kill -INT {process.pid}" in said
            assert main(["resume", str(run.path), "--json"]) == 2
            assert json.loads(capsys.readouterr().out)["error"] == "UsageError"
            assert main(["report", str(run.path)]) == 0
            assert main(["runs", str(run.path.parent)]) == 0
            steps = len(events(run, "step"))
            while process.poll() is None and len(events(run, "step")) == steps:
                time.sleep(0.02)
            assert process.poll() is None, "the first goes on undisturbed"
        finally:
            process.kill()
    assert (run.path / OWNER).exists(), "it could not clear up"
    with pytest.raises(Killed):
        resume_run(run.path, Until("step"))
    assert events(run, "start")[-1]["step"] > 0
    assert not (run.path / OWNER).exists()
