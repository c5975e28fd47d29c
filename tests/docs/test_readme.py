"""What the documents say can be done: commands parse, targets exist, links lead somewhere, both READMEs agree."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from strop.cli.app import VERBS, build_app
from strop.cli.overrides import split_overrides, split_plan
from strop.plan.plan import Plan
from strop.recipe import resolve

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh.md"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")
_FILE = re.compile(r"(?:tests|src|benchmarks|docs)/[\w./-]+\.\w+")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def shell_lines(page: Path) -> list[str]:
    """The lines of a page's shell blocks, without comments."""
    blocks = [text for language, text in _FENCE.findall(read(page)) if language == "sh"]
    lines = [shlex.join(shlex.split(line, comments=True)) for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def spans(page: Path) -> list[str]:
    """What a page sets as code within its text."""
    return _SPAN.findall(_FENCE.sub("", read(page)))


def check_command(line: str) -> None:
    """Parse a command line of strop, the fields of the recipe and the levers of the plan included; run nothing."""
    rest, overrides = split_overrides(shlex.split(line)[1:])
    _, _, ignored = build_app(rest).parse_args(rest, print_error=False, exit_on_error=False)
    if overrides:
        assert "overrides" in ignored, f"{line}: takes no recipe"
        recipe, plan = split_plan(overrides)
        assert plan.keys() <= {field.name for field in fields(Plan)}, line
        assert resolve(model="m", data="d", overrides=recipe)


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def headings(page: Path) -> list[str]:
    return re.findall(r"^#{1,6} (.+)$", _FENCE.sub("", read(page)), re.MULTILINE)


@every_page
def test_every_command_line_parses(page: Path) -> None:
    for line in shell_lines(page):
        if line.startswith("strop "):
            check_command(line)
    for span in spans(page):
        if span.startswith("strop "):
            verb, _, more = span.removeprefix("strop ").partition(" ")
            assert verb in VERBS or verb.startswith("--"), span
            if more:
                check_command(span)


@every_page
def test_every_target_is_in_the_makefile(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", read(ROOT / "Makefile"), re.MULTILINE)
    assert "test" in targets
    for code in (*shell_lines(page), *spans(page)):
        for named in re.findall(r"\bmake ([a-z][\w-]*)", code):
            assert named in targets, code


@every_page
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in _LINK.findall(read(page)):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if anchor:
            assert anchor in [slug(heading) for heading in headings(file)], target


@every_page
def test_every_file_that_is_named_exists(page: Path) -> None:
    for code in spans(page):
        for name in _FILE.findall(code):
            assert (ROOT / name).is_file(), name


@every_page
def test_tables_are_even(page: Path) -> None:
    for row, following in zip(read(page).splitlines(), read(page).splitlines()[1:], strict=False):
        if row.lstrip().startswith("|") and following.lstrip().startswith("|"):
            assert len(cells(row)) == len(cells(following)), following


def cells(row: str) -> list[str]:
    """A table row's cells; ``\\|`` does not divide."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def measured(page: Path) -> list[list[str]]:
    """The rows of a README's table of what was measured, without its head."""
    block = read(page).split("<!-- measured -->\n")[1].split("<!-- /measured -->")[0]
    return [cells(row) for row in block.splitlines()[2:]]


def test_the_readmes_lead_to_each_other() -> None:
    assert "README.zh.md" in _LINK.findall(read(ENGLISH))
    assert "README.md" in _LINK.findall(read(CHINESE))


def test_the_readmes_say_the_same() -> None:
    assert len(headings(ENGLISH)) == len(headings(CHINESE))
    assert shell_lines(ENGLISH) == shell_lines(CHINESE)
    assert len(shell_lines(ENGLISH)) >= 8
    assert [s for s in spans(ENGLISH) if s.startswith("strop ")] == [
        s for s in spans(CHINESE) if s.startswith("strop ")
    ]
    links = [
        [link for link in _LINK.findall(read(page)) if not link.startswith("README")] for page in (ENGLISH, CHINESE)
    ]
    assert links[0] == links[1]


def test_the_figures_are_the_same_and_each_has_a_source() -> None:
    rows, translated = measured(ENGLISH), measured(CHINESE)
    assert len(rows) == len(translated) > 0
    for row, other in zip(rows, translated, strict=True):
        assert row[1], f"no figure: {row[0]}"
        assert re.findall(r"\d[\d.,]*", row[1]) == re.findall(r"\d[\d.,]*", other[1]), row[0]
        assert row[2] == other[2]
        assert _SPAN.search(row[2]), f"no script or test: {row[0]}"


def test_decisions_are_numbered_without_gaps() -> None:
    names = sorted(path.name for path in (ROOT / "docs" / "decisions").iterdir())
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    for name in names:
        assert re.fullmatch(r"\d{4}-[a-z0-9-]+\.md", name)
        titles = headings(ROOT / "docs" / "decisions" / name)
        assert titles[0].startswith(name[:4])
        assert titles[1:] == ["Context", "Decision", "Consequences"]
