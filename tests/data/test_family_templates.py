"""Templates of families that bring their own, beside the texts that their models were trained on, and transformers.

The templates in `templates/` are ours and write what the published ones write for these conversations: the formats are
those of the models' cards and repositories; Granite 3, Phi 4, Mistral 7 and Gemma as llama.cpp's tests have them too.
Fixed sentences of system prompts are shortened. At run time a repository's own template is used: what is held here is
that the sandbox renders it as transformers does, with tools, calls, thinking and the day.
"""

from __future__ import annotations

import json
import re
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from strop.data.records import Message, ToolCall
from strop.data.template import ChatTemplate

TEMPLATES = Path(__file__).parent / "templates"
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather <of> a town",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
    },
}
SYSTEM = Message("system", "S")
TURNS = (Message("user", "Q1"), Message("assistant", "A1"), Message("user", "Q2"), Message("assistant", "A2"))
WEATHER = ToolCall("weather", '{"town": "Köln"}', "abcdefghi")
CALLED = (
    Message("user", "Q"),
    Message("assistant", "", calls=(WEATHER,)),
    Message("tool", '{"sky": "grey"}', call_id="abcdefghi", name="weather"),
    Message("assistant", "Grey."),
)
WROTE = (
    Message("user", "Q"),
    Message("assistant", '<|tool_call|>[{"name": "weather"}]'),
    Message("tool", "grey"),
    Message("assistant", "Grey."),
)


class Case(NamedTuple):
    """A conversation and the text of it."""

    template: str
    messages: tuple[Message, ...]
    text: str
    asked: bool = False
    tools: bool = False
    thinking: bool | None = None


def indented(value: Any) -> str:
    return json.dumps(value, indent=4, ensure_ascii=False)


PLAIN = json.dumps(TOOL, ensure_ascii=False)
DAY = "Knowledge Cutoff Date: April 2024.\nToday's Date: July 26, 2024.\nYou are Granite, developed by IBM."
GRANITE = "<|start_of_role|>{}<|end_of_role|>{}<|end_of_text|>\n"
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"
CHATML = "<|im_start|>{}\n{}<|im_end|>\n"
SMOL = (
    "<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: 26 July 2024\n"
    "Reasoning Mode: {}\n\n## Custom Instructions\n\n{}\n\n{}<|im_end|>\n"
)
NAMED = "You are a helpful AI assistant named SmolLM, trained by Hugging Face."
GLM_TOOLS = "<|system|>\n# 可用工具\n\n## weather\n\n{}\n在调用上述函数时，请使用 Json 格式表示调用的参数。"


def turns(form: str, *pairs: tuple[str, str]) -> str:
    return "".join(form.format(*pair) for pair in pairs)


