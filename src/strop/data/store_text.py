"""Conversations as the text that stands behind their tokens in a store: JSON, as short as it can be.

user "2 + 2?", assistant "4", learned half     [[["user","2 + 2?"],["assistant","4",{"weight":0.5}]],[],null]
"""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, fields
from typing import Any

from strop.data.records import Conversation, Message, Place, Span, ToolCall


def write_conversation(conversation: Conversation) -> bytes:
    """A conversation as JSON: turns as [role, content], what else a turn has behind it; the tools; a plain text."""
    turns = [
        [message.role, message.content, *([extra] if (extra := _extra(message)) else [])]
        for message in conversation.messages
    ]
    return _encode([turns, conversation.tools, conversation.text]).encode("utf-8", errors="surrogatepass")


def read_conversation_text(text: bytes, place: Place) -> Conversation:
    """What `write_conversation` wrote."""
    turns, tools, plain = json.loads(text.decode("utf-8", errors="surrogatepass"))
    return Conversation(tuple(_read_turn(*turn) for turn in turns), place, tuple(tools), plain)


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_DEFAULTS = {one.name: one.default for one in fields(Message) if one.default is not MISSING}


def _extra(message: Message) -> dict[str, Any]:
    """The fields of a turn that are not as usual."""
    if all(getattr(message, name) == default for name, default in _DEFAULTS.items()):
        return {}
    return {name: value for name, value in asdict(message).items() if name in _DEFAULTS and value != _DEFAULTS[name]}


def _read_turn(role: Any, content: str, extra: dict[str, Any] | None = None) -> Message:
    if not extra:
        return Message(role, content)
    spans = tuple(Span(**span) for span in extra.pop("spans", ()))
    calls = tuple(ToolCall(**call) for call in extra.pop("calls", ()))
    return Message(role, content, spans=spans, calls=calls, **extra)
