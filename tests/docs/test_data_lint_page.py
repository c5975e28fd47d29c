"""docs/data-lint.md shows every kind of finding, how bad it is and what fix does, as the code has them."""

import re
from pathlib import Path

from strop.data.lint.kinds import KINDS

TEXT = (Path(__file__).parents[2] / "docs" / "data-lint.md").read_text(encoding="utf-8")


def test_the_kinds_are_those_of_the_code() -> None:
    table = TEXT.split("<!-- kinds -->\n")[1].split("<!-- /kinds -->")[0]
    cells = [re.split(r"(?<!\\) \| ", row.strip("| \n")) for row in table.splitlines()[2:]]
    shown = {cell[0].strip("`"): (cell[1], cell[3].replace("`\\n`", "\\n")) for cell in cells}
    assert shown == {kind.name: (kind.severity, kind.fix or "left") for kind in KINDS.values()}
    assert [cell[0].strip("`") for cell in cells] == list(KINDS)
