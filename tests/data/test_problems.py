"""The demo's problems: true, different, the same on every machine, and written as MATH has them."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from strop.data.problems import MOST_PROBLEMS, problem, write_problems
from strop.errors import UsageError

_STEP = re.compile(r"(-?\d+) ([-+×/]) (\d+) = (-?\d+)")
_OPERATIONS: dict[str, Callable[[int, int], object]] = {
    "+": operator.add,
    "-": operator.sub,
    "×": operator.mul,
    "/": Fraction,
}


def meaning(question: str) -> tuple[str, ...]:
    """What a question asks, whatever its wording and, where it does not matter, the order of its numbers."""
    numbers = re.findall(r"\d+", question)
    if re.search(r"\dx", question):
        return ("equation", *numbers)
    if "-" in question or "difference" in question:
        return ("difference", *numbers)
    if "×" in question or "roduct" in question or "Multiply" in question:
        return ("product", *sorted(numbers))
    return ("sum", *sorted(numbers))


def truth(question: str) -> int:
    kind = meaning(question)[0]
    numbers = [int(text) for text in re.findall(r"\d+", question)]
    if kind == "equation":
        m, c, n = numbers
        return next(x for x in range(1000) if m * x + c == n)
    a, b = numbers
    return {"sum": a + b, "difference": a - b, "product": a * b}[kind]


def test_every_step_of_every_problem_is_true_and_leads_to_the_answer() -> None:
    for index in range(MOST_PROBLEMS):
        made = problem(0, index)
        steps, _, answer = made.solution.partition(" The answer is ")
        found = _STEP.findall(steps)
        # Each "=" but the ones of an equation's own (m x + c = n, m x = …, x = …) belongs to a step that is checked.
        assert len(found) == (2 if made.subject == "algebra" else 3), made.solution
        assert steps.count(" = ") == len(found) + (3 if made.subject == "algebra" else 0), made.solution
        for a, operation, b, c in found:
            assert _OPERATIONS[operation](int(a), int(b)) == int(c), made.solution
        assert answer == f"$\\boxed{{{truth(made.problem)}}}$."
        assert int(found[-1][3]) == truth(made.problem)


def test_an_equations_lines_hold_for_its_solution() -> None:
    for index in range(3, MOST_PROBLEMS, 4):
        m, c, n, m_again, left, x = re.fullmatch(  # type: ignore[union-attr]
            r"(\d+)x \+ (\d+) = (\d+): (\d+)x = .+ = (\d+), x = .+ = (\d+)\. The answer .+", problem(0, index).solution
        ).groups()
        assert m == m_again
        assert int(m) * int(x) == int(left) == int(n) - int(c)


def test_no_problem_occurs_twice_in_either_split(tmp_path: Path) -> None:
    folder = write_problems(tmp_path / "MATH", learn=MOST_PROBLEMS - 300, held_out=300)
    asked = [
        meaning(json.loads(path.read_text(encoding="utf-8"))["problem"]) for path in sorted(folder.rglob("*.json"))
    ]
    assert len(asked) == MOST_PROBLEMS
    assert len(set(asked)) == MOST_PROBLEMS


def test_the_folder_is_in_the_shape_of_math(tmp_path: Path) -> None:
    folder = write_problems(tmp_path / "MATH")
    for split, count in (("train", 640), ("test", 100)):
        paths = sorted((folder / split).glob("*/*.json"))
        assert len(paths) == count
        assert {path.parent.name for path in paths} == {"arithmetic", "algebra"}
        for path in paths:
            fields = json.loads(path.read_bytes())
            assert list(fields) == ["problem", "level", "type", "solution"]
            assert all(isinstance(value, str) and value for value in fields.values())
            assert fields["type"].lower() == path.parent.name
    kinds = [meaning(problem(0, index).problem)[0] for index in range(100)]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == dict.fromkeys(
        ("sum", "difference", "product", "equation"), 25
    )


def test_held_out_problems_do_not_depend_on_how_many_are_learned(tmp_path: Path) -> None:
    few = write_problems(tmp_path / "few", learn=8, held_out=20)
    many = write_problems(tmp_path / "many", learn=200, held_out=20)
    paths = sorted(path.relative_to(few) for path in (few / "test").rglob("*.json"))
    assert len(paths) == 20
    assert all((few / path).read_bytes() == (many / path).read_bytes() for path in paths)


def test_problems_are_the_same_for_ever() -> None:
    # These lines are the promise: the demo's numbers in the docs are about exactly these problems.
    assert [problem(0, index).problem for index in (0, 1, 2, 3)] == [
        "What is 76 + 55?",
        "What is 85 - 48?",
        "Multiply 88 by 8.",
        "Find x if 2x + 4 = 12.",
    ]
    assert problem(7, 5) == problem(7, 5)
    assert [problem(0, index) for index in range(40)] != [problem(1, index) for index in range(40)]


def test_wordings_vary() -> None:
    for kind in range(4):
        wordings = {re.sub(r"\d+", "0", problem(0, index).problem) for index in range(kind, 400, 4)}
        assert 2 <= len(wordings) <= 4


def test_solutions_are_short() -> None:
    assert max(len(problem(0, index).solution) for index in range(MOST_PROBLEMS)) <= 100


def test_writing_again_changes_nothing_and_other_data_is_refused(tmp_path: Path) -> None:
    folder = write_problems(tmp_path / "MATH", learn=12, held_out=4)
    before = {path: path.read_bytes() for path in folder.rglob("*.json")}
    write_problems(folder, learn=12, held_out=4)
    assert {path: path.read_bytes() for path in folder.rglob("*.json")} == before
    for other in ({"seed": 1}, {"learn": 8}):
        with pytest.raises(UsageError, match="already holds other data"):
            write_problems(folder, **{"learn": 12, "held_out": 4, **other})
    assert {path: path.read_bytes() for path in folder.rglob("*.json")} == before


@pytest.mark.parametrize(("learn", "held_out"), [(-1, 4), (4, -1), (MOST_PROBLEMS, 1)])
def test_impossible_numbers_are_refused(tmp_path: Path, learn: int, held_out: int) -> None:
    with pytest.raises(UsageError, match="cannot be made"):
        write_problems(tmp_path / "MATH", learn=learn, held_out=held_out)
    with pytest.raises(UsageError, match="no such"):
        problem(0, MOST_PROBLEMS)
    assert not (tmp_path / "MATH").exists()
