"""Nobody is asked over the network where model and data are here, and offline means offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from strop.errors import ModelError
from strop.model.starter import starter_folder
from tiny_run import RECIPE, Tiny

HOOKED = """
import sys
seen = []
def hook(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
        seen.append(event + repr(args[1:])[:100])
sys.addaudithook(hook)
import json
import strop
for name in strop.__all__:
    getattr(strop, name)
print("SEEN import", 0, seen)
from strop.cli.main import main
for line in json.loads(sys.argv[1]):
    code = main(line)
    print("SEEN", line[0], code, seen)
"""


def seen(folder: Path, lines: list[list[str]]) -> list[str]:
    """What commands, one after the other, asked of the network, each behind its exit code."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", HOOKED, json.dumps(lines)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    return [line for line in done.stdout.splitlines() if line.startswith("SEEN")] or [done.stderr]


def test_neither_the_import_nor_a_command_asks_anybody_where_all_is_here(tiny: Tiny, tmp_path: Path):
    values = {**RECIPE, "train.steps": 2, "plan.threads": 1}
    flags = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    model, data = str(tiny.model), str(tiny.data)
    lines = [
        ("train", model, data, "--run", "run", *flags),
        ("plan", model, data),
        ("data", data, "--model", model, "--html", "data.html"),
        ("chat", "run", "--ask", "What is 3 + 8?", "--max-tokens", "2"),
        ("report", "run"),
        ("runs", "."),
    ]
    asked = seen(tmp_path, [list(line) for line in lines])
    assert asked == ["SEEN import 0 []", *(f"SEEN {line[0]} 0 []" for line in lines)]


def test_the_hook_sees_what_is_asked():
    script = (
        HOOKED.split("import json", maxsplit=1)[0]
        + "import socket\ntry:\n    socket.create_connection(('127.0.0.1', 9), 1)\n"
    )
    script += "except OSError:\n    print(seen)\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "socket.connect" in done.stdout
    assert "socket.getaddrinfo" in done.stdout


def test_offline_the_starter_model_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STROP_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("STROP_STARTER_WHEEL", raising=False)
    monkeypatch.setattr("strop.model.starter._download", lambda *_: pytest.fail("it was asked for"))
    with pytest.raises(ModelError, match="has not been fetched yet"):
        starter_folder()
