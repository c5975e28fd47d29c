"""What is learned is under control: which answers, what each part weighs, reasoning, calls of tools, plain texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import style
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.data.examples import Dataset, prepare
from strop.data.records import Conversation, Message, Place, Refusal, Span, ToolCall
from strop.data.segments import Learn
from strop.data.thinking import answers_thinking, settle_thinking, whole_answer
from strop.data.tokenizer import Tokenizer
from strop.data.tokens import Encoded, encode_conversation, encode_prompt
from strop.errors import TemplateError
from strop.recipe.schema import DataSection
from tiny_tokenizers import CHATML, write_folder

PLACE = Place("rows.jsonl", 1)


def talk(*messages: Message, tools: tuple[str, ...] = ()) -> Conversation:
    return Conversation(messages, PLACE, tools)


def user(text: str) -> Message:
    return Message("user", text)


def bot(text: str, **more: Any) -> Message:
    return Message("assistant", text, **more)


def learned(tokenizer: Tokenizer, encoded: Encoded) -> str:
    return tokenizer.decode(encoded.tokens[encoded.learned].tolist())


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tokenizer]:
    root = tmp_path_factory.mktemp("families")
    return cache(lambda name: Tokenizer.from_folder(write_folder(root / name, style(name))))


TWO = talk(Message("system", "Be brief."), user("One?"), bot("First."), user("Two?"), bot("Second."))


# ── data.learn ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("learn", "text"),
    [("answers", "First.<|im_end|>Second.<|im_end|>"), ("last", "Second.<|im_end|>")],
)
def test_answers_or_the_last_one(chatml: Tokenizer, learn: Learn, text: str) -> None:
    assert learned(chatml, encode_conversation(chatml, TWO, learn)) == text


def test_everything_but_the_first_token(chatml: Tokenizer) -> None:
    encoded = encode_conversation(chatml, TWO, "all")
    assert encoded.learned.tolist() == [False] + [True] * (len(encoded.tokens) - 1)
    assert encoded.weights is None


def test_what_is_learned_changes_no_token(chatml: Tokenizer) -> None:
    tokens = [encode_conversation(chatml, TWO, learn).tokens.tolist() for learn in ("answers", "last", "all")]
    assert tokens[0] == tokens[1] == tokens[2]


def test_the_recipe_decides(tmp_path: Path, chatml: Tokenizer) -> None:
    turns = [{"role": message.role, "content": message.content} for message in TWO.messages]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": turns}) + "\n")
    counts = {
        learn: int(data(chatml, file, learn=learn).learned[0].learned.sum()) for learn in ("answers", "last", "all")
    }
    assert counts["last"] < counts["answers"] < counts["all"]


def data(tokenizer: Tokenizer, file: Path, **section: Any) -> Dataset:
    return prepare(DataSection(train=str(file), eval=0, **section), tokenizer, seed=0)


def test_a_plain_text_is_learned_whole_and_learns_to_end(
    tokenizer_of: Callable[[str], Tokenizer], family: Callable[[str], Tokenizer]
) -> None:
    text = "Once upon <|im_end|> a time </s>."
    for tokenizer in (tokenizer_of("chatml"), tokenizer_of("llama2"), family("llama31")):
        tokens, taught, weights = encode_conversation(tokenizer, Conversation((), PLACE, text=text))
        assert tokens[-1] == tokenizer.eos
        assert tokenizer.decode(tokens.tolist()).endswith(text + tokenizer.backend.id_to_token(tokenizer.eos or 0))
        assert taught.tolist() == [False] + [True] * (len(tokens) - 1)
        assert weights is None
        assert not {*tokenizer.special_tokens.values()} & {*tokens[1:-1].tolist()}


def test_a_plain_text_begins_as_the_tokenizer_begins_texts(tmp_path: Path) -> None:
    from tokenizers import processors

    folder = write_folder(tmp_path, style("llama31"))
    tokenizer = Tokenizer.from_folder(folder)
    bos = tokenizer.special_tokens["<|begin_of_text|>"]
    tokenizer.backend.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
    )
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    encoded = encode_conversation(Tokenizer.from_folder(folder), Conversation((), PLACE, text="hello"))
    assert encoded.tokens[0] == bos
    assert encoded.learned.tolist() == [False] + [True] * (len(encoded.tokens) - 1)
    answered = encode_conversation(Tokenizer.from_folder(folder), talk(user("Hi"), bot("Ho")))
    assert answered.tokens.tolist().count(bos) == 1


# ── weights ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_turn_that_weighs_nothing_is_read(chatml: Tokenizer) -> None:
    encoded = encode_conversation(chatml, talk(user("a"), bot("b", weight=0.0), user("c"), bot("d")))
    assert learned(chatml, encoded) == "d<|im_end|>"
    assert encoded.weights is None


def test_a_turn_s_weight_holds_for_its_stop_token_too(chatml: Tokenizer) -> None:
    encoded = encode_conversation(chatml, talk(user("a"), bot("b b", weight=0.25), user("c"), bot("d")))
    assert encoded.weights is not None
    assert encoded.weights.dtype == np.float32
    runs = encoded.weights[encoded.learned].tolist()
    first = len(chatml.encode("b b", special=False)) + 1
    assert runs == [0.25] * first + [1.0] * (len(runs) - first)
    assert ((encoded.weights > 0) == encoded.learned).all()


def test_a_weight_in_the_row_wins_over_the_recipe(chatml: Tokenizer) -> None:
    weighted = talk(user("a"), bot("b", weight=1.0), user("c"), bot("d"))
    assert learned(chatml, encode_conversation(chatml, weighted, "last")) == "b<|im_end|>d<|im_end|>"


def test_nothing_that_weighs_is_refused(chatml: Tokenizer) -> None:
    with pytest.raises(TemplateError, match="nothing of it would be learned"):
        encode_conversation(chatml, talk(user("a"), bot("b", weight=0.0)))


def test_only_answers_are_weighted(chatml: Tokenizer) -> None:
    with pytest.raises(TemplateError, match="a turn of the role user has a weight"):
        encode_conversation(chatml, talk(Message("user", "a", weight=1.0), bot("b")))


def test_spans_weigh_exactly_their_characters(chatml: Tokenizer) -> None:
    answer = "Think. The answer is 72."
    start = answer.index("72")
    spans = (Span(0, 6, 0.0), Span(start, start + 2, 5.0))
    encoded = encode_conversation(chatml, talk(user("How many?"), bot(answer, spans=spans)))
    assert encoded.weights is not None
    by_weight = {
        weight: chatml.decode(encoded.tokens[encoded.weights == weight].tolist()) for weight in (0.0, 1.0, 5.0)
    }
    assert by_weight[5.0] == "72"
    assert by_weight[1.0] == " The answer is .<|im_end|>"
    assert by_weight[0.0].endswith("Think.\n")


@settings(max_examples=60)
@given(
    pieces=st.lists(
        st.tuples(st.sampled_from(["a", "word ", "é", "日本", "<|im_end|>", "\n", "  ", "🙂"]), st.integers(0, 3)),
        min_size=1,
        max_size=6,
    ).filter(lambda pieces: "".join(text for text, _ in pieces).strip() and any(weight for _, weight in pieces))
)
def test_every_piece_weighs_what_its_span_says(chatml: Tokenizer, pieces: list[tuple[str, int]]) -> None:
    """Spans that cover a whole answer; what is put between answers by the template is cut off at both ends."""
    content = "".join(text for text, _ in pieces)
    spans, at = [], 0
    for text, weight in pieces:
        spans.append(Span(at, at + len(text), float(weight)))
        at += len(text)
    encoded = encode_conversation(chatml, talk(user("x"), bot(content, spans=tuple(spans))))
    prompt = len(encode_prompt(chatml, [user("x")]))
    end = chatml.stop_tokens["<|im_end|>"]
    rest, given = encoded.tokens[prompt:].tolist(), np.zeros(len(encoded.tokens) - prompt)
    given[:] = (encoded.learned if encoded.weights is None else encoded.weights)[prompt:]
    assert chatml.decode(rest) == content + "<|im_end|>\n"
    position = 0
    for text, weight in pieces:
        lengths = range(1, len(rest) - position)
        length = next(n for n in lengths if chatml.decode(rest[position : position + n]) == text)
        assert given[position : position + length].tolist() == [weight] * length
        position += length
    assert (rest[position], given[position]) == (end, 1.0)


def test_a_control_token_that_a_border_cuts_stays_text(chatml: Tokenizer) -> None:
    answer = "<|im_end|>"
    encoded = encode_conversation(chatml, talk(user("x"), bot(answer, spans=(Span(0, 5, 2.0),))))
    end = chatml.stop_tokens["<|im_end|>"]
    assert encoded.tokens[encoded.learned].tolist().count(end) == 1
    assert learned(chatml, encoded) == answer + "<|im_end|>"


# ── reasoning ────────────────────────────────────────────────────────────────────────────────────────────────────────

REASONED = bot("<think>\nSix and one.\n</think>\n\nSeven.")
BESIDE = bot("Seven.", thinking="Six and one.")


@pytest.mark.parametrize("answer", [REASONED, BESIDE], ids=["inside", "beside"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen3", "<think>\nSix and one.\n</think>\n\nSeven.<|im_end|>"),
        ("qwen25", "<think>\nSix and one.\n</think>\n\nSeven.<|im_end|>"),
        # Its prompt opens the block itself.
        ("deepseek_r1", "Six and one.\n</think>\n\nSeven.<｜end▁of▁sentence｜>"),
    ],
)
def test_reasoning_is_learned(family: Callable[[str], Tokenizer], name: str, text: str, answer: Message) -> None:
    tokenizer, conversation = family(name), talk(user("6 + 1?"), answer)
    encoded = encode_conversation(tokenizer, conversation)
    assert learned(tokenizer, encoded) == text
    assert answers_thinking(conversation)
    prompt = encode_prompt(tokenizer, conversation.messages[:-1], thinking=True)
    assert prompt.tolist() == encoded.tokens[: len(prompt)].tolist()
    assert encoded.learned[len(prompt)]


@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1"])
def test_an_empty_block_is_read_and_chat_sends_it(family: Callable[[str], Tokenizer], name: str) -> None:
    tokenizer, conversation = family(name), talk(user("6 + 1?"), bot("Seven."))
    encoded = encode_conversation(tokenizer, conversation)
    assert learned(tokenizer, encoded).startswith("Seven.")
    prompt = encode_prompt(tokenizer, conversation.messages[:-1])
    assert tokenizer.decode(prompt.tolist()).endswith("<think>\n\n</think>\n\n")
    assert prompt.tolist() == encoded.tokens[: len(prompt)].tolist()


def test_an_empty_block_of_a_template_without_a_switch_is_read_too(tmp_path: Path) -> None:
    template = CHATML.replace(
        "message['content'] +",
        "('<think>\\n\\n</think>\\n\\n' if message.role == 'assistant' and loop.last else '') + message['content'] +",
    )
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, "chatml", template=template))
    encoded = encode_conversation(tokenizer, talk(user("6 + 1?"), bot("Seven.")))
    assert learned(tokenizer, encoded) == "Seven.<|im_end|>"
    assert tokenizer.decode(encode_prompt(tokenizer, [user("6 + 1?")]).tolist()).endswith("</think>\n\n")


@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1"])
@pytest.mark.parametrize("answer", [REASONED, bot("Seven.")], ids=["reasoned", "plain"])
def test_earlier_answers_that_are_rewritten_are_only_read(
    family: Callable[[str], Tokenizer], name: str, answer: Message
) -> None:
    tokenizer = family(name)
    conversation = talk(user("6 + 1?"), answer, user("And 2?"), answer)
    encoded = encode_conversation(tokenizer, conversation)
    assert learned(tokenizer, encoded).count("Seven.") == 1
    assert learned(tokenizer, encoded).count("Six and one.") == (1 if answer is REASONED else 0)
    asked = encode_prompt(tokenizer, conversation.messages[:-1], thinking=answer is REASONED)
    assert asked.tolist() == encoded.tokens[: len(asked)].tolist()
    assert int(np.flatnonzero(encoded.learned)[0]) == len(asked)


def test_reasoning_between_calls_survives(family: Callable[[str], Tokenizer]) -> None:
    """Qwen3 keeps the reasoning behind the last question, calls of tools included."""
    call = bot("", thinking="Look it up.", calls=(ToolCall("weather", '{"town": "Ulm"}'),))
    conversation = talk(user("Nice?"), call, Message("tool", "sun"), BESIDE, tools=(WEATHER,))
    text = learned(family("qwen3"), encode_conversation(family("qwen3"), conversation))
    assert text.count("<|im_end|>") == 2
    assert text.index("Look it up.") < text.index('"name": "weather"') < text.index("Six and one.")


@pytest.mark.parametrize("answer", [REASONED, BESIDE], ids=["inside", "beside"])
def test_reasoning_is_dropped(chatml: Tokenizer, answer: Message) -> None:
    dropped = settle_thinking(talk(user("6 + 1?"), answer), "drop")
    assert isinstance(dropped, Conversation)
    assert learned(chatml, encode_conversation(chatml, dropped)) == "Seven.<|im_end|>"
    kept = settle_thinking(talk(user("6 + 1?"), answer), None)
    assert kept == settle_thinking(talk(user("6 + 1?"), answer), "keep") == talk(user("6 + 1?"), answer)


def test_spans_move_along_when_reasoning_is_dropped() -> None:
    content = "<think>x</think>\n\nIt is 7."
    at = content.index("7")
    spans = (Span(7, 8, 0.5), Span(at, at + 1, 3.0))
    dropped = settle_thinking(talk(user("?"), bot(content, spans=spans)), "drop")
    assert isinstance(dropped, Conversation)
    (span,) = dropped.messages[-1].spans
    assert (dropped.messages[-1].content[span.start : span.end], span.weight) == ("7", 3.0)


def test_an_answer_that_is_all_reasoning_is_refused_where_it_is_dropped() -> None:
    refused = settle_thinking(talk(user("?"), bot("<think>x</think>")), "drop")
    assert isinstance(refused, Refusal)
    assert "nothing but reasoning" in refused.reason


def test_the_data_set_knows_whether_it_reasons(tmp_path: Path, family: Callable[[str], Tokenizer]) -> None:
    file = tmp_path / "rows.jsonl"
    row = {"question": "6 + 1?", "answer": REASONED.content}
    file.write_text(json.dumps(row) + "\n")
    tokenizer = family("qwen3")
    kept, dropped = data(tokenizer, file), data(tokenizer, file, thinking="drop")
    assert (kept.thinking, dropped.thinking) == (True, False)
    assert "Six" in tokenizer.decode(kept.learned[0].tokens.tolist())
    assert "Six" not in tokenizer.decode(dropped.learned[0].tokens.tolist())


def test_control_tokens_around_reasoning_are_tokens_and_inside_it_text(tmp_path: Path) -> None:
    """Some tokenizers have the tags as control tokens: the row's markup, unlike what stands between them."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    folder = write_folder(tmp_path, {**style("qwen3"), "special": special})
    tokenizer = Tokenizer.from_folder(folder)
    answer = bot("<think>\nWrite <think> or <|im_end|>.\n</think>\n\nSo </think> it is.")
    encoded = encode_conversation(tokenizer, talk(user("<think>?"), answer))
    tags = [tokenizer.special_tokens[tag] for tag in ("<think>", "</think>", "<|im_end|>")]
    assert [encoded.tokens[encoded.learned].tolist().count(tag) for tag in tags] == [1, 1, 1]
    assert learned(tokenizer, encoded) == answer.content + "<|im_end|>"


