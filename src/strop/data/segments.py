"""Which text of a rendered conversation is learned, and which is only read.

For a template in the ChatML style:

    <|im_start|>user\\nTwo and two?<|im_end|>\\n<|im_start|>assistant\\n   read: exactly what chat sends
    Four.<|im_end|>                                                     learned: the answer and its stop token
    \\n                                                                  read: what the template puts between turns

Nothing here knows a template's markers. A turn's prompt is what the template renders for the messages before the
turn with ``add_generation_prompt``; what it renders for the messages with the turn must begin with that prompt; what
follows is learned, up to and including the first stop token behind the answer. A conversation is refused where this
does not hold for its last answer: the template changes it, or ends it without a stop token. So it holds by
construction that the prompt which chat sends is the prompt that was trained.

**Earlier answers** are learned where they stand in the whole text exactly as they were rendered when they were the
last one, prompt included. Some templates rewrite them: Qwen3 and DeepSeek-R1 take the reasoning out of earlier turns,
Mistral moves the tools to the last question. Such an answer is only read: nobody would ever be asked in that way.

**Weights.** What is learned weighs 1 and what is read 0, unless the row says otherwise: for an answer with its stop
token (`Message.weight`), or for parts of it (`Message.spans`). The border of a span is a border of tokens: the text is
cut there before it is encoded.

**Reasoning** (`strop.data.thinking`) is learned with the answer that follows it. A template is rendered in the mode of
the last answer (``enable_thinking``), and where it writes an empty block into answers that do not reason, the block
belongs to the prompt. Where it drops the reasoning even of the last answer, that is put behind the prompt again.

Text in the data that spells a control token (a user pastes ``<|im_end|>``) must stay text: `strop.data.masks`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple, TypeAlias

from strop.data.masks import Masked, any_of, mask, put_back
from strop.data.records import Conversation, Message, Place
from strop.data.template import ChatTemplate
from strop.data.thinking import CLOSE, OPEN, has_thinking, split_thinking
from strop.errors import TemplateError

Learn: TypeAlias = Literal["answers", "last", "all"]
"""What of a conversation is learned: its answers, its last answer, or every token."""

_PROBE = (Message("user", "question"), Message("assistant", "answer"))
_NOWHERE = Place("")

_EMPTY_BLOCK = re.compile(rf"\s*(?:{OPEN})?\s*{CLOSE}\s*")
_OPEN_END = re.compile(rf"{OPEN}\s*\Z")
_BLOCK_END = re.compile(rf"{OPEN}\s*(?:{CLOSE}\s*)?\Z")


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a rendered conversation.

    Args:
        text: the characters, as the model reads them.
        weight: how much its tokens count in the loss; 0 is only read.
        literals: start and end, in characters of the text, of what spells a control token but is data.
        ends: whether an answer or a text ends here, so that its last token must be a stop token.
    """

    text: str
    weight: float
    literals: tuple[tuple[int, int], ...] = ()
    ends: bool = False

    @property
    def learned(self) -> bool:
        """Whether it is learned."""
        return self.weight > 0


class _Answer(NamedTuple):
    """Where an assistant's turn stands in a text."""

    turn: int
    start: int
    """Behind the prompt."""
    content: int
    """Its content, behind the reasoning."""
    end: int
    """Behind its stop token."""


