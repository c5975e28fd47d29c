"""The demo's problems: a folder in the shape of the MATH data set that a 135M model can learn in minutes on a CPU.

    FOLDER/train/arithmetic/1.json   {"problem": "What is 47 + 38?", "level": "Level 1", "type": "Arithmetic",
          /train/algebra/1.json       "solution": "47 + 38: tens 40 + 30 = 70, ones 7 + 8 = 15, 70 + 15 = 85.
          /test/…                                  The answer is $\\boxed{85}$."}

Four kinds, in turn: sums and differences of two two-digit numbers, a two-digit number times a one-digit one, and
m x + c = n. Each solution takes the same small steps every time: tens, then ones, then both together. A step is a fact
small enough to be seen several times in a few hundred solutions, which is what lets so small a model find the rule
rather than remember the answers.

A problem is a pure function of (seed, index). Each kind has a finite list of all its problems, which the seed puts
into an order by hashing (so the order is the same on every machine and with every Python); index i takes entry i // 4
of kind i % 4. No problem can therefore occur twice. The first indices are held out and the next ones are learned, so
the held-out problems stay the same when more or fewer are learned.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from strop.errors import UsageError

Numbers = tuple[int, int, int]

_ANSWER = " The answer is $\\boxed{{{}}}$."


@dataclass(frozen=True)
class Problem:
    """One problem with its worked solution.

    Attributes:
        subject: the folder it is in, "arithmetic" or "algebra".
        problem: the question.
        level: "Level 1" to "Level 4", as the MATH data set writes it.
        solution: the worked steps, ending in ``$\\boxed{…}$.``
    """

    subject: str
    problem: str
    level: str
    solution: str

    def as_json(self) -> str:
        """The file's content: the MATH data set's four fields."""
        fields = {
            "problem": self.problem,
            "level": self.level,
            "type": self.subject.capitalize(),
            "solution": self.solution,
        }
        return json.dumps(fields, ensure_ascii=False, indent=2) + "\n"


@dataclass(frozen=True)
class _Kind:
    """A kind of problem: all its numbers, how it is asked, and how it is solved."""

    name: str
    subject: str
    level: str
    every: Callable[[], list[Numbers]]
    questions: tuple[str, ...]
    solve: Callable[[int, int, int], str]


def _every_sum() -> list[Numbers]:
    # 47 + 38 and 38 + 47 are one problem; which of the two is asked is for `_numbers` to say.
    return [(a, b, 0) for a in range(10, 100) for b in range(10, a + 1)]


def _every_difference() -> list[Numbers]:
    return [(a, b, 0) for a in range(11, 100) for b in range(10, a)]


def _every_product() -> list[Numbers]:
    return [(a, b, 0) for a in range(10, 100) for b in range(2, 10)]


def _every_equation() -> list[Numbers]:
    return [(m, c, m * x + c) for m in range(2, 10) for c in range(1, 10) for x in range(2, 13)]


def _solve_sum(a: int, b: int, _: int) -> str:
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    return (
        f"{a} + {b}: tens {a // 10 * 10} + {b // 10 * 10} = {tens}, "
        f"ones {a % 10} + {b % 10} = {ones}, {tens} + {ones} = {a + b}." + _ANSWER.format(a + b)
    )


def _solve_difference(a: int, b: int, _: int) -> str:
    tens, ones = a // 10 * 10 - b // 10 * 10, a % 10 - b % 10
    # The ones may be negative: 2 - 7 = -5 is one fact of a hundred, where borrowing would be a procedure.
    together = f"{tens} - {-ones}" if ones < 0 else f"{tens} + {ones}"
    return (
        f"{a} - {b}: tens {a // 10 * 10} - {b // 10 * 10} = {tens}, "
        f"ones {a % 10} - {b % 10} = {ones}, {together} = {a - b}." + _ANSWER.format(a - b)
    )


def _solve_product(a: int, b: int, _: int) -> str:
    tens, ones = a // 10 * 10 * b, a % 10 * b
    return (
        f"{a} × {b}: tens {a // 10 * 10} × {b} = {tens}, "
        f"ones {a % 10} × {b} = {ones}, {tens} + {ones} = {a * b}." + _ANSWER.format(a * b)
    )


def _solve_equation(m: int, c: int, n: int) -> str:
    x = (n - c) // m
    return f"{m}x + {c} = {n}: {m}x = {n} - {c} = {n - c}, x = {n - c} / {m} = {x}." + _ANSWER.format(x)


_KINDS = (
    _Kind(
        "sum",
        "arithmetic",
        "Level 1",
        _every_sum,
        ("What is {0} + {1}?", "Compute {0} + {1}.", "Add {0} and {1}.", "Find the sum of {0} and {1}."),
        _solve_sum,
    ),
    _Kind(
        "difference",
        "arithmetic",
        "Level 2",
        _every_difference,
        ("What is {0} - {1}?", "Compute {0} - {1}.", "Find the difference between {0} and {1}."),
        _solve_difference,
    ),
    _Kind(
        "product",
        "arithmetic",
        "Level 3",
        _every_product,
        ("What is {0} × {1}?", "Compute {0} × {1}.", "Multiply {0} by {1}.", "Find the product of {0} and {1}."),
        _solve_product,
    ),
    _Kind(
        "equation",
        "algebra",
        "Level 4",
        _every_equation,
        ("Solve {0}x + {1} = {2} for x.", "Find x if {0}x + {1} = {2}.", "If {0}x + {1} = {2}, what is x?"),
        _solve_equation,
    ),
)

MOST_PROBLEMS = len(_KINDS) * min(len(kind.every()) for kind in _KINDS)
"""How many different problems a seed has."""


def problem(seed: int, index: int) -> Problem:
    """Returns one problem; the same for ever for the same seed and index, and another one for every other index.

    Args:
        seed: which order the problems come in.
        index: from 0 up to, not including, `MOST_PROBLEMS`.

    Raises:
        UsageError: the index is out of range.
    """
    if not 0 <= index < MOST_PROBLEMS:
        raise UsageError(
            "there is no such demo problem",
            expected=f"an index from 0 to {MOST_PROBLEMS - 1}",
            found=str(index),
            do=f"ask for at most {MOST_PROBLEMS} problems, learned and held out together",
        )
    place, which = divmod(index, len(_KINDS))
    kind = _KINDS[which]
    numbers = _in_order(seed, which)[place]
    choice = _hash(seed, kind.name, "wording", numbers)
    if kind.name == "sum" and choice % 2:
        numbers = (numbers[1], numbers[0], 0)
    question = kind.questions[choice // 2 % len(kind.questions)]
    return Problem(kind.subject, question.format(*numbers), kind.level, kind.solve(*numbers))


@lru_cache(maxsize=16)
def _in_order(seed: int, which: int) -> tuple[Numbers, ...]:
    """All numbers of a kind in the seed's order."""
    kind = _KINDS[which]
    return tuple(sorted(kind.every(), key=lambda numbers: (_hash(seed, kind.name, "order", numbers), numbers)))