def test_an_answer_in_the_history_has_its_opening_again() -> None:
    assert whole_answer("Six.\n</think>\n\nSeven.") == "<think>\nSix.\n</think>\n\nSeven."
    assert whole_answer("<think>Six.</think>Seven.") == "<think>Six.</think>Seven."
    assert whole_answer("Seven.") == "Seven."


# ── tools ────────────────────────────────────────────────────────────────────────────────────────────────────────────

WEATHER = json.dumps(
    {"type": "function", "function": {"name": "weather", "description": "of a town", "parameters": {}}}
)


def test_control_tokens_in_tools_and_calls_stay_text(family: Callable[[str], Tokenizer]) -> None:
    tool = WEATHER.replace("of a town", "ends in <|im_end|>")
    call = bot("", calls=(ToolCall("weather", '{"town": "<|im_start|>"}'),))
    evil = talk(user("?"), call, Message("tool", "<|im_end|>"), bot("So."), tools=(tool,))
    good = talk(
        user("?"),
        replace(call, calls=(ToolCall("weather", '{"town": "x"}'),)),
        Message("tool", "x"),
        bot("So."),
        tools=(WEATHER,),
    )
    tokenizer = family("qwen25")
    control = set(tokenizer.special_tokens.values())
    counts = [
        [token for token in encode_conversation(tokenizer, one).tokens.tolist() if token in control]
        for one in (evil, good)
    ]
    assert counts[0] == counts[1]
    assert "<|im_start|>" in learned(tokenizer, encode_conversation(tokenizer, evil))


def test_calls_that_a_template_does_not_render_are_refused(chatml: Tokenizer) -> None:
    call = bot("", calls=(ToolCall("weather", "{}"),))
    with pytest.raises(TemplateError, match="does not render calls of tools"):
        encode_conversation(chatml, talk(user("?"), call))
    with pytest.raises(TemplateError, match="does not tell the model of its tools"):
        encode_conversation(chatml, talk(user("?"), bot("!"), tools=(WEATHER,)))


def test_a_system_prompt_that_the_template_leaves_out_is_refused(tmp_path: Path) -> None:
    template = CHATML.replace("for message in messages", "for message in messages if message.role != 'system'")
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, "chatml", template=template))
    with pytest.raises(TemplateError, match="leaves out the system prompt"):
        encode_conversation(tokenizer, talk(Message("system", "Professor."), user("?"), bot("!")))
