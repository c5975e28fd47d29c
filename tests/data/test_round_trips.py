"""The same conversations rendered here and by other tools: token-identical, or with a reason (docs/round-trips.md).

transformers      apply_chat_template, which TRL calls for its conversational data sets
TRL               prompt + completion: learned is what follows the prompt of add_generation_prompt
LLaMA-Factory     its template table: each turn a pair of prompt and response, encoded one by one, responses learned
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from families import STYLES, style

from strop.data.records import Conversation, Message, Place, ToolCall
from strop.data.tokenizer import Tokenizer
from strop.data.tokens import encode_conversation, encode_prompt
from strop.errors import TemplateError
from tiny_tokenizers import write_folder

PLACE = Place("rows.jsonl", 1)
PAGE = Path(__file__).parents[2] / "docs" / "round-trips.md"

QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
WEATHER = (
    '{"type": "function", "function": {"name": "weather", "description": "Weather of a town.", "parameters": '
    '{"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]}}}'
)
CALL = Message("assistant", "", calls=(ToolCall("weather", '{"town": "Köln"}', "abcdefghi"),))
RESULT = Message("tool", '{"sky": "grey"}', call_id="abcdefghi", name="weather")


def talk(*turns: str, system: str | None = None) -> Conversation:
    head = (Message("system", system),) if system else ()
    turned = (Message("assistant" if number % 2 else "user", text) for number, text in enumerate(turns))
    return Conversation((*head, *turned), PLACE)


CONVERSATIONS = {
    "single": talk("How many apples are left?", "Natalia sold 48/2 = 24 clips.\n#### 24"),
    "multi-turn": talk("x + 2 = 7", "5", "And then?", "Done: 日本語."),
    "system": talk("Is it?", "It is.", system="Be brief."),
    "system, multi-turn": talk("One", "1", "Two", "2", system="Be kind."),
    "tools": Conversation(
        (Message("user", "Is it nice in Köln?"), CALL, RESULT, Message("assistant", "It is grey.")), PLACE, (WEATHER,)
    ),
}
NO_SYSTEM = {
    "gemma": "System role not supported",
    # What transformers renders for training lacks the system prompt that it sends with a question.
    "mistral": "renders an answered question unlike the question alone",
}
WITH_TOOLS = {"qwen25", "qwen3", "llama31", "mistral"}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("families")
    return cache(lambda family: write_folder(root / family, style(family)))


@pytest.fixture(scope="module")
def ours(folder_of: Callable[[str], Path]) -> Callable[[str], Tokenizer]:
    return cache(lambda family: Tokenizer.from_folder(folder_of(family)))


@pytest.fixture(scope="module")
def theirs(folder_of: Callable[[str], Path]) -> Callable[[str], Any]:
    from transformers import PreTrainedTokenizerFast

    return cache(lambda family: PreTrainedTokenizerFast.from_pretrained(folder_of(family)))


def as_dicts(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """The turns as rows of OpenAI's format have them, and as people hand them to transformers."""
    rows: list[dict[str, Any]] = []
    for message in messages:
        row: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.calls:
            functions = [{"name": call.name, "arguments": {"town": "Köln"}} for call in message.calls]
            row["content"] = None
            row["tool_calls"] = [
                {"type": "function", "id": call.id, "function": function}
                for call, function in zip(message.calls, functions, strict=True)
            ]
        if message.role == "tool":
            row |= {"tool_call_id": message.call_id, "name": message.name}
        rows.append(row)
    return rows


def rendered(tokenizer: Any, conversation: Conversation, turns: int | None = None, **options: Any) -> list[int]:
    import json

    tools = [json.loads(tool) for tool in conversation.tools] or None
    messages = as_dicts(conversation.messages[:turns])
    tokens: list[int] = tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=True, return_dict=False, **options
    )
    return tokens