FOUR = (("user", "Q1"), ("assistant", "A1"), ("user", "Q2"), ("assistant", "A2"))
CASES = {
    "granite": Case("granite3", (SYSTEM, *TURNS), turns(GRANITE, ("system", "S"), *FOUR)),
    "granite asked": Case(
        "granite3",
        TURNS[:1],
        turns(GRANITE, ("system", f"{DAY} You are a helpful AI assistant."), FOUR[0])
        + "<|start_of_role|>assistant<|end_of_role|>",
        asked=True,
    ),
    "granite tools": Case(
        "granite3",
        WROTE,
        turns(
            GRANITE,
            ("system", f"{DAY} You are a helpful AI assistant with access to the following tools."),
            ("tools", indented([TOOL])),
            ("user", "Q"),
            ("assistant", '<|tool_call|>[{"name": "weather"}]'),
            ("tool", "grey"),
            ("assistant", "Grey."),
        ),
        tools=True,
    ),
    "granite tools and system": Case(
        "granite3",
        (SYSTEM, *WROTE[:1]),
        turns(GRANITE, ("system", "S"), ("tools", indented([TOOL])), ("user", "Q"))
        + "<|start_of_role|>assistant<|end_of_role|>",
        asked=True,
        tools=True,
    ),
    "olmo2": Case(
        "olmo2",
        (SYSTEM, *TURNS),
        "<s><|system|>\nS\n<|user|>\nQ1\n<|assistant|>\nA1</s>\n<|user|>\nQ2\n<|assistant|>\nA2</s>",
    ),
    "olmo2 asked": Case("olmo2", TURNS[:1], "<s><|user|>\nQ1\n<|assistant|>\n", asked=True),
    "smollm3": Case("smollm3", (SYSTEM, *TURNS), SMOL.format("/think", "S", "") + turns(CHATML, *FOUR)),
    "smollm3 without thinking": Case(
        "smollm3",
        TURNS[:3],
        SMOL.format("/no_think", NAMED, "")
        + "<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\nA1<|im_end|>\n"
        + "<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n",
        asked=True,
        thinking=False,
    ),
    "smollm3 told not to think": Case(
        "smollm3",
        (Message("system", "Be brief. /no_think"), TURNS[0]),
        SMOL.format("/no_think", "Be brief.", "")
        + "<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n",
        asked=True,
        thinking=True,
    ),
    "smollm3 tools": Case(
        "smollm3",
        (CALLED[0], Message("assistant", "<tool_call>…</tool_call>"), *CALLED[2:]),
        SMOL.format("/think", NAMED, f"### Tools\n\n<tools>\n{TOOL}\n</tools>\n\n")
        + turns(
            CHATML,
            ("user", "Q"),
            ("assistant", "<tool_call>…</tool_call>"),
            ("user", '{"sky": "grey"}'),
            ("assistant", "Grey."),
        ),
        tools=True,
    ),
    "glm4": Case(
        "glm4_0414",
        (SYSTEM, *TURNS),
        "[gMASK]<sop><|system|>\nS<|user|>\nQ1<|assistant|>\nA1<|user|>\nQ2<|assistant|>\nA2",
    ),
    "glm4 tools": Case(
        "glm4_0414",
        CALLED,
        "[gMASK]<sop>"
        + GLM_TOOLS.format(indented(TOOL["function"]))
        + '<|user|>\nQ<|assistant|>weather\n{"town": "Köln"}<|observation|>\n{"sky": "grey"}<|assistant|>\nGrey.',
        tools=True,
    ),
    "glm4 tools and system": Case(
        "glm4_0414",
        (SYSTEM, CALLED[0]),
        "[gMASK]<sop>" + GLM_TOOLS.format(indented(TOOL["function"])) + "<|system|>\nS<|user|>\nQ<|assistant|>",
        asked=True,
        tools=True,
    ),
    "phi4": Case(
        "phi4",
        (SYSTEM, *TURNS),
        "<|im_start|>system<|im_sep|>S<|im_end|><|im_start|>user<|im_sep|>Q1<|im_end|>"
        "<|im_start|>assistant<|im_sep|>A1<|im_end|><|im_start|>user<|im_sep|>Q2<|im_end|>"
        "<|im_start|>assistant<|im_sep|>A2<|im_end|>",
    ),
    "phi4 mini": Case(
        "phi4_mini",
        (SYSTEM, *TURNS[:3]),
        "<|system|>S<|end|><|user|>Q1<|end|><|assistant|>A1<|end|><|user|>Q2<|end|><|assistant|>",
        asked=True,
    ),
    "phi4 mini tools": Case(
        "phi4_mini",
        (SYSTEM, *WROTE),
        f"<|system|>S<|tool|>[{PLAIN}]<|/tool|><|end|><|user|>Q<|end|>"
        '<|assistant|><|tool_call|>[{"name": "weather"}]<|end|><|tool|>grey<|end|><|assistant|>Grey.<|end|></s>',
        tools=True,
    ),
    "mistral v7": Case(
        "mistral_v7",
        (SYSTEM, *TURNS),
        "<s>[SYSTEM_PROMPT] S[/SYSTEM_PROMPT][INST] Q1[/INST] A1</s>[INST] Q2[/INST] A2</s>",
    ),
    "mistral v3 tools": Case(
        "mistral",
        CALLED,
        f"<s>[AVAILABLE_TOOLS] [{PLAIN}][/AVAILABLE_TOOLS][INST] Q[/INST]"
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"town": "Köln"}, "id": "abcdefghi"}]</s>'
        '[TOOL_RESULTS] {"content": {"sky": "grey"}, "call_id": "abcdefghi"}[/TOOL_RESULTS] Grey.</s>',
        tools=True,
    ),
    "llama 3.1": Case("llama31", (SYSTEM, *TURNS), "<s>" + turns(HEADER, ("system", "S"), *FOUR)),
    "llama 3.1 tools": Case(
        "llama31",
        CALLED,
        "<s>"
        + turns(
            HEADER,
            ("system", "Environment: ipython\n"),
            (
                "user",
                "Given the following functions, please respond with a JSON for a function call.\n\n"
                + indented(TOOL)
                + "\n\nQ",
            ),
            ("assistant", '{"name": "weather", "parameters": {"town": "Köln"}}'),
            ("ipython", json.dumps('{"sky": "grey"}')),
            ("assistant", "Grey."),
        ),
        tools=True,
    ),
    "qwen 3": Case(
        "qwen3", (SYSTEM, *TURNS[:3]), turns(CHATML, ("system", "S"), *FOUR[:3]) + "<|im_start|>assistant\n", asked=True
    ),
    "qwen 3 without thinking": Case(
        "qwen3",
        TURNS[:1],
        turns(CHATML, FOUR[0]) + "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        asked=True,
        thinking=False,
    ),
    "qwen 3 calls": Case(
        "qwen3",
        (*CALLED[:3],),
        turns(
            CHATML,
            ("user", "Q"),
            ("assistant", '<tool_call>\n{"name": "weather", "arguments": {"town": "Köln"}}\n</tool_call>'),
            ("user", '<tool_response>\n{"sky": "grey"}\n</tool_response>'),
        )
        + "<|im_start|>assistant\n",
        asked=True,
    ),
    "qwen 2.5 calls": Case(
        "qwen25",
        (SYSTEM, *CALLED),
        turns(
            CHATML,
            ("system", "S"),
            ("user", "Q"),
            ("assistant", '<tool_call>\n{"name": "weather", "arguments": {"town": "Köln"}}\n</tool_call>'),
            ("user", '<tool_response>\n{"sky": "grey"}\n</tool_response>'),
            ("assistant", "Grey."),
        ),
    ),
    "gemma": Case(
        "gemma",
        TURNS[:3],
        "<s><start_of_turn>user\nQ1<end_of_turn>\n<start_of_turn>model\nA1<end_of_turn>\n"
        "<start_of_turn>user\nQ2<end_of_turn>\n<start_of_turn>model\n",
        asked=True,
    ),
    "deepseek r1": Case(
        "deepseek_r1",
        (SYSTEM, TURNS[0], Message("assistant", "<think>\nhm\n</think>\n\nA1"), TURNS[2]),
        "<s>S<｜User｜>Q1<｜Assistant｜>\n\nA1<｜end▁of▁sentence｜><｜User｜>Q2<｜Assistant｜><think>\n",
        asked=True,
    ),
}
DATE = date(2024, 7, 26)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_text_and_transformers(case: Case) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    source = (TEMPLATES / f"{case.template}.jinja").read_text(encoding="utf-8")
    tools = [TOOL] if case.tools else None
    ours = ChatTemplate(source, TOKENS).render(
        case.messages, add_generation_prompt=case.asked, tools=tools, thinking=case.thinking
    )
    assert ours == case.text
    mode = {} if case.thinking is None else {"enable_thinking": case.thinking}
    (theirs,), _ = render_jinja_template(
        [list(map(as_row, case.messages))],
        tools=tools,
        # transformers would write today's date.
        chat_template=re.sub(r"strftime_now\('(.*?)'\)", lambda call: repr(DATE.strftime(call[1])), source),
        add_generation_prompt=case.asked,
        **mode,
        **TOKENS,
    )
    assert ours == theirs


def as_row(message: Message) -> dict[str, Any]:
    """A turn as people hand it to transformers."""
    row: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.calls:
        row["content"] = None
        functions = [{"name": call.name, "arguments": json.loads(call.arguments)} for call in message.calls]
        row["tool_calls"] = [
            {"type": "function", "id": call.id, "function": function}
            for call, function in zip(message.calls, functions, strict=True)
        ]
    if message.role == "tool":
        row |= {"tool_call_id": message.call_id, "name": message.name}
    return row


def test_tools_and_thinking_are_covered() -> None:
    assert sum(case.tools or any(turn.calls for turn in case.messages) for case in CASES.values()) > 9
    assert {case.template for case in CASES.values() if case.thinking is not None} == {"smollm3", "qwen3"}
