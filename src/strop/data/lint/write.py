"""Conversations as a .jsonl file in OpenAI's shape of messages, whole or not there.

    {"messages": [{"role": "user", "content": "2 + 2?"},
                  {"role": "assistant", "content": [{"type": "text", "text": "It is "},
                                                    {"type": "text", "text": "4", "weight": 2.0}],
                   "reasoning_content": "2 and 2 …", "weight": 1.0}],
     "tools": [{"type": "function", …}]}
    {"text": "a text to learn whole"}

All that a conversation says is kept: weights of turns, weights of spans (as parts of the content), reasoning, calls of
tools with their arguments as they were, names.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from strop.data.records import Conversation, Message
from strop.errors import UsageError


def write_fixed(path: str | Path, conversations: Iterable[Conversation], *, overwrite: bool = False) -> int:
    """Write conversations to a .jsonl file: under another name in the same folder, fsynced, then renamed.

    Args:
        path: the file to write; its folder must be there.
        conversations: what to write.
        overwrite: whether a file that is there may be replaced.

    Returns:
        How many were written.

    Raises:
        UsageError: the file is there already, its folder is not, or it cannot be written.
    """
    path = Path(path).expanduser()
    if not overwrite:
        _refuse_existing(path)
    staging: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".new")
        staging, count = Path(name), 0
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            for conversation in conversations:
                file.write(row_text(conversation) + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        staging.chmod(0o666 & ~_umask())
        if not overwrite:
            # It may have come about meanwhile; what is left of a race is between here and the next line.
            _refuse_existing(path)
        staging.replace(path)
        staging = None
        _sync_folder(path.parent)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written", found=error.strerror or str(error), do="check the folder and its permissions"
        ) from error
    finally:
        if staging is not None:
            staging.unlink(missing_ok=True)
    return count


def row_text(conversation: Conversation) -> str:
    """A conversation as one line of JSON, without its line feed. Lone surrogates are escaped: they are no UTF-8."""
    row = as_row(conversation)
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(row)
    return text


def as_row(conversation: Conversation) -> dict[str, Any]:
    """A conversation as the row that it could have been read from."""
    if conversation.text is not None and not conversation.messages:
        return {"text": conversation.text}
    row: dict[str, Any] = {"messages": [_turn(message) for message in conversation.messages]}
    if conversation.tools:
        row["tools"] = [json.loads(tool) for tool in conversation.tools]
    return row


def _turn(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": _content(message)}
    if message.thinking is not None:
        turn["reasoning_content"] = message.thinking
    if message.calls:
        turn["tool_calls"] = [
            {
                **({"id": call.id} if call.id is not None else {}),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.calls
        ]
    others = {"tool_call_id": message.call_id, "name": message.name, "weight": message.weight}
    return turn | {name: value for name, value in others.items() if value is not None}


def _content(message: Message) -> str | list[dict[str, Any]]:
    """The content; in parts where spans of it have weights of their own."""
    if not message.spans:
        return message.content
    parts: list[dict[str, Any]] = []
    done = 0
    for span in message.spans:
        if done < span.start:
            parts.append({"type": "text", "text": message.content[done : span.start]})
        parts.append({"type": "text", "text": message.content[span.start : span.end], "weight": span.weight})
        done = span.end
    if done < len(message.content):
        parts.append({"type": "text", "text": message.content[done:]})
    return parts


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise UsageError(
            f"{path} is there already", expected="a name that is free", do="choose another, or say that it may go"
        )


def _umask() -> int:
    """The permissions that new files do not get; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Makes a rename last; Windows has no handle on a folder to do so."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
