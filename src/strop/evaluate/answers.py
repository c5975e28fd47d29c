"""Is a maths answer right?

    "… 70 + 15 = 85. The answer is $\\boxed{85}$."  ──result──▶  "85"  ──is_right──▶  equal to the reference's "85"?

An answer gives its result in one of three ways, looked for in this order:

    boxed    the last \\boxed{…} or \\fbox{…}, braces balanced      (the MATH data set's way)
    hashes   what follows the last ####, to the end of its line     (GSM8K's way)
    number   the last number in the text

Two readings are counted. The *strict* one asks for the result in the same way as the reference gives its own: a model
that was tuned on boxed answers has learned the task only if it boxes them. The *loose* one takes the result in
whatever way it is there, so it shows what a base model knows but does not say in the right form.

Results are compared as text, then as exact numbers, and only then by the library `math-verify` (sympy), which runs in
a process of its own under a limit of time and memory (`strop.evaluate.equivalence`): what a model writes is not ours
to trust, and "\\boxed{9^{9^{9}}}" must cost nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from strop.evaluate.equivalence import are_equivalent

Way = Literal["boxed", "hashes", "number"]
WAYS: tuple[Way, ...] = ("boxed", "hashes", "number")

# No result in the MATH data set is near this long; a longer one is compared as text alone.
_LONGEST_RESULT = 500

_BOX_TOKEN = re.compile(r"\\(?:boxed|fbox)\s*\{|\\(?:boxed|fbox)\s+(?:\d+|[A-Za-z])|\\.|[{}]", re.DOTALL)
_HASHES = re.compile(r"####[ \t]*([^\n]*)")
# A minus sign after a digit, a letter or a closing bracket is a subtraction, not part of the number. Every part but
# the first is optional, so that no text makes the expression go back over what it has read.
_NUMBER = re.compile(r"(?:(?<![\w)\]}])[-−+])?(?:\d+(?:,\d+)*(?:\.\d+)?(?:/\d+)?|(?<!\d)\.\d+)")
_THOUSANDS = re.compile(r"[-−+]?\d{1,3}(?:,\d{3})+(?!\d|,)")
_PLAIN = re.compile(r"([-−+]?)\s*\$?\s*(\d{1,3}(?:,\d{3})+|\d+|(?=\.\d))(\.\d+)?(?:/(\d+))?\.?")
_THIN_SPACE = re.compile(r"(?<=\d)(?:\\[,!;: ]|\{,\})+(?=\d{3})")
# Sums that sympy would work out in full, however long they take: powers of powers of numbers, exponents and
# factorials of five digits and more, factorials of factorials.
_COSTLY = re.compile(
    r"""\d[\s)}]*(?:\^|\*\*)[\s{(+-]*\d+[\s)}]*(?:\^|\*\*)[\s{(+-]*\d   # 9^9^9, 9^{9^9}, (9^9)^9
      | (?:\^|\*\*)\s*[{(]*\s*[-−+]?\s*\d[\d,.]{4,}                          # 9^{99999}
      | \d{5,}[)}\s]*!
      | !\s*[)}]*\s*!""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Verdict:
    """One answer, judged.

    Attributes:
        right: the result equals the reference's and is given in the same way.
        loose: the result equals the reference's, in whatever way it is given. Never false where `right` is true.
    """

    right: bool
    loose: bool


@dataclass(frozen=True)
class Score:
    """How many answers were right.

    Attributes:
        right: answers right by the strict reading.
        asked: questions asked.
        loose: answers right by the loose reading; never fewer than `right`.
    """

    right: int
    asked: int
    loose: int


def final_answer(text: str) -> str | None:
    """Returns what an answer gives as its result, or None if it gives none.

    Args:
        text: a whole answer, worked steps and all.
    """
    return next((result for way in WAYS if (result := result_given(text, way)) is not None), None)


def result_given(text: str, way: Way) -> str | None:
    """Returns the result that a text gives in one way, or None if it does not give it so.

    Time is linear in the length of the text, whatever it holds.

    Args:
        text: a whole answer.
        way: "boxed", "hashes" or "number".
    """
    if way == "boxed":
        found = _last_box(text)
    elif way == "hashes":
        lines = _HASHES.findall(text)
        found = lines[-1] if lines else None
    else:
        found = _last_number(text)
    return (found.strip() or None) if found is not None else None