@pytest.mark.parametrize("family", STYLES)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_tokens_are_those_of_transformers(
    ours: Callable[[str], Tokenizer], theirs: Callable[[str], Any], family: str, name: str
) -> None:
    """And so those that TRL trains on and that vLLM or transformers send, for training and for every question."""
    conversation, tokenizer = CONVERSATIONS[name], ours(family)
    if "system" in name and family in NO_SYSTEM:
        with pytest.raises(TemplateError, match=NO_SYSTEM[family]):
            encode_conversation(tokenizer, conversation)
        return
    if conversation.tools and family not in WITH_TOOLS:
        with pytest.raises(TemplateError, match="does not tell the model of its tools"):
            encode_conversation(tokenizer, conversation)
        return
    encoded = encode_conversation(tokenizer, conversation)
    mode = {"enable_thinking": False}
    prompt = rendered(theirs(family), conversation, -1, add_generation_prompt=True, **mode)
    asked = encode_prompt(tokenizer, conversation.messages[:-1], conversation.tools)
    whole = rendered(theirs(family), conversation, **mode)
    if family == "deepseek_r1":  # its own page asks with an empty block where there is to be no reasoning
        empty = theirs(family).encode("\n</think>\n\n", add_special_tokens=False)
        answer = whole[len(prompt) - len(theirs(family).encode("<think>\n", add_special_tokens=False)) :]
        prompt += empty
        whole = prompt + answer
    assert encoded.tokens.tolist() == whole
    assert asked.tolist() == prompt
    last = tokenizer.decode(encoded.tokens[len(prompt) :][encoded.learned[len(prompt) :]].tolist())
    assert last.strip().startswith(conversation.messages[-1].content)
    assert int(encoded.tokens[encoded.learned.nonzero()[0][-1]]) in tokenizer.stop_ids


@pytest.mark.parametrize("family", sorted(WITH_TOOLS))
def test_calls_of_tools_are_learned_and_what_tools_answer_is_read(
    ours: Callable[[str], Tokenizer], family: str
) -> None:
    tokenizer = ours(family)
    tokens, learned, _ = encode_conversation(tokenizer, CONVERSATIONS["tools"])
    taught, read = tokenizer.decode(tokens[learned].tolist()), tokenizer.decode(tokens[~learned].tolist())
    # Qwen3 writes an empty block before a call only while it is the last turn: the call is read there.
    assert ('"name": "weather", ' in taught) == (family != "qwen3")
    assert "It is grey." in taught
    assert "sky" in read
    assert "sky" not in taught
    stops = [stop for stop in tokenizer.stop_tokens if stop in taught]
    assert sum(taught.count(stop) for stop in stops) == (1 if family == "qwen3" else 2)


@pytest.mark.parametrize("family", ["qwen25", "llama31", "phi3", "internlm2", "gemma", "zephyr", "mistral", "qwen3"])
def test_prompt_and_completion_as_trl_has_them(
    ours: Callable[[str], Tokenizer], theirs: Callable[[str], Any], family: str
) -> None:
    conversation = CONVERSATIONS["single"]
    prompt = rendered(theirs(family), conversation, -1, add_generation_prompt=True)
    whole = rendered(theirs(family), conversation)
    completion = [number >= len(prompt) for number in range(len(whole))]
    tokens, learned, _ = encode_conversation(ours(family), conversation)
    assert tokens.tolist() == whole
    differing = [number for number in range(len(whole)) if completion[number] != learned[number]]
    text = ours(family).decode([whole[number] for number in differing])
    expected = {"qwen3": "<think>\n\n</think>\n\n\n", **dict.fromkeys(("llama31", "mistral"), "")}.get(family, "\n")
    assert text == expected
    assert bool(expected) == (("TRL", family) in reasons())


