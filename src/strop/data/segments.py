"""Which text of a rendered conversation is learned, and which is only read.

For a template in the ChatML style:

    <|im_start|>user\\nTwo and two?<|im_end|>\\n<|im_start|>assistant\\n   read: exactly what chat sends
    Four.<|im_end|>                                                     learned: the answer and its stop token
    \\n                                                                  read: what the template puts between turns

Nothing here knows a template's markers. A turn's prompt is what the template renders for the messages before the
turn with ``add_generation_prompt``; what it renders for the messages with the turn must begin with that prompt; what
follows is learned, up to and including the first stop token behind the answer. A conversation is refused where this
does not hold: the template rewrites earlier turns, changes the answer, or ends it without a stop token. So it holds
by construction that the prompt which chat sends is the prompt that was trained.

Text in the data that spells a control token (a user pastes ``<|im_end|>``) must stay text: it must not end a turn, be
taken for the stop token, or become the control token. Before rendering, each such stretch is swapped for a
private-use character that stands nowhere else in the conversation; after rendering it is put back and remembered as a
literal of its segment, which `strop.data.tokens` encodes as ordinary text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from strop.data.records import Message
from strop.data.template import ChatTemplate
from strop.errors import TemplateError

_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
"""The private-use areas of Unicode: 137,468 characters that mean nothing."""

_PROBE = (Message("user", "question"), Message("assistant", "answer"))


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a rendered conversation.

    Args:
        text: the characters, as the model reads them.
        learned: whether it is learned.
        literals: start and end, in characters of the text, of what spells a control token but is data.
    """

    text: str
    learned: bool
    literals: tuple[tuple[int, int], ...] = ()


class Segmenter:
    """Conversations to segments, for one template and its control tokens.

    Args:
        template: the chat template.
        control: every string that the tokenizer reads as a control token, stop tokens included.
        stops: those that end an answer.
    """

    def __init__(self, template: ChatTemplate, control: Iterable[str], stops: Iterable[str]) -> None:
        self.template = template
        self._control = any_of(control)
        self._stop = any_of(stops)

    def conversation(self, messages: Sequence[Message]) -> list[Segment]:
        """Cut a whole conversation into what is read and what is learned, in turn.

        Args:
            messages: system? (user assistant)+.

        Raises:
            TemplateError: the template cannot render it, or what would be learned is not the answers.
        """
        messages, originals = self._mask(messages)
        text = self.template.render(messages, add_generation_prompt=False)
        return _cut(text, self._answers(messages, text), originals)

    def prompt(self, messages: Sequence[Message]) -> list[Segment]:
        """Cut the history and the generation prompt just as `conversation` cuts them.

        The result is the beginning of the segments of every conversation that continues these messages and can be
        learned. A history that could not be learned as it is (its template rewrites earlier turns) has no such cuts
        to keep; it is rendered all the same.

        Args:
            messages: the turns so far, the last one the user's.

        Raises:
            TemplateError: the template cannot render them.
        """
        messages, originals = self._mask(messages)
        text = self.template.render(messages, add_generation_prompt=True)
        try:
            answers = list(self._answers(messages, text))
        except TemplateError:
            answers = []
        return [replace(segment, learned=False) for segment in _cut(text, answers, originals)]

    def _answers(self, messages: Sequence[Message], text: str) -> Iterator[tuple[int, int]]:
        """Start and end in the text of each answer with its stop token."""
        end = 0
        for turn, message in enumerate(messages):
            if message.role != "assistant":
                continue
            prompt = self.template.render(messages[:turn], add_generation_prompt=True)
            last = turn + 1 == len(messages)
            answered = text if last else self.template.render(messages[: turn + 1], add_generation_prompt=False)
            if not (prompt and answered.startswith(prompt)):
                raise TemplateError(
                    f"{self.template.name} renders an answered question unlike the question alone",
                    expected="the prompt, then the answer",
                    found=f"{_tail(prompt)} and {_tail(answered[: len(prompt)])}",
                    do="use a template in which the generation prompt is the beginning of the assistant's turn",
                )
            previous, end = end, self._end_of_answer(answered, len(prompt), message.content.strip())
            if len(prompt) < previous or not text.startswith(answered[:end]):
                raise TemplateError(
                    f"{self.template.name} rewrites earlier turns, so that chat would not see what was learned",
                    do="give one row per question and answer, or use a template that keeps earlier turns",
                )
            yield len(prompt), end

    def _end_of_answer(self, answered: str, start: int, content: str) -> int:
        """Where the first stop token behind the answer ends."""
        at = answered.find(content, start)
        if at < 0:
            raise TemplateError(
                f"{self.template.name} changes the answer",
                expected="the answer as it stands in the row",
                found=_tail(answered[start:]),
                do="change the row so that the template keeps it, or use another template",
            )
        stop = self._stop.search(answered, at + len(content))
        if stop is None:
            raise TemplateError(
                f"{self.template.name} would not end the answer in a stop token",
                expected="one of the model's end-of-sequence tokens behind every answer",
                found=_tail(answered),
                do="let the template end the assistant's turn in {{ eos_token }}",
            )
        return stop.end()

    def _mask(self, messages: Sequence[Message]) -> tuple[Sequence[Message], dict[str, str]]:
        """Swap what spells a control token for private-use characters; also return what each stands for."""
        found = sorted({text for message in messages for text in self._control.findall(message.content)})
        if not found:
            return messages, {}
        taken = set(self.template.source).union(*(message.content for message in messages))
        free = (character for code in chain(*_PRIVATE_USE) if (character := chr(code)) not in taken)
        masks = dict(zip(found, free, strict=False))
        masked = [
            Message(message.role, self._control.sub(lambda match: masks[match[0]], message.content))
            for message in messages
        ]
        return masked, {mask: text for text, mask in masks.items()}


def find_stop_token(template: ChatTemplate, control: Iterable[str]) -> str | None:
    """The control token that a template puts behind an answer, found by rendering a question and its answer.

    Args:
        template: the chat template.
        control: every string that the tokenizer reads as a control token.

    Raises:
        TemplateError: the template cannot render one question and one answer.
    """
    answered = template.render(_PROBE, add_generation_prompt=False)
    at = answered.rfind(_PROBE[1].content)
    stop = any_of(control).search(answered, at) if at >= 0 else None
    return stop[0] if stop else None


def any_of(strings: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches any of some strings, the longest first, and nothing where there are none."""
    longest_first = sorted({string for string in strings if string}, key=lambda string: (-len(string), string))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _cut(text: str, answers: Iterable[tuple[int, int]], originals: dict[str, str]) -> list[Segment]:
    """Cut masked text at the answers, and put the masked stretches back."""
    pieces, position = [], 0
    for start, end in answers:
        pieces += [(text[position:start], False), (text[start:end], True)]
        position = end
    pieces.append((text[position:], False))
    return [_unmask(piece, learned, originals) for piece, learned in pieces if piece]


def _unmask(text: str, learned: bool, originals: dict[str, str]) -> Segment:
    if not originals:
        return Segment(text, learned)
    parts: list[str] = []
    literals = []
    length = 0
    for part in re.split(f"([{''.join(originals)}])", text):
        original = originals.get(part)
        parts.append(part if original is None else original)
        if original is not None:
            literals.append((length, length + len(original)))
        length += len(parts[-1])
    return Segment("".join(parts), learned, tuple(literals))


def _tail(text: str) -> str:
    """The end of a text, short enough for a message."""
    return repr(text[-40:])