class Segmenter:
    """Conversations to segments, for one template and its control tokens.

    Args:
        template: the chat template.
        control: every string that the tokenizer reads as a control token, stop tokens included.
        stops: those that end an answer.
        around: the control tokens before and behind a plain text; the first is `before_texts`.
    """

    def __init__(
        self, template: ChatTemplate, control: Iterable[str], stops: Iterable[str], around: tuple[str, str] = ("", "")
    ) -> None:
        self.template = template
        self._control = any_of(control)
        self._stop = any_of(stops)
        self.before_texts, self._behind_texts = around

    def conversation(self, conversation: Conversation, learn: Learn = "answers") -> list[Segment]:
        """Cut a whole conversation into what is read and what is learned, in turn.

        Args:
            conversation: one that ends in an answer, or a plain text.
            learn: what is learned of it where the row does not say otherwise. The cuts are the same in any case.

        Raises:
            TemplateError: the template cannot render it, or what would be learned is not the answers.
        """
        if conversation.text is not None:
            return self._plain(conversation.text)
        self._check_tools(conversation)
        _check_weights(conversation)
        masked = mask(conversation, self._control, self.template)
        thinking = has_thinking(conversation.messages[-1])
        text, last = self._last_answer(masked, thinking)
        _check_whole(self.template, masked, text)
        answers = [*self._earlier(masked, thinking, text, last.turn), last]
        pieces = [
            piece
            for answer in answers
            for piece in _weigh(masked, answer, text, chosen=learn != "last" or answer.turn == last.turn)
        ]
        return _cut(text, pieces, masked, 1.0 if learn == "all" else 0.0)

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[str] = (), *, thinking: bool = False
    ) -> list[Segment]:
        """Cut the history and the generation prompt just as `conversation` cuts them.

        The result is the beginning of the segments of every conversation that goes on from here in the same mode.

        Args:
            messages: the turns so far, the last one the user's or a tool's.
            tools: the conversation's tools.
            thinking: whether the answer is to reason.

        Raises:
            TemplateError: the template cannot render them.
        """
        masked = mask(Conversation(tuple(messages), _NOWHERE, tuple(tools)), self._control, self.template)
        text = self._open(masked, thinking, len(masked.messages))
        pieces = [
            piece
            for answer in self._earlier(masked, thinking, text, len(masked.messages))
            for piece in _weigh(masked, answer, text, chosen=True)
        ]
        return [replace(segment, weight=0.0, ends=False) for segment in _cut(text, pieces, masked, 0.0)]

    def _plain(self, text: str) -> list[Segment]:
        """A plain text: all of it is learned, and that it ends."""
        if not self._behind_texts:
            raise TemplateError(
                "the tokenizer has no token that ends a text",
                expected="eos_token in tokenizer_config.json, or eos_token_id in generation_config.json",
                do="name the token there; without it the model would never stop",
            )
        literals = tuple((match.start(), match.end()) for match in self._control.finditer(text))
        whole = (Segment(self.before_texts, 0.0), Segment(text, 1.0, literals))
        return [one for one in (*whole, Segment(self._behind_texts, 1.0, ends=True)) if one.text]

    def _open(self, masked: Masked, thinking: bool, turn: int) -> str:
        """The prompt of a turn: the messages before it and what opens the assistant's turn."""
        prompt = self._render(masked, thinking, turn, add_generation_prompt=True)
        return prompt if thinking else prompt + self._closing

    def _render(self, masked: Masked, thinking: bool, turns: int, *, add_generation_prompt: bool = False) -> str:
        return self.template.render(
            masked.messages[:turns],
            add_generation_prompt=add_generation_prompt,
            tools=masked.tools,
            thinking=thinking,
        )

    def _last_answer(self, masked: Masked, thinking: bool) -> tuple[str, _Answer]:
        """The whole text, and the answer that it ends in."""
        turn = len(masked.messages) - 1
        prompt = self._open(masked, thinking, turn)
        text = self._render(masked, thinking, turn + 1)
        message, start = masked.messages[turn], len(prompt)
        found = _find(text, start, message) if prompt and text.startswith(prompt) else None
        if found is None and (OPEN in prompt[-40:] or has_thinking(message)):
            text = _rebuilt(prompt, text, message)
            found = _find(text, start, message) if text.startswith(prompt) else None
        if not (prompt and text.startswith(prompt)):
            raise TemplateError(
                f"{self.template.name} renders an answered question unlike the question alone",
                expected="the prompt, then the answer",
                found=f"{_tail(prompt)} and {_tail(text[: len(prompt)])}",
                do="use a template in which the generation prompt is the beginning of the assistant's turn",
            )
        if found is None:
            raise TemplateError(
                f"{self.template.name} changes the answer",
                expected="the answer as it stands in the row" + (", calls of tools included" * bool(message.calls)),
                found=_tail(text[start:]),
                do="change the row so that the template keeps it, or use another template",
            )
        content, behind = found
        asked = masked.messages[turn - 1].content.strip()
        if asked and asked not in prompt and asked in text[start:content]:
            raise TemplateError(
                f"{self.template.name} leaves the question out of the prompt, so that it would be learned",
                expected="the whole history before the answer where add_generation_prompt is set",
                found=_tail(prompt),
                do="repair the template",
            )
        stop = self._stop.search(text, behind)
        if stop is None:
            raise TemplateError(
                f"{self.template.name} would not end the answer in a stop token",
                expected="one of the model's end-of-sequence tokens behind every answer",
                found=_tail(text),
                do="let the template end the assistant's turn in {{ eos_token }}",
            )
        return text, _Answer(turn, start, content, stop.end())

    def _earlier(self, masked: Masked, thinking: bool, text: str, before: int) -> Iterator[_Answer]:
        """The answers before a turn that stand in the text as they were rendered when they were the last."""
        end = 0
        for turn, message in enumerate(masked.messages[:before]):
            if message.role != "assistant":
                continue
            try:
                prompt = self._open(masked, thinking, turn)
                if not prompt or len(prompt) < end or not text.startswith(prompt):
                    continue
                answered = self._render(masked, thinking, turn + 1)
            except TemplateError:
                continue  # a template may refuse a part of what it takes as a whole
            found = _find(answered, len(prompt), message) if answered.startswith(prompt) else None
            stop = self._stop.search(answered, found[1]) if found else None
            if not found or not stop or not text.startswith(answered[: stop.end()]):
                continue
            end = stop.end()
            yield _Answer(turn, len(prompt), found[0], end)

    @cached_property
    def _closing(self) -> str:
        """What a prompt lacks where the answer is not to reason: the rest of an empty block, if the template has one.

        Either the template writes the block into answers but not behind the prompt, or its prompt opens a block:

            <|im_start|>assistant\\n            <think>\\n\\n</think>\\n\\n
            <｜Assistant｜><think>\\n            \\n</think>\\n\\n
        """
        try:
            prompt = self.template.render(_PROBE[:1], add_generation_prompt=True, thinking=False)
            answered = self.template.render(_PROBE, add_generation_prompt=False, thinking=False)
        except TemplateError:
            return ""
        if answered.startswith(prompt):
            between = answered[len(prompt) : answered.find(_PROBE[1].content, len(prompt))]
            return between if _EMPTY_BLOCK.fullmatch(between) else ""
        return f"\n{CLOSE}\n\n" if _OPEN_END.search(prompt) else ""

    def _check_tools(self, conversation: Conversation) -> None:
        """Refuse tools and their calls where the template says nothing of them to the model."""
        if conversation.tools and not self.template.shows_tools:
            raise TemplateError(
                f"{self.template.name} does not tell the model of its tools",
                expected="a template that renders the variable tools",
                do="use the template of a model that calls tools, or take the tools out of the rows",
            )
        if any(message.calls for message in conversation.messages) and not self.template.shows_calls:
            raise TemplateError(
                f"{self.template.name} does not render calls of tools, so that they would not be learned",
                expected="a template that renders tool_calls",
                do="use the template of a model that calls tools, or write the calls into the answers' text",
            )


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


