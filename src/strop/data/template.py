"""A model's chat template, rendered in a sandbox.

A chat template is a program from a stranger: Jinja source that comes with the model's weights. It is rendered as
``transformers.PreTrainedTokenizerBase.apply_chat_template`` renders it (a test holds the two to each other), in
a sandbox with a meter (`strop.data.sandbox`): it reads the messages, the names of a few special tokens and nothing
else, and what it does costs no more than a conversation of that size can need.

    environment   trim_blocks, lstrip_blocks, {% break %} and {% continue %}
    variables     messages, add_generation_prompt, tools, documents (None), bos_token, eos_token, …
                  enable_thinking and thinking where it is said whether an answer reasons
    a message     role and content; reasoning_content, tool_calls, tool_call_id and name where the turn has them
    functions     raise_exception(text), range, namespace, dict; the filter tojson without HTML escapes
    blocks        {% generation %} … {% endgeneration %} are rendered as if they were not there

One name tells no time: strftime_now. With today's date, the prompt that was trained would not be the prompt that is
asked tomorrow. Where a template asks first whether it is defined, it is not, and the template falls back to a date of
its own; where it does not ask (SmolLM 3, Granite 3), the day is always 26 July 2024, which Llama 3 falls back to.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from functools import cached_property
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from strop.data.metering import HOOKS, metered
from strop.data.prices import MOST_WORK, WORK_PER_CHARACTER, WORK_PER_MESSAGE, Meter
from strop.data.records import Message, ToolCall
from strop.data.sandbox import MOST_SOURCE, Sandbox, TemplateRefusal
from strop.errors import TemplateError

_RUNTIME_FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What a template can raise while it runs: its own, and what Python raises on wrong operations."""


_DAY = date(2024, 7, 26)
_ASKS_FOR_THE_DAY = re.compile(r"strftime_now\s+is\s+(not\s+)?defined")
_DIRECTIVE = re.compile(r"%-?[A-Za-z%]")

