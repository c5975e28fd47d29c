"""A list of turns, as data sets write it, to messages; and the grammar that a conversation keeps.

    {"role": "user", "content": …}        OpenAI's; content may be a list of parts; tool_calls, tool_call_id, name,
                                          weight (0 or 1), reasoning_content
    {"from": "human", "value": …}         sharegpt's; function_call and observation for tools
    {"system": …, "input": …, "output": …}   XTuner's: a question and its answer in one turn

    system? user (assistant (tool+ assistant)* user)* … ends in an assistant's turn

A call of a tool that stands in a turn of its own (``function_call``, ``tool_call``) belongs to the assistant's turn
before it, or is one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

from strop.data.content import RowRefused, content_of, detailed_spans, json_in_text, text_of, weight_of
from strop.data.records import Message, Role, ToolCall
from strop.data.sources_json import json_kind

Speaker: TypeAlias = Role | Literal["call"]

ROLES: Mapping[str, Speaker] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "ipython": "tool",
    "function_call": "call",
    "tool_call": "call",
}
"""What rows call the speakers, and what they are; a "call" is an assistant's call of a tool in a turn of its own."""

_THINKING = ("reasoning_content", "thinking", "reasoning")
_FOLLOWS: Mapping[str, tuple[str, ...]] = {
    "": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
"""Who may speak after whom."""


def is_turns(value: Any) -> bool:
    """Whether a value looks like a list of turns, or like JSON text of one."""
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], dict)
    return isinstance(value, str) and value.lstrip().startswith("[")


def read_turns(value: Any, column: str) -> list[Message]:
    """Read a list of turns.

    Args:
        value: the list, or its JSON text.
        column: where it stands, for messages.

    Raises:
        RowRefused: it is no list of turns, or a turn cannot be read.
    """
    turns = json_in_text(value, "[")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RowRefused(
            f"{column!r} is not a list of turns",
            'give a list such as [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]',
            json_kind(turns),
        )
    messages: list[Message] = []
    for number, turn in enumerate(turns):
        plain = _plain(turn)
        if plain is not None:
            messages.append(plain)
            continue
        for message in _read_turn(turn, first=number == 0):
            before = messages[-1] if messages else None
            if _speaker(turn) == "call" and before is not None and before.role == "assistant":
                messages[-1] = replace(before, calls=before.calls + message.calls)
            else:
                messages.append(message)
    return messages


def read_history(value: Any) -> list[Message]:
    """Earlier questions and answers: [["question", "answer"], …], or a list of turns.

    Raises:
        RowRefused: it is neither.
    """
    rounds = json_in_text(value, "[")
    if not rounds:  # null, an empty list or an empty text
        return []
    if is_turns(rounds):
        return read_turns(rounds, "history")
    if not isinstance(rounds, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in rounds):
        raise RowRefused(
            "'history' is not a list of questions with their answers",
            'give a list such as [["question", "answer"], …]',
            json_kind(rounds),
        )
    return [
        message
        for asked, answered in rounds
        for message in (
            Message("user", text_of(asked, "history")),
            Message("assistant", text_of(answered, "history")),
        )
    ]