def _find(text: str, start: int, message: Message) -> tuple[int, int] | None:
    """Where an answer's content begins behind a prompt, and where answer and calls have ended; None: it is not there.

    Reasoning and answer are looked for one after the other: templates write the space between them in their own way.
    Only a content with spans has to stand there as one.
    """
    reasoning, content = ("", message.content) if message.spans else split_thinking(message)
    at = start
    for part in (reasoning.strip(), content.strip()):
        begin = text.find(part, at)
        if begin < 0:
            return None
        at = begin + len(part)
    for call in message.calls:
        at = text.find(call.name, at)
        if at < 0:
            return None
        at += len(call.name)
    return begin, at


def _rebuilt(prompt: str, text: str, message: Message) -> str:
    """The prompt, the reasoning, and what the template renders of the answer, where it drops the reasoning."""
    reasoning, _ = split_thinking(message)
    base = prompt if text.startswith(prompt) else _BLOCK_END.sub("", prompt)
    if not text.startswith(base):
        return text
    rest = text[len(base) :]
    empty = _EMPTY_BLOCK.match(rest)
    block = ""
    if reasoning.strip():
        block = reasoning.strip("\n") + f"\n{CLOSE}\n\n"
        block = block if _OPEN_END.search(prompt) else f"{OPEN}\n{block}"
    rest = rest[empty.end() :] if empty else rest
    return prompt + block + (rest.lstrip("\n") if block else rest)


