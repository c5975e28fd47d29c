"""docs/recipe.md says what the schema says. ``python tests/docs/test_recipe_page.py`` writes its table again."""

import re
from pathlib import Path

import pytest

from strop.errors import UsageError
from strop.plan.plan import LEVERS, read_levers
from strop.recipe import FIELDS, RecipeField, from_yaml

PAGE = Path(__file__).parents[2] / "docs" / "recipe.md"
BEGIN, END = "<!-- fields -->\n", "<!-- /fields -->"


def table() -> str:
    """The fields of the recipe as a table in Markdown, in the schema's order."""
    lines = ["| field | takes | default | meaning |", "|---|---|---|---|"]
    for field in FIELDS:
        cells = (f"`{field.path}`", field.allowed, default_text(field), field.description)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def default_text(field: RecipeField) -> str:
    """A field's default as a person writes it."""
    if field.required:
        return "– (required)"
    if field.default is None or field.default == ():
        return "none"
    return f"`{field.default:g}`" if isinstance(field.default, float) else f"`{field.default}`"


def with_table(page: str) -> str:
    """The page with its table made anew."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


def lever_of(lever: str, value: str) -> object:
    """A lever set by hand, as the command line would."""
    return read_levers({lever: value})[lever]


def test_the_table_is_the_schemas() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "run: python tests/docs/test_recipe_page.py"


def test_the_yaml_on_the_page_is_a_recipe() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        assert from_yaml(block).recipe.data.train


def test_the_levers_are_the_plans() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| ", PAGE.read_text(encoding="utf-8").split("| lever |")[1], re.MULTILINE)
    assert [lever for lever, _ in rows] == list(LEVERS)
    for lever, values in rows:
        words = [word for word in re.findall(r"`([\w:]+)`", values) if not word.startswith("cuda")]
        bounds = re.fullmatch(r"(\d+) (?:or more|to (\d+))", values)
        low, high = bounds.groups() if bounds else (None, None)
        assert words or low, values
        for value in (*words, low, high):
            assert value is None or str(lever_of(lever, value)) == value
        for value in ("nothing", low and str(int(low) - 1), high and str(int(high) + 1)):
            if value is None:
                continue
            with pytest.raises(UsageError):
                lever_of(lever, value)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
