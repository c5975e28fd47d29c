"""docs/architecture.md names every file, every event with its fields, and every exit code, as the code has them."""

import ast
import re
from dataclasses import fields
from pathlib import Path

from strop import errors
from strop.cli.main import BROKEN_PIPE, INTERRUPTED
from strop.data.records import Message
from strop.evaluate.ask import AnswerText, Question
from strop.run.folder import RunFolder

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "strop"
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def between(mark: str) -> str:
    return TEXT.split(f"<!-- {mark} -->\n")[1].split(f"<!-- /{mark} -->")[0]


def events_of_the_code() -> dict[str, list[str]]:
    """Kinds and fields of all calls of a journal's ``event``, read off the source."""
    found: dict[str, list[str]] = {}
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "event":
                kind = node.args[0]
                assert isinstance(kind, ast.Constant), f"{file}:{node.lineno}: a kind that cannot be read"
                names = [keyword.arg or "**" for keyword in node.keywords]
                assert found.setdefault(str(kind.value), names) == names, f"{file}:{node.lineno}: other fields"
    return found


def test_every_file_has_its_line() -> None:
    rooms = TEXT.split("## Rooms and files")[1].split("\n## ")[0]
    named = re.findall(r"`([\w/.-]+\.(?:py|jinja))`", rooms)
    files = [path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*") if path.suffix in (".py", ".jinja")]
    there = [file for file in files if not file.endswith("/__init__.py")]
    assert sorted(named) == sorted(there), "docs/architecture.md: a line for every file"


def test_the_events_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", between("events"), re.MULTILINE)
    assert {kind: re.findall(r"`(\w+)`", names) for kind, names in rows} == events_of_the_code()


def test_the_samples_are_those_of_the_code() -> None:
    line = re.search(r"samples\.jsonl   (.*)", TEXT)
    assert line
    question = Question((Message("user", "q"),), "a")
    assert line[1].split(", ") == list(AnswerText("a", True, 1).as_sample(0, question))


def test_the_run_folder_is_that_of_the_code() -> None:
    block = TEXT.split("## Run folder")[1].split("```")[1]
    run = RunFolder(Path("RUN"))
    paths = [getattr(run, name) for name in vars(RunFolder) if isinstance(vars(RunFolder)[name], property)]
    assert len(paths) + len(fields(RunFolder)) > 6
    for path in paths:
        assert re.search(rf"^(?:RUN/|    ) {re.escape(path.name)}/? ", block, re.MULTILINE), path.name


def test_the_exit_codes_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (\d+) \| .* \| ?(?:`(\w+)` )?\|$", between("exit codes"), re.MULTILINE)
    known = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, errors.StropError)]
    classes = [item for item in known if "exit_code" in vars(item)]
    expected = {str(item.exit_code): item.__name__ for item in classes}
    assert dict(rows) == {"0": "", **expected, str(INTERRUPTED): "", str(BROKEN_PIPE): ""}
