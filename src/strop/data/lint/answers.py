"""What is wrong with an answer by itself: empty, a single word, cut off, refused.

Where an answer should end nobody can know; hence what counts is what no finished answer has: an opened code block, a
comma at the end, a last word that asks for another one. An end without a full stop counts only where the other
answers of the data set have one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from strop.data.lint.cases import Cases

PROSE = 60
"""Width (a Chinese character counts two) from which an answer is prose that should end somewhere."""

_ENDS = frozenset(".!?。！？…．｡؟।\"'”’」』)）]】}》>*`~_$|#:：;；%％°℃²³✓✔♪→←=")
_MIDDLE = frozenset(",，、([{（【《“「『–—&+×÷")
_ENGLISH_MIDDLE = re.compile(
    r"(?:^|[\s(])(?:the|a|an|of|and|or|to|in|with|is|are|was|were|that|which|for|because|by|from|as|at|be|their|its|his"
    r"|your|our|my|into|than|but|if|when|while|where|who|whose|has|have|had|will|would|can|could|should|may|might|must"
    r"|The|An|And|Or|To|With|Is|Are|That|Which|For|Because|If|When|This)$"
)
_CHINESE_MIDDLE = re.compile(
    r"(?:因为|所以|以及|并且|而且|但是|如果|由于|例如|比如|或者|和|与|或|及|把|被|从|向|由|因|若|且)$"
)
_CJK_END = re.compile("[\u3041-\u30ff\u4e00-\u9fff\uac00-\ud7a3]$")
_ONE_WORD = re.compile(r"[^\s,，。;；]+")
_FENCE = re.compile(r"^[ \t>]*(`{3,}|~{3,})", re.MULTILINE)
_ENVIRONMENT = re.compile(r"\\(begin|end)\{(\w+\*?)\}")
_DOLLARS = re.compile(r"(?<!\\)\$\$")
_FORMULA = re.compile(r"\\[A-Za-z]+|[\^_]\{")

_SORRY = r"\W*(?:(?:I(?:'|’)m|I am) (?:very |so |really )?)?sorry,? (?:but )?"
_CANNOT = r"I(?: (?:can(?:'|’)?t|cannot|am unable to|am not able to|won(?:'|’)t)|(?:'|’)m (?:unable|not able) to) "
_REFUSED = (
    r"(?:assist|help (?:you )?with|provide|fulfil|comply|answer|generate|create|do that|discuss|engage|access|browse)"
)
_REFUSAL = re.compile(
    rf"{_SORRY}as an?\b|(?:{_SORRY}|\W*(?:unfortunately,? )?){_CANNOT}{_REFUSED}"
    r"|\W*(?:很|非常|十分)?(?:抱歉|对不起|遗憾)[，,。！!\s]*(?:但)?(?:作为|我)?.{0,12}(?:无法|不能|没有办法|不可以|没法|不便)"
    r"|\W*我(?:无法|不能)(?:提供|回答|满足|协助|帮助您|完成|生成|访问)",
    re.IGNORECASE,
)
_AS_MODEL = re.compile(
    r"[Aa]s an? (?:AI|artificial intelligence|(?:large )?language model)\b"
    r"|作为(?:一个|一名|一款)?(?:AI|人工智能|大?型?语言模型|智能助手)[^。]{0,12}(?:，|,|我|无法|不能|模型)"
)
_CJK_WIDTH = re.compile("[\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef]")


@dataclass(slots=True)
class AnswerEnds:
    """How the answers of a data set end, until it is known what is usual there.

    Attributes:
        prose: how many answers are long enough to be prose.
        open: those of them that end without a sentence end, (row, answer's last characters).
        one_word: answers of a single word, (row, answer).
        answers: how many there are.
    """

    prose: int = 0
    answers: int = 0
    open: list[tuple[int, str]] = field(default_factory=list)
    one_word: list[tuple[int, str]] = field(default_factory=list)


def check_answer(cases: Cases, ends: AnswerEnds, row: int, answer: str) -> bool:
    """Look at one answer.

    Returns:
        Whether it ends as a finished one does.
    """
    ends.answers += 1
    text = answer.strip()
    if not text:
        cases.add("empty-answers", row, repr(answer))
        return True
    if len(text) <= 32 and (_ONE_WORD.fullmatch(text) or text.isalnum()) and not _has_chinese_sentence(text):
        ends.one_word.append((row, text))
    if found := _REFUSAL.match(text) or _AS_MODEL.search(text, 0, 400):
        cases.add("refusals", row, text, *found.span())
    if (at := unclosed(text)) is not None:
        cases.add("unclosed-markup", row, text, at)
        return False
    if len(text) < PROSE and width(text) < PROSE:
        return True
    ends.prose += 1
    if cut_off(text):
        cases.add("cut-answers", row, text, max(0, len(text) - 60))
        return False
    if not _ended(text):
        ends.open.append((row, text[-96:]))
        return False
    return True


def finish_answers(cases: Cases, ends: AnswerEnds) -> None:
    """Say what is unusual, now that it is known what is usual."""
    if len(ends.open) * 10 <= ends.prose:
        for row, tail in ends.open:
            cases.add("no-sentence-end", row, tail, max(0, len(tail) - 60))
    if len(ends.one_word) * 5 <= ends.answers:
        for row, text in ends.one_word:
            cases.add("one-word-answers", row, text)


def width(text: str) -> int:
    """The width of a text in columns: a Chinese, Japanese or Korean character takes two."""
    return len(text) + (0 if text.isascii() else len(_CJK_WIDTH.findall(text)))


def unclosed(text: str) -> int | None:
    """Where what is never closed begins: a code block, formula, LaTeX environment, \\boxed{; None for nowhere."""
    if "```" in text or "~~~" in text:
        opened: tuple[str, int] | None = None
        for fence in _FENCE.finditer(text):
            if opened is None:
                opened = (fence[1], fence.start())
            elif fence[1].startswith(opened[0]):
                opened = None
        if opened is not None and text.count(opened[0]) % 2:
            return opened[1]
        text = re.sub(r"```.*?```", lambda block: " " * len(block[0]), text, flags=re.DOTALL)
    if (at := text.rfind("\\boxed{")) >= 0 and _brace_open(text[at + 6 :]):
        return at
    if "$" in text and (dollar := _formula_open(text)) is not None:
        return dollar
    if "\\begin{" in text:
        stack: list[tuple[str, int]] = []
        for found in _ENVIRONMENT.finditer(text):
            if found[1] == "begin":
                stack.append((found[2], found.start()))
            elif stack and stack[-1][0] == found[2]:
                stack.pop()
        if stack:
            return stack[0][1]
    return None


def _brace_open(text: str) -> bool:
    depth = 0
    for found in re.finditer(r"(?<!\\)[{}]", text):
        depth += 1 if found[0] == "{" else -1
        if depth == 0:
            return False
    return True


def _formula_open(text: str) -> int | None:
    """Where a formula begins that never ends. It counts only with a LaTeX command in it: $ may be money, and
    $$ a slip of the hand."""
    doubles = [found.start() for found in _DOLLARS.finditer(text)]
    if len(doubles) % 2 and _FORMULA.search(text[doubles[-1] :]):
        return doubles[-1]
    singles = [found.start() for found in re.finditer(r"(?<![\\$])\$(?!\$)", text)]
    if len(singles) % 2:
        tail = text[singles[-1] + 1 :]
        # With money in the text the pairing is unknown, but a last $ right before a command opens a formula.
        if _FORMULA.match(tail.lstrip()[:12]) and "\n\n" not in tail:
            return singles[-1]
    return None


def cut_off(text: str) -> bool:
    """Whether a text, stripped, ends where no sentence can: at a comma, a bracket, a word that asks for another."""
    last = text[-1]
    if last in _MIDDLE or (last == "-" and text[-2:-1].isalpha()):
        return True
    if last.isalpha():
        if _CJK_END.search(last):
            return _CHINESE_MIDDLE.search(text) is not None
        return _ENGLISH_MIDDLE.search(text[-24:]) is not None
    return False


def _ended(text: str) -> bool:
    """Whether a text ends as sentences, lists of numbers, code or emoji do."""
    last = text[-1]
    return last in _ENDS or last.isdigit() or not (last.isalpha() or last in ",;-")


def _has_chinese_sentence(text: str) -> bool:
    """Three Chinese characters and more are more than a word."""
    return len(_CJK_WIDTH.findall(text)) > 2


def common_cut(lengths: Sequence[int], unfinished: Sequence[bool], least: int) -> list[int]:
    """Lengths at which answers were cut: many are exactly that long, and most of those are not finished.

    Args:
        lengths: of each answer, in characters or tokens.
        unfinished: whether each ends in the middle.
        least: lengths below it are not looked at.

    Returns:
        The lengths, ascending.
    """
    counts: dict[int, int] = {}
    open_ones: dict[int, int] = {}
    for length, opened in zip(lengths, unfinished, strict=True):
        if length >= least:
            counts[length] = counts.get(length, 0) + 1
            open_ones[length] = open_ones.get(length, 0) + opened
    cuts = []
    for length, many in open_ones.items():
        reach = max(8, length // 20)
        beside = sum(counts.get(near, 0) for near in range(length - reach, length + reach + 1) if near != length)
        expected = beside / (2 * reach)
        if many >= 5 and many * 2 >= counts[length] and counts[length] >= 8 * expected:
            cuts.append(length)
    return sorted(cuts)