_PROBE = (Message("user", "question"), Message("assistant", "answer"))
_PROBE_CALL = ToolCall("probe_of_tools", '{"probe": 1}', "abcdefghi")
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": _PROBE_CALL.name,
        "description": "probe",
        "parameters": {"type": "object", "properties": {"probe": {"type": "integer"}}, "required": ["probe"]},
    },
}


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: the Jinja source.
        tokens: the variables that name special tokens: {"bos_token": "<s>", …}.
        name: where the source stands, for messages.

    Raises:
        TemplateError: the source is not a Jinja template; with the line.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], name: str = "the chat template") -> None:
        self.source = source
        self.name = name
        self.tokens = dict(tokens)
        if len(source) > MOST_SOURCE:
            raise TemplateError(
                f"{name} is too long",
                expected=f"at most {MOST_SOURCE:,} characters",
                found=f"{len(source):,}",
                do="check that it is a chat template, or shorten it",
            )
        try:
            environment = _Environment()
            if "strftime_now" in source and not _ASKS_FOR_THE_DAY.search(source):
                environment.globals["strftime_now"] = _strftime_on_the_day
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"{name}, line {error.lineno}: not a Jinja template", found=str(error.message), do="repair the template"
            ) from error
        except (SyntaxError, RecursionError, MemoryError, ValueError, OverflowError, AssertionError) as error:
            raise TemplateError(f"{name} cannot be compiled", found=str(error)[:200], do="simplify it") from error

    @property
    def sha256(self) -> str:
        """SHA-256 of the source, in hexadecimal: a run is asked with the template that it was trained with."""
        return hashlib.sha256(self.source.encode("utf-8", errors="surrogatepass")).hexdigest()

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the tools of a conversation reach the text; in doubt they do."""
        return "tools" in self.source and self._shows(_PROBE, tools=[_PROBE_TOOL])

    @cached_property
    def shows_calls(self) -> bool:
        """Whether calls of tools reach the text, with or without what the tool answered; in doubt they do."""
        if "tool_calls" not in self.source:
            return False
        call = (_PROBE[0], Message("assistant", "", calls=(_PROBE_CALL,)))
        answered = (*call, Message("tool", "1", call_id=_PROBE_CALL.id, name=_PROBE_CALL.name), _PROBE[1])
        return self._shows(call) or self._shows(answered)

    def _shows(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> bool:
        try:
            return _PROBE_CALL.name in self.render(messages, add_generation_prompt=False, tools=tools)
        except TemplateError:
            return True  # it is found out row by row

    @property
    def reads_thinking(self) -> bool:
        """Whether it looks for the reasoning that stands beside an answer."""
        return "reasoning_content" in self.source

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Any] | None = None,
        thinking: bool | None = None,
    ) -> str:
        """Render messages to the text that the model reads.

        Args:
            messages: the turns, in order.
            add_generation_prompt: whether the text ends with what opens the assistant's next turn.
            tools: the tools that the model is told of, as objects of their JSON schemas.
            thinking: whether the answer reasons first, for templates that ask; None leaves them their default.

        Raises:
            TemplateError: the template refuses the messages, or fails on them.
        """
        mode = {} if thinking is None else {"enable_thinking": thinking, "thinking": thinking}
        try:
            variables = {
                "messages": list(map(_as_dict, messages)),
                "tools": tools,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
                **mode,
                **self.tokens,
            }
            characters = sum(len(message.content) + len(message.thinking or "") for message in messages)
            characters += sum(len(call.arguments) for message in messages for call in message.calls)
            characters += len(json.dumps(tools)) if tools else 0
            purse = MOST_WORK + WORK_PER_MESSAGE * len(messages) + WORK_PER_CHARACTER * characters
            return self._rendered(variables, purse)
        except TemplateRefusal as error:
            raise TemplateError(
                f"{self.name} refuses the conversation: {str(error)[:500]}",
                do="change the row, or the template; a template that takes no system turn needs rows without one",
            ) from error
        except _RUNTIME_FAULTS as error:
            raise TemplateError(f"{self.name} fails: {str(error)[:500]}", do="repair the template") from error

    def _rendered(self, variables: dict[str, Any], purse: int) -> str:
        """The text, every piece of it paid for."""
        meter = self._template.new_context(variables)
        assert isinstance(meter, Meter)
        meter.left = purse
        pieces = []
        for piece in self._template.root_render_func(meter):
            meter.spend(len(piece))
            pieces.append(piece)
        return "".join(pieces)


def _strftime_on_the_day(wanted: str) -> str:
    """The day in the format that is wanted; directives with a width stay as they are."""
    return _DIRECTIVE.sub(lambda found: _DAY.strftime(found.group()), str(wanted))


def _as_dict(message: Message) -> dict[str, Any]:
    """A message as templates know it from transformers."""
    as_dict: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.thinking is not None:
        as_dict["reasoning_content"] = message.thinking
    if message.calls:
        # As rows and templates have it from OpenAI's format: a turn that only calls has no content.
        as_dict["content"] = message.content or None
        as_dict["tool_calls"] = [
            {
                "type": "function",
                **({} if call.id is None else {"id": call.id}),
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in message.calls
        ]
    if message.call_id is not None:
        as_dict["tool_call_id"] = message.call_id
    if message.name is not None:
        as_dict["name"] = message.name
    return as_dict


def _arguments(text: str) -> Any:
    """A call's arguments as the object that they spell, or as they stand where they spell none."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


class _GenerationBlocks(Extension):
    """Accepts the markers around what an assistant generates; what is learned is found without them."""

    tags = {"generation"}  # noqa: RUF012 - the name and the type are Jinja's

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Environment(Sandbox):
    """The sandbox, with the payments written into what it compiles."""

    def __init__(self) -> None:
        super().__init__()
        self.add_extension(_GenerationBlocks)
        self.filters |= HOOKS

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return metered(super()._parse(source, name, filename))
