"""All checks over a data set: one pass in batches, then what needs the whole of it.

    samples ──▶ batch of texts ──characters──▶ marks of each text ──▶ only the checks whose mark a text has
                     │                     ├──▶ sketches, n-grams of held-out questions, scripts
                     └──▶ each answer: its end     ▼
    all batches seen ──▶ repeats, near duplicates, leaks, common lengths, languages ──▶ findings

What is asked of every character is asked by numpy, a batch at a time; Python sees a text again only if something is
there to see. Texts are not kept: whatever is compared in the end is fetched again by its number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from strop.data.findings import Finding
from strop.data.lint import encoding, languages, leftovers, private
from strop.data.lint.answers import AnswerEnds, check_answer, common_cut, finish_answers
from strop.data.lint.cases import Cases
from strop.data.lint.characters import Characters, Marks
from strop.data.lint.leaks import HeldOutQuestions
from strop.data.lint.near import near_duplicates
from strop.data.lint.repeats import Repeats, last_answer, question_of, text_of
from strop.data.lint.sketches import BINS, sketch
from strop.data.lint.turns import SystemPrompts, check_order
from strop.data.records import Conversation

if TYPE_CHECKING:
    import numpy.typing as npt

    from strop.data.lint.sketches import Flags, Sketches

BATCH = 1 << 19
"""Characters of a batch: its arrays of 8 bytes a character stay in a second-level cache's reach."""

Progress = Callable[[int, int], None]


def lint(
    learned: Sequence[Conversation],
    held_out: Sequence[Conversation] = (),
    *,
    lengths: Sequence[int] | None = None,
    held_out_lengths: Sequence[int] | None = None,
    max_tokens: int | None = None,
    control_tokens: Sequence[str] = (),
    context_tokens: int | None = None,
    progress: Progress | None = None,
) -> list[Finding]:
    """Look for what is wrong with a data set.

    Args:
        learned: the samples to learn. They are read twice: in order, and by number where two are compared.
        held_out: the samples held out, to be looked for among the learned ones.
        lengths: tokens of each learned sample, if they are known.
        held_out_lengths: tokens of each held-out sample, if they are known.
        max_tokens: the recipe's limit.
        control_tokens: the model's control tokens, to be looked for in the text.
        context_tokens: positions that the model was made for.
        progress: told the samples done and all of them.

    Returns:
        What was found, worst first: stop, warn, note, and by count within each.
    """
    cases = examine(learned, held_out, lengths=lengths, control_tokens=control_tokens, progress=progress)
    for limit, kind in ((max_tokens, "over-long"), (context_tokens, "over-context")):
        if limit is not None:
            _check_lengths(cases, kind, limit, learned, lengths or (), lambda row: row)
            _check_lengths(cases, kind, limit, held_out, held_out_lengths or (), lambda row: ~row)
    return cases.findings()


def examine(
    learned: Sequence[Conversation],
    held_out: Sequence[Conversation] = (),
    *,
    lengths: Sequence[int] | None = None,
    control_tokens: Sequence[str] = (),
    progress: Progress | None = None,
) -> Cases:
    """What `lint` finds, by the number of each sample; limits on tokens are not looked at."""
    cases = Cases(learned, held_out)
    examination = _Examination(cases, learned, held_out, control_tokens)
    for start, batch in batches(learned):
        examination.look(start, batch)
        if progress:
            progress(start + len(batch), len(learned))
    examination.finish(lengths)
    return cases


@dataclass(slots=True)
class Texts:
    """The texts of a batch.

    Attributes:
        texts: every text that is there to see.
        rows: the number of the sample that each belongs to.
        roles: who speaks: "system", "user", "tool", "assistant", "thinking", "text".
    """

    texts: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)

    def add(self, row: int, conversation: Conversation) -> None:
        """Add what a sample says, system prompts and all."""
        for message in conversation.messages:
            if message.thinking:
                self._append(row, "thinking", message.thinking)
            self._append(row, message.role, message.content)
            for call in message.calls:
                self._append(row, "call", call.arguments)
        if conversation.text or not conversation.messages:
            self._append(row, "text", conversation.text or "")

    def _append(self, row: int, role: str, text: str) -> None:
        self.texts.append(text)
        self.rows.append(row)
        self.roles.append(role)


def texts_of(start: int, batch: Sequence[Conversation]) -> Texts:
    """All texts of a batch, the first sample of which has the number `start`."""
    texts = Texts()
    for row, conversation in enumerate(batch, start):
        texts.add(row, conversation)
    return texts


