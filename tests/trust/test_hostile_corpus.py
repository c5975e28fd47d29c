"""Every hostile file is refused with words and a cure, in bounded memory, and nothing that it asks for is done."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hostile import CASES

from tiny_run import Tiny

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="each case is a fork")

MOST_MEGABYTES = 200
MOST_SECONDS = 2.0
SOURCE = Path(__file__).parents[2] / "src" / "strop"


@pytest.fixture(scope="module")
def opened(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What became of each case, and of the canary, which is added to each."""
    folder = tmp_path_factory.mktemp("hostile")
    canary = folder / "canary"
    environment = {**os.environ, "STROP_CANARY": str(canary), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("refuse.py")), str(tiny.model), str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert not canary.exists()
    assert not list(folder.rglob("canary"))
    slowest, most = (max(result[what] for result in results) for what in ("seconds", "megabytes"))
    print(f"{len(results)} files, slowest {slowest} s, most {most} MB")
    return results


def test_there_are_many_and_each_is_one_of_its_kind():
    assert len({case.name for case in CASES}) == len(CASES) >= 150


def test_all_are_refused_and_nothing_is_run_or_asked(opened: list[dict[str, Any]]):
    assert [result["name"] for result in opened] == [case.name for case in CASES]
    assert [result for result in opened if result["ended"] != "refused"] == []
    assert [result for result in opened if result["forbidden"]] == []
    assert [result for result in opened if "do: " not in result["said"] and len(result["said"]) < 300] == []


def test_all_cost_little_memory(opened: list[dict[str, Any]]):
    assert [result for result in opened if result["megabytes"] > MOST_MEGABYTES] == []


@pytest.mark.slow
def test_all_are_quick(opened: list[dict[str, Any]]):
    """Seconds of processor time, on a machine of our days."""
    assert [result for result in opened if result["seconds"] > MOST_SECONDS] == []


def test_the_hooks_that_watch_do_see(tmp_path: Path):
    """The canary and the audit hook would tell: a pickle that is opened makes one and is noted by the other."""
    script = f"""
import os, pickle, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
os.environ["STROP_CANARY"] = {str(tmp_path / "canary")!r}
from hostile import Touch
from refuse import FORBIDDEN
seen = []
sys.addaudithook(lambda event, args: seen.append(event) if event.startswith(FORBIDDEN) else None)
pickle.loads(pickle.dumps(Touch()))
print(sorted(set(seen)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "['os.system', 'pickle.find_class']", done.stderr
    assert (tmp_path / "canary").exists()


# ── no such call exists ──────────────────────────────────────────────────────────────────────────────────────────────

FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "marshal.loads"),
    *(
        "torch.load",
        "torch.save",
        "numpy.load",
        "np.load",
        "shelve.open",
        "yaml.load",
        "yaml.unsafe_load",
        "joblib.load",
    ),
    *("importlib.import_module", "import_module", "runpy.run_path", "runpy.run_module", "torch.hub.load"),
    *("AutoModel.from_pretrained", "AutoTokenizer.from_pretrained", "webbrowser.open"),
}
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "runpy", "transformers", "peft"}
# Who may start a process, and who may import a module whose name is no literal.
PROCESSES = ("model/starter.py", "evaluate/equivalence.py", "data/workers.py")
IMPORTS_BY_NAME = ("__init__.py", "cli/app.py", "kernels/blas.py", "model/families/__init__.py")
# Who may import transformers: a check of a family against its reference, on a folder that its user names; and the
# general path, which takes its code for models that no table describes, and never a repository's.
TRANSFORMERS = {"evaluate/family_check.py", *(f"model/general/{name}.py" for name in ("library", "skeleton", "files"))}
# Between processes that this program starts itself, over their own pipes: no file is ever unpickled.
PIPES = "data/workers.py"


def calls(tree: ast.AST) -> list[tuple[ast.Call, str]]:
    return [(node, ast.unparse(node.func)) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_no_call_in_the_source_makes_code_of_data():
    found, no = [], ast.Constant(False)
    for file in sorted(SOURCE.rglob("*.py")):
        name = file.relative_to(SOURCE).as_posix()
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node, called in calls(tree):
            by_name = called.endswith("import_module")
            if name == PIPES and called in ("pickle.loads",):
                continue
            if called in FORBIDDEN_CALLS and not (by_name and name in IMPORTS_BY_NAME):
                found.append(f"{name}:{node.lineno}: {called}")
            if called.startswith("subprocess.") and name not in PROCESSES:
                found.append(f"{name}:{node.lineno}: {called}")
            named = {keyword.arg: keyword.value for keyword in node.keywords}
            if not all(ast.unparse(named.get(key, no)) == "False" for key in ("trust_remote_code", "allow_pickle")):
                found.append(f"{name}:{node.lineno}: {called} with trust")
            if isinstance(shell := named.get("shell"), ast.Constant) and shell.value:
                found.append(f"{name}:{node.lineno}: {called} through a shell")
            if called.endswith("YAML") and not (
                isinstance(kind := named.get("typ"), ast.Constant) and kind.value == "safe"
            ):
                found.append(f"{name}:{node.lineno}: YAML that is not safe")
        for node in ast.walk(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [
                f"{name}:{node.lineno}: imports {module}"
                for module in modules
                if module.split(".")[0] in FORBIDDEN_MODULES
                and (name, module) != (PIPES, "pickle")
                and not (name in TRANSFORMERS and module.split(".")[0] == "transformers")
            ]
    assert found == []


def test_a_model_folder_with_code_beside_it_runs_none_of_it(tiny: Tiny, tmp_path: Path):
    """What honest folders hold as well, auto_map and the files that it names, is passed over unread."""
    script = f"""
import json, shutil, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
folder = Path({str(tmp_path / "model")!r})
shutil.copytree({str(tiny.model)!r}, folder)
config = json.loads((folder / "config.json").read_text())
config["auto_map"] = {{"AutoConfig": "configuration_evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"}}
(folder / "config.json").write_text(json.dumps(config))
for name in ("configuration_evil.py", "evil.py", "sitecustomize.py", "conftest.py"):
    (folder / name).write_text("import os; os.system('touch {tmp_path / "canary"}')")
import hostile
hostile.USES["model"](folder)
print(sorted(name for name in sys.modules if "evil" in name or name == "transformers"))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.strip() == "[]", done.stderr
    assert not (tmp_path / "canary").exists()
