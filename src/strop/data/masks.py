"""Text of the data that spells a control token, kept out of the template's sight.

A user pastes ``<|im_end|>``. It must not end a turn, be taken for the stop token, or become the control token. Before
rendering, each such stretch is swapped for a private-use character that stands nowhere else in the conversation:

    mask       Write <|im_end|> to stop.   →  Write \\ue000 to stop.
    render     <|im_start|>assistant\\nWrite \\ue000 to stop.<|im_end|>\\n
    put_back   … and remembered as a literal of its segment, which `strop.data.tokens` encodes as ordinary text

Contents, reasoning, calls of tools and the tools themselves are masked alike. The tags around an answer's reasoning are
the row's own markup, not its text: they stay, control tokens or not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any, NamedTuple

from strop.data.records import Conversation, Message, Span
from strop.data.template import ChatTemplate
from strop.data.thinking import CLOSE, OPEN

_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
"""The private-use areas of Unicode: 137,468 characters that mean nothing."""

_BLOCK = re.compile(rf"(\s*{OPEN})(.*?)({CLOSE})", re.DOTALL)


class Masked(NamedTuple):
    """A conversation that is ready to be rendered.

    Args:
        messages: the turns; spans count in the masked contents.
        tools: the tools as objects, or None.
        originals: what each private-use character stands for.
    """

    messages: tuple[Message, ...]
    tools: list[Any] | None
    originals: dict[str, str]


def any_of(strings: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches any of some strings, the longest first, and nothing where there are none."""
    longest_first = sorted({string for string in strings if string}, key=lambda string: (-len(string), string))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def mask(conversation: Conversation, control: re.Pattern[str], template: ChatTemplate) -> Masked:
    """Swap what spells a control token for private-use characters.

    Args:
        conversation: the turns and tools.
        control: matches any control token.
        template: whose own characters are not used.
    """
    messages = tuple(
        _with_thinking_inside(message) if message.thinking is not None and not template.reads_thinking else message
        for message in conversation.messages
    )
    tools: list[Any] | None = [json.loads(tool) for tool in conversation.tools] or None
    texts = [
        *chain.from_iterable(map(_texts, messages)),
        *(json.dumps(tool, ensure_ascii=False) for tool in tools or ()),
    ]
    found = sorted({text for one in texts for text in control.findall(one)})
    if not found:
        return Masked(messages, tools, {})
    taken = set(template.source).union(*texts)
    free = (character for code in chain(*_PRIVATE_USE) if (character := chr(code)) not in taken)
    masks = dict(zip(found, free, strict=False))

    def hide(text: str) -> str:
        return control.sub(lambda match: masks[match[0]], text)

    return Masked(
        tuple(_hide_in_message(message, hide) for message in messages),
        _hide_in_json(tools, hide),
        {character: text for text, character in masks.items()},
    )


def put_back(text: str, originals: dict[str, str]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The text with the originals in their places, and where they are: start and end in characters."""
    if not originals:
        return text, ()
    parts: list[str] = []
    literals = []
    length = 0
    for part in re.split(f"([{''.join(originals)}])", text):
        original = originals.get(part)
        parts.append(part if original is None else original)
        if original is not None:
            literals.append((length, length + len(original)))
        length += len(parts[-1])
    return "".join(parts), tuple(literals)


def _texts(message: Message) -> list[str]:
    """All text of a turn."""
    if message.thinking is None and not message.calls:
        return [message.content]
    return [
        message.content,
        message.thinking or "",
        *(text for call in message.calls for text in (call.name, call.arguments)),
    ]


def _with_thinking_inside(message: Message) -> Message:
    """The turn with its reasoning in the content, for templates that know of no other place."""
    block = f"{OPEN}\n{(message.thinking or '').strip()}\n{CLOSE}\n\n"
    spans = tuple(Span(span.start + len(block), span.end + len(block), span.weight) for span in message.spans)
    return replace(message, content=block + message.content, thinking=None, spans=spans)


def _hide_in_message(message: Message, hide: Callable[[str], str]) -> Message:
    block = _BLOCK.match(message.content) if message.role == "assistant" else None
    content = hide(message.content)
    spans = message.spans
    if spans:
        content, spans = _hide_in_spans(message, hide)
    elif block:
        content = block[1] + hide(block[2]) + block[3] + hide(message.content[block.end() :])
    return replace(
        message,
        content=content,
        spans=spans,
        thinking=None if message.thinking is None else hide(message.thinking),
        calls=tuple(replace(call, name=hide(call.name), arguments=hide(call.arguments)) for call in message.calls),
    )


def _hide_in_spans(message: Message, hide: Callable[[str], str]) -> tuple[str, tuple[Span, ...]]:
    """The masked content piece by piece: a control token that a span's border cuts is no control token."""
    borders = sorted({0, len(message.content), *(at for span in message.spans for at in (span.start, span.end))})
    pieces = [hide(message.content[start:end]) for start, end in pairwise(borders)]
    moved = {0: 0}
    for border, piece, before in zip(borders[1:], pieces, borders, strict=False):
        moved[border] = moved[before] + len(piece)
    spans = tuple(Span(moved[span.start], moved[span.end], span.weight) for span in message.spans)
    return "".join(pieces), spans


def _hide_in_json(value: Any, hide: Callable[[str], str]) -> Any:
    """A JSON value with all its texts masked, keys included."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, list):
        return [_hide_in_json(item, hide) for item in value]
    if isinstance(value, dict):
        return {hide(key): _hide_in_json(item, hide) for key, item in value.items()}
    return value
