"""What lint finds, repaired or dropped where there is one way to do it, with an account of every change.

    repair   wrong encodings and escapes, control and invisible characters, line ends      the text of turns
    drop     empty answers, then exact duplicates, then what leaks held-out questions      whole samples

Nothing else is touched: not a question's wording, not a call's arguments, not a weight. Spans with weights move with
their characters; where a border lies inside of what would be replaced, the turn stays as it is. What is left is found
by linting again. To fix what was fixed changes nothing, and so does fixing what lint finds clean.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from strop.data.findings import Finding, Instance
from strop.data.lint import encoding
from strop.data.lint.cases import SHOWN, excerpt
from strop.data.lint.characters import Characters
from strop.data.lint.check import Progress, batches, lint, texts_of
from strop.data.lint.encoding import Edit
from strop.data.lint.kinds import FIXED, KINDS
from strop.data.lint.leaks import HeldOutQuestions
from strop.data.lint.repeats import question_of, text_of, whole_digest
from strop.data.records import Conversation, Message, Place, Span
from strop.errors import UsageError

_DROPPED = ("empty-answers", "exact-duplicates", "held-out-in-training", "held-out-overlap")


@dataclass(frozen=True, slots=True)
class Change:
    """What was done about one kind of finding.

    Args:
        kind: the finding's kind.
        what: what was done, in a sentence, count included.
        dropped: whether the samples were dropped; else their text was repaired.
        places: every sample that was changed or dropped.
        instances: a few of them, with what was there and what is now.
    """

    kind: str
    what: str
    dropped: bool
    places: tuple[Place, ...]
    instances: tuple[Instance, ...]

    @property
    def count(self) -> int:
        """How many samples it concerns."""
        return len(self.places)

    def as_dict(self) -> dict[str, Any]:
        """The change as ``--json`` has it."""
        return {
            "kind": self.kind,
            "what": self.what,
            "dropped": self.dropped,
            "count": self.count,
            "places": [str(place) for place in self.places],
            "instances": [{"place": str(one.place), "text": one.text} for one in self.instances],
        }


@dataclass(frozen=True, slots=True)
class Fixed:
    """A data set after `fix`.

    Args:
        conversations: what is kept, repaired, in order.
        kept: the number that each had before.
        changes: what was done, by kind; empty where nothing was.
        left: what lint still finds.
    """

    conversations: tuple[Conversation, ...]
    kept: tuple[int, ...]
    changes: tuple[Change, ...]
    left: tuple[Finding, ...]

    def as_dict(self) -> dict[str, Any]:
        """The account as ``--json`` has it."""
        return {
            "kept": len(self.conversations),
            "changes": [change.as_dict() for change in self.changes],
            "left": [finding.as_dict() for finding in self.left],
        }


def fix(
    conversations: Iterable[Conversation],
    held_out: Sequence[Conversation] = (),
    *,
    kinds: Collection[str] = FIXED,
    lengths: Sequence[int] | None = None,
    max_tokens: int | None = None,
    control_tokens: Sequence[str] = (),
    context_tokens: int | None = None,
    progress: Progress | None = None,
) -> Fixed:
    """Repair a data set, and drop what should not be learned.

    Args:
        conversations: the samples to learn; they are not changed.
        held_out: the samples held out, which are left as they are.
        kinds: what to do something about: names in `FIXED`, such as the kinds of some findings.
        lengths: tokens of each sample before; like the rest, for what is left: see `lint`.
        max_tokens: the recipe's limit.
        control_tokens: the model's control tokens.
        context_tokens: positions that the model was made for.
        progress: told the samples done and all of them.

    Raises:
        UsageError: a kind that nothing can be done about.
    """
    wrong = sorted(set(kinds) - set(FIXED))
    if wrong:
        raise UsageError(
            f"{', '.join(wrong)} cannot be fixed",
            expected=f"some of {', '.join(FIXED)}",
            do="change these samples by hand; docs/data-lint.md says how",
        )
    account = _Account()
    samples = [_repaired(conversation, kinds, account) for conversation in conversations]
    rows = list(range(len(samples)))
    if "empty-answers" in kinds:
        rows = [row for row in rows if not _drop_empty(samples[row], account)]
    if "exact-duplicates" in kinds:
        rows = _without_duplicates(samples, rows, account)
    if held_out and {"held-out-in-training", "held-out-overlap"} & set(kinds):
        rows = _without_leaks(samples, rows, held_out, kinds, account)
    kept = tuple(samples[row] for row in rows)
    left = lint(
        kept,
        held_out,
        lengths=[lengths[row] for row in rows] if lengths is not None else None,
        max_tokens=max_tokens,
        control_tokens=control_tokens,
        context_tokens=context_tokens,
        progress=progress,
    )
    return Fixed(kept, tuple(rows), account.changes(), tuple(left))


class _Account:
    """What was done, while it is done."""

    def __init__(self) -> None:
        self._places: defaultdict[str, list[Place]] = defaultdict(list)
        self._instances: defaultdict[str, list[Instance]] = defaultdict(list)

    def add(self, kind: str, place: Place, text: str) -> None:
        if self._places[kind][-1:] != [place]:
            self._places[kind].append(place)
            if len(self._instances[kind]) < SHOWN:
                self._instances[kind].append(Instance(place, text))

    def changes(self) -> tuple[Change, ...]:
        found = [kind for kind in KINDS if kind in self._places]
        return tuple(
            Change(
                kind,
                f"{'Dropped' if kind in _DROPPED else 'Repaired'} for {kind}: {len(self._places[kind]):,} "
                f"sample{'s' if len(self._places[kind]) != 1 else ''}.",
                kind in _DROPPED,
                tuple(self._places[kind]),
                tuple(self._instances[kind]),
            )
            for kind in found
        )


def _repaired(conversation: Conversation, kinds: Collection[str], account: _Account) -> Conversation:
    """The conversation with its texts repaired; the same object where nothing is to repair."""
    messages = tuple(_repaired_turn(message, conversation.place, kinds, account) for message in conversation.messages)
    text = conversation.text
    if text:
        text, _ = _repaired_text(text, (), conversation.place, kinds, account)
    if text == conversation.text and all(a is b for a, b in zip(messages, conversation.messages, strict=True)):
        return conversation
    return replace(conversation, messages=messages, text=text)


def _repaired_turn(message: Message, place: Place, kinds: Collection[str], account: _Account) -> Message:
    content, spans = _repaired_text(message.content, message.spans, place, kinds, account)
    thinking = message.thinking
    if thinking:
        thinking, _ = _repaired_text(thinking, (), place, kinds, account)
    if content == message.content and thinking == message.thinking:
        return message
    return replace(message, content=content, spans=spans, thinking=thinking)


def _repaired_text(
    text: str, spans: tuple[Span, ...], place: Place, kinds: Collection[str], account: _Account
) -> tuple[str, tuple[Span, ...]]:
    """A text after all repairs, and its spans. One repair can uncover another: it goes on until none is left."""
    before, done = text, []
    first_spans = spans
    while edits := [edit for edit in encoding.edits(text) if edit.kind in kinds]:
        moved = _moved(spans, edits)
        if moved is None:
            return before, first_spans
        done += [(edit.kind, excerpt(text, edit.start, edit.end, 40), excerpt(edit.text)) for edit in edits[:SHOWN]]
        done += [(edit.kind, "", "") for edit in edits[SHOWN:]]
        text, spans = encoding.apply(text, edits), moved
    if before.strip() and not text.strip():
        # Nothing but unseen characters: that an answer is empty is found by itself, a question is for its owner.
        return before, first_spans
    for kind, was, now in done:
        account.add(kind, place, f"{was} ─▶ {now or '(nothing)'}")
    return text, spans


def _moved(spans: tuple[Span, ...], edits: Sequence[Edit]) -> tuple[Span, ...] | None:
    """Spans after edits; None where a border lies inside of what is replaced by other characters."""
    moved = []
    for span in spans:
        borders = [_moved_border(border, edits) for border in (span.start, span.end)]
        if borders[0] is None or borders[1] is None:
            return None
        if borders[0] < borders[1]:
            moved.append(replace(span, start=borders[0], end=borders[1]))
    return tuple(moved)


def _moved_border(border: int, edits: Sequence[Edit]) -> int | None:
    shift = 0
    for edit in edits:
        if edit.end <= border:
            shift += len(edit.text) - (edit.end - edit.start)
        elif edit.start < border:
            # Of a run that is removed whole, nothing is left for the border to lie in.
            return None if edit.text else edit.start + shift
    return border + shift


def _drop_empty(conversation: Conversation, account: _Account) -> bool:
    for message in conversation.messages:
        if message.role == "assistant" and not message.calls and not message.content.strip():
            account.add("empty-answers", conversation.place, excerpt(text_of(conversation)))
            return True
    return False


def _without_duplicates(samples: Sequence[Conversation], rows: Sequence[int], account: _Account) -> list[int]:
    first: dict[bytes, int] = {}
    kept = []
    for row in rows:
        earlier = first.setdefault(whole_digest(samples[row]), row)
        if earlier == row:
            kept.append(row)
        else:
            text = excerpt(text_of(samples[row]), end=0, width=60)
            account.add("exact-duplicates", samples[row].place, f"as {samples[earlier].place}: {text}")
    return kept


def _without_leaks(
    samples: Sequence[Conversation],
    rows: list[int],
    held_out: Sequence[Conversation],
    kinds: Collection[str],
    account: _Account,
) -> list[int]:
    """Drop leaks until there are none: with samples gone, what many had in common may be rare, and a sign."""
    while True:
        learned = [samples[row] for row in rows]
        questions = HeldOutQuestions(held_out)
        for start, batch in batches(learned):
            for row, conversation in enumerate(batch, start):
                questions.same_question(row, conversation)
            texts = texts_of(start, batch)
            questions.overlap(Characters(texts.texts), np.array(texts.rows, np.int64))
        dropped = set()
        for leak in questions.leaks(learned):
            kind = "held-out-in-training" if leak.exact else "held-out-overlap"
            if kind in kinds:
                dropped.add(rows[leak.learned])
                text = excerpt(question_of(learned[leak.learned]) or text_of(learned[leak.learned]), end=0, width=60)
                place = held_out[leak.held_out].place
                account.add(kind, learned[leak.learned].place, f"the held-out {place}: {text}")
        if not dropped:
            return rows
        rows = [row for row in rows if row not in dropped]
