"""Reasoning in answers: what stands between ``<think>`` and ``</think>``, or in a row's ``reasoning_content``.

    <think>                                       the reasoning: of the answer itself, or of `Message.thinking`
    Six and one make seven.
    </think>

    Seven.                                        the answer

The recipe's ``data.thinking`` says what becomes of it: ``keep`` learns it with the answer, ``drop`` takes it out. Where
the recipe says nothing it is kept, and the run remembers whether there was any: so chat opens its turns as the answers
that were learned were opened, with reasoning or without. An empty block (templates write one where a model is not to
think) is nobody's reasoning: it is taken out of the row, and the template writes it again if that is its way.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal, TypeAlias

from strop.data.records import Conversation, Message, Refusal, Span

Thinking: TypeAlias = Literal["keep", "drop"]

OPEN, CLOSE = "<think>", "</think>"

_BLOCK = re.compile(rf"\s*{OPEN}(.*?){CLOSE}\s*", re.DOTALL)


def split_thinking(message: Message) -> tuple[str, str]:
    """An assistant's turn as its reasoning and its answer, as they stand; the reasoning is "" where there is none."""
    if message.thinking is not None:
        return message.thinking, message.content
    block = _BLOCK.match(message.content) if CLOSE in message.content else None
    return (block[1], message.content[block.end() :]) if block else ("", message.content)


def has_thinking(message: Message) -> bool:
    """Whether an assistant's turn reasons before it answers."""
    return message.role == "assistant" and bool(split_thinking(message)[0].strip())


def answers_thinking(conversation: Conversation) -> bool:
    """Whether the last answer of a conversation reasons: the mode in which the whole of it is rendered."""
    return bool(conversation.messages) and has_thinking(conversation.messages[-1])


def settle_thinking(conversation: Conversation, thinking: Thinking | None) -> Conversation | Refusal:
    """Take reasoning out of a conversation as the recipe says, and empty blocks in any case.

    Args:
        conversation: as it was read.
        thinking: the recipe's ``data.thinking``; None keeps reasoning.

    Returns:
        The conversation itself where there is nothing to take out; a refusal where an answer is nothing but reasoning.
    """
    if not any(message.thinking is not None or CLOSE in message.content for message in conversation.messages):
        return conversation
    messages = [
        _without(message)
        if message.role == "assistant" and (thinking == "drop" or not has_thinking(message))
        else message
        for message in conversation.messages
    ]
    for message in messages:
        if message.role == "assistant" and not (message.content.strip() or message.calls):
            return Refusal(
                conversation.place,
                "an answer is nothing but reasoning, which data.thinking drops",
                "give an answer behind the reasoning, or set data.thinking to keep",
            )
    return replace(conversation, messages=tuple(messages))


def whole_answer(text: str) -> str:
    """An answer as a turn of the history: with the opening of its reasoning, should the prompt have held that."""
    return OPEN + "\n" + text if CLOSE in text and OPEN not in text.partition(CLOSE)[0] else text


def _without(message: Message) -> Message:
    """The turn without its reasoning, its spans moved along."""
    answer = split_thinking(replace(message, thinking=None))[1]
    cut = len(message.content) - len(answer)
    spans = tuple(
        Span(max(span.start - cut, 0), span.end - cut, span.weight) for span in message.spans if span.end > cut
    )
    return replace(message, content=answer, thinking=None, spans=spans)