def read_tools(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The schemas in a row's column ``tools`` (or ``functions``), each as JSON text in OpenAI's form.

    Raises:
        RowRefused: they are no list of schemas with names.
    """
    column = "tools" if values.get("tools") else "functions"
    tools = json_in_text(values.get(column), "[{")
    if not tools:
        return ()
    schemas = [json_in_text(tool, "{") for tool in (tools if isinstance(tools, list) else [tools])]
    texts = []
    for schema in schemas:
        function = schema.get("function", schema) if isinstance(schema, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowRefused(
                f"{column!r} is not a list of tools",
                'give a list such as [{"type": "function", "function": {"name": "…", "parameters": {…}}}]',
                f"a tool without a name: {str(schema)[:40]}",
            )
        whole = schema if "function" in schema else {"type": "function", "function": schema}
        texts.append(json.dumps(whole, ensure_ascii=False))
    return tuple(texts)


def check_turns(messages: Sequence[Message]) -> None:
    """Hold a conversation to its grammar, with text in every turn.

    Raises:
        RowRefused: it does not keep it.
    """
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if not any(message.role == "assistant" for message in turns):
        raise RowRefused("there is no assistant turn to learn", "add an answer, or drop the row")
    last = ""
    for message in turns:
        if message.role not in _FOLLOWS[last]:
            raise RowRefused(
                "the turns do not alternate between user and assistant",
                "give a system turn first, if any, then user and assistant in turn; tools answer an assistant's call",
                "turns " + ", ".join(message.role for message in messages[:8]),
            )
        last = message.role
    if last == "user":
        raise RowRefused("the last turn is a question without an answer", "add the answer, or remove the question")
    if last == "tool":
        raise RowRefused("the last turn is a tool's and no answer follows", "add the answer, or remove the turn")
    for message in messages:
        _check_words(message)
    _check_calls(turns)
    if all(_unlearned(message) for message in turns if message.role == "assistant"):
        raise RowRefused("every answer has weight 0", "give one answer a weight above 0, or drop the row")


def check_characters(text: str) -> None:
    """Hold a text to characters that UTF-8 can write.

    Raises:
        RowRefused: it holds half of a surrogate pair.
    """
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RowRefused(
            "the text holds half of a surrogate pair, which is not a character", "repair the \\ud8xx escape in the row"
        ) from None


def _speaker(turn: Mapping[str, Any]) -> Speaker | None:
    for key in ("role", "from"):
        if isinstance(turn.get(key), str):
            return ROLES.get(turn[key])
    return None


def _plain(turn: Mapping[str, Any]) -> Message | None:
    """A turn of a speaker and a text and nothing else, which most are; read here because most are."""
    if len(turn) != 2:
        return None
    speaker, words = ("role", "content") if "role" in turn else ("from", "value")
    said, role = turn.get(words), _speaker(turn) if speaker in turn else None
    return Message(role, said) if isinstance(said, str) and role is not None and role != "call" else None


def _read_turn(turn: Mapping[str, Any], *, first: bool) -> Iterator[Message]:
    for speaker, words in (("role", "content"), ("from", "value")):
        if turn.get(speaker) is not None and (words in turn or "tool_calls" in turn or "function_call" in turn):
            role = _speaker({speaker: turn[speaker]})
            if role is None:
                raise RowRefused(f"the role {turn[speaker]!r} is not known", "use system, user, assistant, or tool")
            yield _spoken(turn, role, words)
            return
    if turn.get("input") is not None and turn.get("output") is not None:
        yield from _question_and_answer(turn, first=first)
        return
    raise RowRefused(
        "a turn is neither {role, content} nor {from, value} nor {input, output}",
        "name the turn's parts in one of these ways",
        f"a turn with {', '.join(turn) or 'nothing'}",
    )


def _spoken(turn: Mapping[str, Any], role: Speaker, words: str) -> Message:
    """A turn of one speaker."""
    if role == "call":
        calls = json_in_text(turn.get(words), "[{")
        return Message("assistant", "", weight_of(turn), calls=_read_calls(calls))
    calls = _calls_of(turn) if role == "assistant" else ()
    value = turn.get(words)
    content = content_of("" if not value and calls else value, words)
    thinking = content.thinking
    if role == "assistant" and thinking is None:
        thinking = next((text_of(turn[name], name) for name in _THINKING if turn.get(name)), None)
    call_id, name = turn.get("tool_call_id"), turn.get("name")
    return Message(
        role,
        content.text,
        weight_of(turn),
        content.spans or detailed_spans(turn, content.text),
        thinking,
        calls,
        call_id if role == "tool" and isinstance(call_id, str) else None,
        name if isinstance(name, str) else None,
    )


def _question_and_answer(turn: Mapping[str, Any], *, first: bool) -> Iterator[Message]:
    """XTuner's turn. Later turns repeat the system prompt or leave it out; the first one's is the conversation's."""
    if first and turn.get("system") is not None:
        yield Message("system", text_of(turn["system"], "system"))
    asked = text_of(turn["input"], "input")
    if not asked.strip():
        raise RowRefused("the question is empty", "fill it; a plain text to learn whole goes into a column 'text'")
    yield Message("user", asked)
    weight = 0.0 if turn.get("output_with_loss") is False else weight_of(turn)
    content = content_of(turn["output"], "output")
    yield Message("assistant", content.text, weight, content.spans, content.thinking)


def _calls_of(turn: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    if turn.get("tool_calls"):
        return _read_calls(json_in_text(turn["tool_calls"], "["))
    if turn.get("function_call"):
        return _read_calls(json_in_text(turn["function_call"], "{"))
    return ()


def _read_calls(value: Any) -> tuple[ToolCall, ...]:
    """Calls of tools: {name, arguments}, or OpenAI's {id, type, function: {name, arguments}}, or a list of them."""
    calls = value if isinstance(value, list) else [value]
    read = []
    for call in calls:
        function = call.get("function") or call if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowRefused(
                "a call of a tool has no name",
                'give {"name": "…", "arguments": {…}}',
                json_kind(call) if not isinstance(call, dict) else f"an object with {', '.join(call)}",
            )
        identity = call.get("id")
        read.append(ToolCall(function["name"], _arguments(function), identity if isinstance(identity, str) else None))
    return tuple(read)


def _arguments(function: Mapping[str, Any]) -> str:
    """A call's arguments as JSON text: the row's own characters, or made of its object."""
    value = function.get("arguments")
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    if value is None or (isinstance(value, str) and not value.strip()):
        return "{}"
    try:
        right = isinstance(value, str) and isinstance(json.loads(value), dict)
    except (ValueError, RecursionError):
        right = False
    if not right:
        raise RowRefused(
            "the arguments of a tool's call are not a JSON object", "repair them, or drop the row", str(value)[:60]
        )
    return str(value)


def _check_words(message: Message) -> None:
    if not message.content.strip() and not message.calls:
        name = {"user": "question", "assistant": "answer", "tool": "tool's turn"}.get(message.role, "system prompt")
        raise RowRefused(f"the {name} is empty", "fill it, or drop the row")
    check_characters(message.content)
    if message.thinking is not None:
        check_characters(message.thinking)
    for call in message.calls:
        check_characters(call.name + call.arguments)


def _check_calls(turns: Sequence[Message]) -> None:
    """A tool's turn that names a call must follow it."""
    made: set[str] = set()
    for message in turns:
        if message.role == "assistant":
            made = {call.id for call in message.calls if call.id is not None}
        elif message.role == "tool" and message.call_id is not None and made and message.call_id not in made:
            raise RowRefused(
                "a tool's turn answers a call that was not made",
                "let tool_call_id repeat the id of a call in the turn before",
                f"{message.call_id}, after {', '.join(sorted(made))}",
            )


def _unlearned(message: Message) -> bool:
    return message.weight == 0 and not any(span.weight for span in message.spans)