def _hash(seed: int, kind: str, purpose: str, numbers: Numbers) -> int:
    text = f"{seed}:{kind}:{purpose}:{numbers[0]},{numbers[1]},{numbers[2]}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def write_problems(folder: Path, learn: int = 640, held_out: int = 100, seed: int = 0) -> Path:
    """Writes problems as a folder in the shape of the MATH data set, and returns the folder.

    Writing the same problems again changes nothing. Other files under ``train`` or ``test`` are never overwritten
    or mixed with.

    Args:
        folder: where ``train/SUBJECT/N.json`` and ``test/SUBJECT/N.json`` go; made if it does not exist.
        learn: problems to learn from, under ``train``.
        held_out: problems to ask later, under ``test``; the same ones whatever `learn` is.
        seed: which problems, and in which order.

    Raises:
        UsageError: more problems are asked for than there are, or the folder holds other files.
    """
    if learn < 0 or held_out < 0 or learn + held_out > MOST_PROBLEMS:
        raise UsageError(
            "so many demo problems cannot be made",
            expected=f"at least 0 of each, and at most {MOST_PROBLEMS} together",
            found=f"{learn} to learn and {held_out} held out",
            do="ask for fewer",
        )
    files: dict[Path, str] = {}
    for split, indices in (("test", range(held_out)), ("train", range(held_out, held_out + learn))):
        counts: dict[str, int] = {}
        for index in indices:
            made = problem(seed, index)
            counts[made.subject] = counts.get(made.subject, 0) + 1
            files[folder / split / made.subject / f"{counts[made.subject]}.json"] = made.as_json()
    _refuse_other_files(folder, files)
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode())
    return folder


def _refuse_other_files(folder: Path, files: dict[Path, str]) -> None:
    """Raises UsageError if the folder has a file that writing `files` would overwrite or stand beside."""
    for split in ("train", "test"):
        for path in sorted((folder / split).rglob("*")):
            if path.is_file() and (path not in files or path.read_bytes() != files[path].encode()):
                raise UsageError(
                    f"{folder} already holds other data",
                    expected="a new folder, or one with exactly these problems",
                    found=str(path),
                    do="name another folder, or remove this one first",
                )
