"""Samples that are there twice, and questions that are: by digests of their text, one look-up a sample."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from strop.data.digests import question
from strop.data.lint.cases import Cases
from strop.data.records import Conversation

_DIGEST = 12

_FINAL = re.compile(
    r"####\s*(.+)|\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}|(?:answer is|答案[是为][:：]?)\s*\**([^\n。.]*)", re.IGNORECASE
)


def whole_digest(conversation: Conversation) -> bytes:
    """The digest of everything that is learned from a conversation: turns, calls, reasoning, weights, tools."""
    parts: list[object] = [conversation.text or ""]
    for message in conversation.messages:
        parts += [message.role, message.content]
        if message.thinking is not None or message.calls or message.weight is not None or message.spans:
            spans = [(span.start, span.end, span.weight) for span in message.spans]
            calls = [(call.name, call.arguments) for call in message.calls]
            parts.append([message.thinking, message.weight, spans, calls])
    return _digest(json.dumps([parts, conversation.tools]).encode("ascii"))


def question_digest(conversation: Conversation) -> bytes | None:
    """The digest of what is asked, blanks and case put aside; None where nothing is, or there is no answer."""
    asked = question(conversation)
    return None if asked is None else _digest(asked.encode("utf-8", "surrogatepass"))


def last_answer(conversation: Conversation) -> str:
    """The last answer, empty where there is none."""
    return next((turn.content for turn in reversed(conversation.messages) if turn.role == "assistant"), "")


def question_of(conversation: Conversation) -> str:
    """All that is asked, for the eye."""
    return "\n".join(message.content for message in conversation.messages if message.role == "user")


class Repeats:
    """Finds repeats while the samples pass by; of each it keeps two digests of 12 bytes."""

    def __init__(self) -> None:
        self._whole, self._asked = bytearray(), bytearray()

    def add(self, conversation: Conversation) -> None:
        """Let the next sample pass by."""
        self._whole += whole_digest(conversation)
        self._asked += question_digest(conversation) or bytes(_DIGEST)

    @cached_property
    def again(self) -> dict[int, int]:
        """The samples that stand earlier as well, to where they do, once all have passed by."""
        return dict(sorted((row, rows[0]) for rows in _alike(self._whole) for row in rows[1:]))

    @cached_property
    def asked(self) -> list[list[int]]:
        """Samples that ask one question, two or more, repeats left out, once all have passed by."""
        groups = ([row for row in rows if row not in self.again] for rows in _alike(self._asked))
        return [rows for rows in groups if len(rows) > 1 and any(self._asked[rows[0] * _DIGEST :][:_DIGEST])]

    def report(self, cases: Cases, learned: Sequence[Conversation]) -> None:
        """Say what was found."""
        for row, first in self.again.items():
            cases.add("exact-duplicates", row, text_of(learned[row]), end=0, note=f"as {learned[first].place}")
        for rows in self.asked:
            _report_question(cases, learned, rows)


def _report_question(cases: Cases, learned: Sequence[Conversation], rows: list[int]) -> None:
    """Say whether answers to one question contradict each other, or only put it differently."""
    answers = {row: last_answer(learned[row]) for row in rows}
    if len({_settled(answer) for answer in answers.values()}) == 1:
        # The same answer behind another system prompt, or with other blanks: nothing to choose between.
        for row in rows[1:]:
            cases.add("repeated-questions", row, question_of(learned[row]), end=0, note=f"as {learned[rows[0]].place}")
        return
    results = {row: final_answer(answer) for row, answer in answers.items()}
    known = {result for result in results.values() if result is not None}
    kind = "contradicting-answers" if len(known) > 1 and None not in results.values() else "repeated-questions"
    for row in rows:
        other = next((o for o in rows if o != row and results[o] != results[row]), next(o for o in rows if o != row))
        mine, theirs = (results[row] or answers[row][:40], results[other] or answers[other][:40])
        text = f"{question_of(learned[row])[-60:]} ─▶ {mine[:40]}, at {learned[other].place} ─▶ {theirs[:40]}"
        cases.add(kind, row, text)


def final_answer(answer: str) -> str | None:
    """What an answer comes to: behind ####, in \\boxed{}, behind "the answer is", or the whole of a short one."""
    found = list(_FINAL.finditer(answer))
    if found:
        result = next(group for group in found[-1].groups() if group is not None)
        return _settled(result.replace(",", "").replace("$", "").rstrip("."))
    words = answer.split()
    if 0 < len(words) <= 4 and len(answer.strip()) <= 24:
        return _settled(answer).rstrip("。.!！")
    return None


def text_of(conversation: Conversation) -> str:
    """All turns but the system prompt, for the eye."""
    if conversation.text:
        return conversation.text
    return "\n".join(message.content for message in conversation.messages if message.role != "system")


def _alike(digests: bytearray) -> list[list[int]]:
    """The rows of equal digests, ascending, for each digest that two or more have; by their first rows."""
    numbers = np.frombuffer(digests, np.dtype([("first", "<u8"), ("second", "<u4")]))
    order = np.lexsort((numbers["second"], numbers["first"]))
    ordered = numbers[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) + 1
    starts = np.append(0, ends[:-1])
    several = ends - starts > 1
    groups = [
        order[start:end].tolist() for start, end in zip(starts[several].tolist(), ends[several].tolist(), strict=True)
    ]
    return sorted(groups)


def _settled(text: str) -> str:
    return " ".join(text.split()).casefold()


def _digest(raw: bytes) -> bytes:
    return hashlib.blake2b(raw, digest_size=_DIGEST).digest()