def _weigh(masked: Masked, answer: _Answer, text: str, *, chosen: bool) -> Iterator[tuple[int, int, float, bool]]:
    """Start, end and weight of an answer's pieces, in order, and whether it ends there."""
    message = masked.messages[answer.turn]
    whole = float(chosen) if message.weight is None else message.weight
    position = answer.start
    if message.spans:
        # The content was found without the spaces around it, which the template may have kept all the same.
        content, stripped = message.content, message.content.strip()
        lead = content.index(stripped)
        zero = answer.content - lead
        kept = zero >= answer.start and text.startswith(content, zero)
        low, high = (0, len(content)) if kept else (lead, lead + len(stripped))
        for span in message.spans:
            start, end = (zero + min(max(at, low), high) for at in (span.start, span.end))
            yield position, start, whole, False
            yield start, end, span.weight, False
            position = end
    yield position, answer.end, whole, True


def _cut(text: str, answers: Iterable[tuple[int, int, float, bool]], masked: Masked, between: float) -> list[Segment]:
    """Cut masked text at the answers' pieces, and put the masked stretches back; between them all weighs the same."""
    pieces, position = [], 0
    for start, end, weight, ends in answers:
        pieces += [(text[position:start], between, False), (text[start:end], weight, ends)]
        position = end
    pieces.append((text[position:], between, False))
    segments = []
    for piece, weight, ends in pieces:
        if piece:
            original, literals = put_back(piece, masked.originals)
            segments.append(Segment(original, weight, literals, ends))
    return segments


def _check_weights(conversation: Conversation) -> None:
    """Only assistants' turns can be weighted."""
    for message in conversation.messages:
        if message.role != "assistant" and (message.weight or message.spans):
            raise TemplateError(
                f"a turn of the role {message.role} has a weight",
                expected="weights of assistant turns alone",
                do="take the weight away; data.learn all learns every turn",
            )


def _check_whole(template: ChatTemplate, masked: Masked, text: str) -> None:
    """What is read must reach the model: the system prompt, and what tools answered."""
    for number, message in enumerate(masked.messages):
        if message.role == "system" and number == 0 and message.content.strip() not in text:
            raise TemplateError(
                f"{template.name} leaves out the system prompt",
                expected="the system prompt in the text that the model reads",
                do='use a template that takes a system turn, or set data.system to "" to train without one',
            )
        if message.role == "tool":
            content = message.content.strip()
            if content not in text and json.dumps(content, ensure_ascii=False)[1:-1] not in text:
                raise TemplateError(
                    f"{template.name} leaves out what a tool answered",
                    expected="the tools' turns in the text that the model reads",
                    do="use the template of a model that calls tools, or take these rows out",
                )


def _tail(text: str) -> str:
    """The end of a text, short enough for a message."""
    return repr(text[-40:])