def _last_box(text: str) -> str | None:
    """Returns what the last whole box holds; a box that is cut off before its closing brace is not one."""
    open_braces: list[int | None] = []  # where each open brace's content starts, if it is a box's
    last_start, last = -1, None
    for token in _BOX_TOKEN.finditer(text):
        piece = token.group()
        if piece.startswith(("\\boxed", "\\fbox")):
            if piece.endswith("{"):
                open_braces.append(token.end())
            elif token.start() > last_start:  # \boxed 5, as some of MATH's solutions have it
                last_start, last = token.start(), piece.split()[-1]
        elif piece == "{":
            open_braces.append(None)
        elif piece == "}" and open_braces:
            start = open_braces.pop()
            if start is not None and start > last_start:
                last_start, last = start, text[start : token.start()]
    return last


def _last_number(text: str) -> str | None:
    last = None
    for match in _NUMBER.finditer(text):
        last = match.group()
    if last is not None and "," in last and not _THOUSANDS.match(last):
        return last.rpartition(",")[2]  # a list, as in 3,5,7
    return last


def is_right(answer: str, reference: str) -> bool:
    """Tells whether two results mean the same: 1/2 and 0.5, 1,000 and 1000, x = 5 and 5, 2x + 2 and 2(x + 1).

    Units, dollar and percent signs are tolerated where `math-verify` tolerates them.

    Args:
        answer: the result of an answer, as `final_answer` returns it.
        reference: the result of the reference, likewise.

    Raises:
        StropError: the process that compares could not be started.
    """
    answer, reference = _tidy(answer), _tidy(reference)
    if not answer or not reference:
        return False
    if answer == reference:
        return True
    if max(len(answer), len(reference)) > _LONGEST_RESULT:
        return False
    numbers = _plain_number(answer), _plain_number(reference)
    if numbers[0] is not None and numbers[1] is not None:
        return numbers[0] == numbers[1]
    if _COSTLY.search(answer) or _COSTLY.search(reference):
        return False
    return are_equivalent(answer, reference)


def _tidy(result: str) -> str:
    """Takes off what has no meaning: outer spaces and dollar signs, and thin spaces between thousands."""
    return _THIN_SPACE.sub("", result.strip().strip("$").strip())


def _plain_number(result: str) -> Fraction | None:
    """Returns the exact value of an integer, a decimal or a fraction of integers; None for anything else."""
    match = _PLAIN.fullmatch(result)
    if match is None:
        return None
    sign, whole, decimals, divisor = match.groups()
    value = Fraction(whole.replace(",", "") + (decimals or "") if whole else f"0{decimals}")
    if divisor is not None:
        if int(divisor) == 0:
            return None
        value /= int(divisor)
    return -value if sign in ("-", "−") else value


def judge(answer: str, reference: str) -> Verdict:
    """Judges a whole answer by a whole reference.

    A reference that gives no result in any way can only be met word for word.

    Args:
        answer: what the model wrote.
        reference: what the data has as the answer.

    Raises:
        StropError: the process that compares could not be started.
    """
    way = next((way for way in WAYS if result_given(reference, way) is not None), None)
    if way is None:
        same = answer.strip() == reference.strip()
        return Verdict(right=same, loose=same)
    wanted = result_given(reference, way) or ""
    strict = result_given(answer, way)
    right = strict is not None and is_right(strict, wanted)
    if right:
        return Verdict(right=True, loose=True)
    given = final_answer(answer)
    return Verdict(right=False, loose=given is not None and given != strict and is_right(given, wanted))


def score(pairs: Iterable[tuple[str, str]]) -> Score:
    """Counts the right answers.

    Args:
        pairs: (what the model wrote, what the data has as the answer), one pair a question.

    Raises:
        StropError: the process that compares could not be started.
    """
    verdicts = [judge(answer, reference) for answer, reference in pairs]
    return Score(
        right=sum(verdict.right for verdict in verdicts),
        asked=len(verdicts),
        loose=sum(verdict.loose for verdict in verdicts),
    )
