"""A disk that is really full: a run on a file system of two megabytes, with and without room for what it has to write.

The file system is a tmpfs, which only root may mount: elsewhere a process makes itself root of a namespace of its own.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from strop.run.folder import RunFolder
from tiny_run import Tiny, course, events

UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]
SCRIPT = """
set -e
mount -t tmpfs -o size={size} tmpfs {mount}
fill() {{ head -c 100000000 /dev/zero > {mount}/ballast 2>/dev/null || true; }}
{fill_first}
code=0
{python} -m strop {train} 2> {kept}/first.txt || code=$?
echo $code > {kept}/code
find {mount}/run -name '.*' > {kept}/strays 2>/dev/null || true
rm -f {mount}/ballast
mount -o remount,size=64m {mount}
code=0
{python} -m strop resume {mount}/run 2> {kept}/second.txt || code=$?
echo $code > {kept}/code2
cp -r {mount}/run {kept}/run
"""


def may_mount(folder: Path) -> bool:
    if shutil.which("unshare") is None:
        return False
    command = [*UNSHARE, "sh", "-c", f"mount -t tmpfs -o size=1m tmpfs {folder}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def on_a_small_disk(tiny: Tiny, folder: Path, size: str, fill_first: str = "") -> dict[str, Any]:
    mount, kept = folder / "mount", folder / "kept"
    mount.mkdir()
    kept.mkdir()
    if not may_mount(mount):
        pytest.skip("no file system may be mounted here")
    script = SCRIPT.format(
        size=size,
        mount=mount,
        kept=kept,
        python=sys.executable,
        train=" ".join(f"'{word}'" for word in tiny.flags(mount / "run")),
        fill_first=fill_first,
    )
    subprocess.run([*UNSHARE, "sh", "-c", script], check=True, env=os.environ)
    texts = {name: (kept / name).read_text() for name in ("first.txt", "second.txt", "code", "code2", "strays")}
    return {**texts, "run": RunFolder(kept / "run")}


def test_a_run_that_fills_its_disk_is_gone_on_with_when_there_is_room(tiny: Tiny, finished: RunFolder, tmp_path: Path):
    """One checkpoint fits and the next does not: training goes on, and ends where the adapter finds no room."""
    size = sum(file.stat().st_size for file in finished.checkpoints.glob("step-000006/*"))
    found = on_a_small_disk(tiny, tmp_path, f"{size * 14 // 10 + 120_000}")
    assert "Traceback" not in found["first.txt"] + found["second.txt"]
    assert "NOT SAVED" in found["first.txt"]
    assert "bytes free" in found["first.txt"]
    assert found["strays"] == "", "what could not be written gives its room back"
    assert found["code"].strip() in ("0", "5")
    run = found["run"]
    kept = course(run)
    whole = course(finished)
    assert {**kept, "saves": []} == {**whole, "saves": []}
    if found["code"].strip() == "5":
        assert found["code2"].strip() == "0"
    assert json.dumps(events(run, "save")) != "[]"


def test_a_disk_without_any_room_is_said_before_anything_is_trained(tiny: Tiny, tmp_path: Path):
    mount = tmp_path / "mount"
    mount.mkdir()
    if not may_mount(mount):
        pytest.skip("no file system may be mounted here")
    line = " ".join(f"'{word}'" for word in tiny.flags(mount / "run"))
    fill = f"head -c 100000000 /dev/zero > {mount}/ballast 2>/dev/null"
    script = f"mount -t tmpfs -o size=64k tmpfs {mount}; {fill}; {sys.executable} -m strop {line}"
    done = subprocess.run([*UNSHARE, "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert f"the run folder {mount / 'run'} cannot be made" in done.stderr
    assert "No space left on device; 0 bytes free" in done.stderr