class _Examination:
    """The state of a pass."""

    def __init__(
        self,
        cases: Cases,
        learned: Sequence[Conversation],
        held_out: Sequence[Conversation],
        control_tokens: Sequence[str],
    ) -> None:
        self.cases, self.learned, self.held_out = cases, learned, held_out
        self.control = leftovers.control_token_pattern(control_tokens)
        self.repeats, self.prompts, self.ends = Repeats(), SystemPrompts(), AnswerEnds()
        self.leaks = HeldOutQuestions(held_out) if held_out else None
        # One array from the beginning: 252 bytes a sample are the most that is held of it.
        self.sketches: Sketches = np.empty((len(learned), BINS), np.uint32)
        self.usable: Flags = np.zeros(len(learned), np.bool_)
        self.languages: Counter[str] = Counter()
        self.by_language: dict[str, list[int]] = {}
        self.answer_lengths: list[int] = []
        self.unfinished: list[bool] = []

    def look(self, start: int, batch: Sequence[Conversation]) -> None:
        """Look at a batch of samples, the first of which has the number `start`."""
        for row, conversation in enumerate(batch, start):
            self._look_at_sample(row, conversation)
        texts = texts_of(start, batch)
        characters = Characters(texts.texts)
        self._look_at_characters(texts, characters)
        rows = np.array(texts.rows, np.int64)
        self._sketch(texts, characters, rows - start, slice(start, start + len(batch)))
        self._look_at_languages(texts, characters)
        if self.leaks:
            self.leaks.overlap(characters, rows)

    def _look_at_sample(self, row: int, conversation: Conversation) -> None:
        self.repeats.add(conversation)
        if self.leaks:
            self.leaks.same_question(row, conversation)
        if conversation.messages:
            self.prompts.add(row, conversation.messages)
            check_order(self.cases, row, conversation.messages)
        finished, length = True, 0
        for message in conversation.messages:
            if message.role == "assistant" and not (message.calls and not message.content.strip()):
                length = len(message.content)
                finished = check_answer(self.cases, self.ends, row, message.content)
        self.answer_lengths.append(length)
        self.unfinished.append(not finished)

    def _look_at_characters(self, texts: Texts, characters: Characters) -> None:
        marks = characters.marks()
        for wanted, check in (
            (encoding.REPAIRABLE | encoding.LOSSY, self._encoding),
            (Marks.ANGLE | Marks.SQUARE | Marks.HASH, self._template),
            (Marks.ANGLE | Marks.AMPERSAND, self._html),
            (Marks.LONG_TOKEN, private.find_secrets),
            (Marks.AT, private.find_addresses),
            (Marks.LONG_NUMBER, private.find_long_numbers),
            (Marks.DOTTED, private.find_hosts),
        ):
            for number in np.flatnonzero(marks & np.uint32(wanted)).tolist():
                text = texts.texts[number]
                for kind, first, end in check(text):
                    self.cases.add(kind, texts.rows[number], text, first, end)
        for number, text in enumerate(texts.texts):
            for kind, first, end in self._any_text(text):
                self.cases.add(kind, texts.rows[number], text, first, end)

    def _encoding(self, text: str) -> list[leftovers.Found]:
        found = [(edit.kind, edit.start, edit.end) for edit in encoding.edits(text)]
        return [*found, *encoding.losses(text)]

    def _template(self, text: str) -> list[leftovers.Found]:
        return list(leftovers.find_template_text(text))

    def _html(self, text: str) -> list[leftovers.Found]:
        return list(leftovers.find_html(text, text))

    def _any_text(self, text: str) -> list[leftovers.Found]:
        """What no mark tells of."""
        found = list(leftovers.find_speakers(text)) if "\n" in text else []
        if self.control and (token := self.control.search(text)):
            found.append(("control-tokens", *token.span()))
        return found

    def _sketch(self, texts: Texts, characters: Characters, row_of_text: npt.NDArray[np.int64], rows: slice) -> None:
        used = np.array([role != "system" for role in texts.roles], np.bool_)
        self.sketches[rows], self.usable[rows] = sketch(characters, row_of_text, rows.stop - rows.start, used)

    def _look_at_languages(self, texts: Texts, characters: Characters) -> None:
        scripts = characters.scripts().tolist()
        asked: tuple[int, str | None] = (-1, None)
        told: dict[int, str] = {}
        for number, (row, role) in enumerate(zip(texts.rows, texts.roles, strict=True)):
            if role == "user":
                asked = (number, languages.language(scripts[number]))
            elif role in ("assistant", "text"):
                name = languages.language(scripts[number])
                if name is not None:
                    told[row] = name
                question, spoken = asked
                if name and spoken and name != spoken and texts.rows[question] == row and role == "assistant":
                    self._compare_languages(row, texts.texts[question], texts.texts[number])
        for row, name in told.items():
            self.by_language.setdefault(name, []).append(row)

    def _compare_languages(self, row: int, question: str, answer: str) -> None:
        differ = languages.in_another_language(question, answer)
        if differ:
            text = f"{question[:40]} ─▶ {answer[:40]}"
            self.cases.add("answer-in-another-language", row, text, note=f"{differ[0]}, then {differ[1]}")

    def finish(self, lengths: Sequence[int] | None) -> None:
        """Look at what only all samples together show."""
        finish_answers(self.cases, self.ends)
        self.prompts.report(self.cases, self.learned)
        self.repeats.report(self.cases, self.learned)
        self._report_near()
        self._report_leaks()
        self._report_cuts(lengths)
        self._report_languages()

    def _report_near(self) -> None:
        # What is there word for word is said already.
        self.usable[list(self.repeats.again)] = False
        for pair in near_duplicates(self.learned, self.sketches, self.usable, 0):
            kind = "near-duplicates" if pair.numbers else "same-but-for-numbers"
            note = f"like {self.learned[pair.earlier].place}"
            self.cases.add(kind, pair.later, text_of(self.learned[pair.later]), end=0, note=note)

    def _report_leaks(self) -> None:
        found = self.leaks.leaks(self.learned) if self.leaks else []
        for leak in found:
            kind = "held-out-in-training" if leak.exact else "held-out-overlap"
            held_out = self.held_out[leak.held_out]
            share = "" if leak.exact else f"{leak.share:.0%} of "
            note = f"{share}the held-out {held_out.place}"
            self.cases.add(kind, leak.learned, question_of(held_out) or text_of(held_out), end=0, note=note)
        for exact, kind in ((True, "held-out-in-training"), (False, "held-out-overlap")):
            many = len({leak.held_out for leak in found if leak.exact == exact})
            if many:
                self.cases.detail(kind, f"Held-out questions concerned: {many:,} of {len(self.held_out):,}.")

    def _report_cuts(self, lengths: Sequence[int] | None) -> None:
        for unit, values, least in (("characters", self.answer_lengths, 100), ("tokens", lengths, 32)):
            cuts = common_cut(values, self.unfinished, least) if values else []
            for row, (length, open_end) in enumerate(zip(values or (), self.unfinished, strict=bool(values))):
                if open_end and length in cuts:
                    tail = last_answer(self.learned[row])[-60:]
                    self.cases.add("cut-at-one-length", row, tail, note=f"{length:,} {unit}")

    def _report_languages(self) -> None:
        counts = {name: len(rows) for name, rows in self.by_language.items()}
        total = sum(counts.values())
        usual = max(counts, key=counts.__getitem__, default="")
        if total == 0 or counts[usual] == total:
            return
        for name, rows in self.by_language.items():
            for row in rows if name != usual else ():
                self.cases.add("languages", row, last_answer(self.learned[row]) or text_of(self.learned[row]), end=0)
        shares = sorted(counts.items(), key=lambda item: -item[1])
        self.cases.detail("languages", ", ".join(f"{name} {count / total:.1%}" for name, count in shares) + ".")


def _check_lengths(
    cases: Cases,
    kind: str,
    limit: int,
    samples: Sequence[Conversation],
    lengths: Sequence[int],
    number: Callable[[int], int],
) -> None:
    for row, length in enumerate(lengths):
        if length > limit:
            text = text_of(samples[row])
            cases.add(kind, number(row), text, end=0, note=f"{length:,} tokens, {limit:,} allowed")


def batches(samples: Sequence[Conversation]) -> Iterator[tuple[int, list[Conversation]]]:
    """Samples in batches of about `BATCH` characters, each with the number of its first."""
    start, size = 0, 0
    batch: list[Conversation] = []
    for conversation in samples:
        batch.append(conversation)
        size += sum(len(message.content) + len(message.thinking or "") for message in conversation.messages)
        size += len(conversation.text or "")
        if size >= BATCH:
            yield start, batch
            start, size, batch = start + len(batch), 0, []
    if batch:
        yield start, batch