def test_the_marks_around_generations_mean_the_same(folder_of: Callable[[str], Path]) -> None:
    """``{% generation %}``, by which TRL's assistant_only_loss finds what is learned."""
    from transformers import PreTrainedTokenizerFast

    source = style("internlm2")["template"].replace(
        "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}",
        "{{- '<|im_start|>' + message.role + '\\n' }}{%- if message.role == 'assistant' %}{% generation %}"
        "{{- message.content + '<|im_end|>' }}{% endgeneration %}{%- else %}{{- message.content + '<|im_end|>' }}"
        "{%- endif %}{{- '\\n' }}",
    )
    folder = write_folder(folder_of("internlm2").parent / "marked", {**style("internlm2"), "template": source})
    conversation = CONVERSATIONS["system, multi-turn"]
    oracle = PreTrainedTokenizerFast.from_pretrained(folder).apply_chat_template(
        as_dicts(conversation.messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    tokens, learned, _ = encode_conversation(Tokenizer.from_folder(folder), conversation)
    assert tokens.tolist() == oracle["input_ids"]
    assert learned.astype(int).tolist() == oracle["assistant_masks"]


BOS, EOS = "{bos}", "{eos}"
FACTORY: dict[str, dict[str, str]] = {
    # What LLaMA-Factory's table says of prefix, system, question and answer; "fused": the system is in the question.
    "qwen25": {
        "default": QWEN,
        "system": "<|im_start|>system\n{}<|im_end|>\n",
        "user": "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        "assistant": "{}<|im_end|>\n",
    },
    "llama31": {
        "prefix": BOS,
        "system": "<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
        "user": "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "assistant": "{}<|eot_id|>",
    },
    "mistral": {"prefix": BOS, "fused": "{}\n\n", "user": "[INST] {}[/INST]", "assistant": " {}" + EOS},
    "gemma": {
        "prefix": BOS,
        "fused": "{}\n\n",
        "user": "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
        "assistant": "{}<end_of_turn>\n",
    },
    "phi3": {
        "system": "<|system|>\n{}<|end|>\n",
        "user": "<|user|>\n{}<|end|>\n<|assistant|>\n",
        "assistant": "{}<|end|>\n",
    },
    "internlm2": {
        "prefix": BOS,
        "default": "You are an AI assistant whose name is InternLM (书生·浦语).",  # and three sentences more
        "system": "<|im_start|>system\n{}<|im_end|>\n",
        "user": "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        "assistant": "{}<|im_end|>\n",
    },
    "zephyr": {
        "default": "You are Zephyr, a helpful assistant.",
        "system": "<|system|>\n{}" + EOS,
        "user": "<|user|>\n{}" + EOS + "<|assistant|>\n",
        "assistant": "{}" + EOS,
    },
    "qwen3": {
        "system": "<|im_start|>system\n{}<|im_end|>\n",
        "user": "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        "empty": "<think>\n\n</think>\n\n",  # behind every prompt, with enable_thinking: false
        "assistant": "{}<|im_end|>\n",
    },
}


def factory(family: str, conversation: Conversation, tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Tokens and what is learned of them, as LLaMA-Factory pairs prompts and responses."""
    slots = FACTORY[family]
    turns = list(conversation.messages)
    system = turns.pop(0).content if turns[0].role == "system" else slots.get("default", "")
    tokens: list[int] = []
    learned: list[bool] = []
    for number, turn in enumerate(turns):
        text = slots[turn.role].replace("{}", turn.content)
        if number == 0:
            if system and "fused" in slots:
                text = slots["user"].replace("{}", slots["fused"].replace("{}", system) + turn.content)
            elif system:
                text = slots["system"].replace("{}", system) + text
            text = slots.get("prefix", "") + text
        if turn.role == "user":
            text += slots.get("empty", "")
        text = text.replace(BOS, tokenizer.bos_token or "").replace(EOS, tokenizer.eos_token)
        ids = tokenizer.encode(text, add_special_tokens=False)
        tokens += ids
        learned += [turn.role == "assistant"] * len(ids)
    return tokens, learned


@pytest.mark.parametrize("family", FACTORY)
@pytest.mark.parametrize("name", [name for name in CONVERSATIONS if name != "tools"])
def test_tokens_are_those_of_llama_factory_or_the_page_says_why_not(
    ours: Callable[[str], Tokenizer], theirs: Callable[[str], Any], family: str, name: str
) -> None:
    known = reasons().get(("LLaMA-Factory", family), {})
    tokenizer, conversation = ours(family), CONVERSATIONS[name]
    expected, mask = factory(family, conversation, theirs(family))
    try:
        tokens, learned, _ = encode_conversation(tokenizer, conversation)
    except TemplateError:
        assert name in known["tokens"]
        return
    assert (tokens.tolist() != expected) == (name in known.get("tokens", ""))
    if tokens.tolist() == expected:
        differing = [token for token, one, other in zip(expected, mask, learned, strict=True) if one != other]
        assert bool(differing) == ("learned" in known)
        # What is learned there alone is the line break behind the stop token.
        assert tokenizer.decode(differing).strip("\n") == ""
        assert int(learned.sum()) + len(differing) == sum(mask)


@cache
def reasons() -> dict[tuple[str, str], dict[str, str]]:
    """The page's table: tool and family → what differs ("tokens" or "learned") → in which conversations."""
    rows = re.findall(
        r"^\| (TRL|LLaMA-Factory) \| `(\w+)` \| (tokens|learned) \| ([^|]+) \| [^|]{20,} \|$",
        PAGE.read_text("utf-8"),
        re.M,
    )
    table: dict[tuple[str, str], dict[str, str]] = {}
    for tool, family, what, where in rows:
        table.setdefault((tool, family), {})[what] = [part.strip() for part in where.split(";")]  # type: ignore[assignment]
    return table


def test_the_page_names_families_that_are_tested() -> None:
    assert {family for _, family in reasons()} <= set(FACTORY)
    assert len(reasons()) >= 8
