"""What a conversation says and what it asks, as 128 bits each: to find what is there twice.

    system "Be brief."         ┐
    user   "What is  2 + 2?"   │ ┐
    answer "4"                 │ │ asked: all that stands before the last answer but system prompts
    user   "And 3 + 3?"        │ ┘
    answer "6"                 ┘ said: all of it

Spaces, case and forms of characters (full-width, ligatures: Unicode's NFKC) do not count. Samples that ask the same
are held out together or learned together (`strop.data.split`), whatever they answer.
"""

from __future__ import annotations

import hashlib
import unicodedata

from strop.data.records import Conversation


def normal(text: str) -> str:
    """Text but for spaces, case and forms of characters."""
    return " ".join((text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold().split())


def said(conversation: Conversation) -> bytes:
    """What a conversation says but for spaces, case and forms of characters: BLAKE2b-128."""
    texts = [conversation.text or "", *(f"{message.role}\0{message.content}" for message in conversation.messages)]
    return _digest("\1".join(map(normal, texts)))


def asked(conversation: Conversation) -> bytes:
    """What a conversation asks but for spaces, case and forms of characters: BLAKE2b-128; what it says if nothing."""
    text = question(conversation)
    return said(conversation) if text is None else _digest(normal(text))


def question(conversation: Conversation) -> str | None:
    """All that stands before the last answer, the system prompt left out, blanks and case put aside.

    None where there is no answer, or nothing before it.
    """
    turns = [message for message in conversation.messages if message.role != "system"]
    while turns and turns[-1].role != "assistant":
        turns.pop()
    texts = [" ".join(message.content.split()) for message in turns[:-1]]
    if not any(texts):
        return None
    return "\n\n".join(f"{turn.role}\n{text.casefold()}" for turn, text in zip(turns, texts, strict=False))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
