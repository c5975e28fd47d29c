"""The two promises about tokens: what is asked is what was trained, and data never becomes a control token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.data.records import Conversation, Message, Place
from strop.data.tokenizer import Tokenizer
from strop.data.tokens import encode_conversation, encode_conversations, encode_prompt
from strop.errors import TemplateError
from tiny_tokenizers import CHATML, KINDS, write_folder

PLACE = Place("rows.jsonl", 1)
STYLES = sorted(KINDS)

PLAIN = [
    [("user", "How many apples are left?"), ("assistant", "Natalia sold 48/2 = 24 clips.\n#### 24")],
    [
        ("system", "Be brief."),
        ("user", "x + 2 = 7"),
        ("assistant", "5"),
        ("user", "And  then?"),
        ("assistant", "Done."),
    ],
    [("user", "Größe? 日本語 🙂"), ("assistant", "naïve\n\nStep 1:\n  it's"), ("user", "ok"), ("assistant", "a")],
]

FRAGMENTS = [
    "hello",
    "Step 1:",
    " ",
    "  ",
    "\n",
    "\n\n",
    "é",
    "日本",
    "🙂",
    "x",
    "0",
    "{{ 7*7 }}",
    "{% if %}",
    "\ue000",
    "\U000f0001",
]
CONTROL = [
    "<|im_end|>",
    "<|im_start|>assistant\n",
    "<|eot_id|>",
    "<|end_header_id|>",
    "</s>",
    "<s>",
    "<|im_",
    "end|>",
    "<|end|>",
]

contents = st.lists(st.sampled_from(FRAGMENTS + CONTROL), min_size=1, max_size=6).map("".join).filter(str.strip)


def talk(*turns: tuple[str, str]) -> Conversation:
    return Conversation(tuple(Message(role, content) for role, content in turns), PLACE)  # type: ignore[arg-type]


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    turns = [("system", draw(contents))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns += [("user", draw(contents)), ("assistant", draw(contents))]
    return talk(*turns)


@pytest.mark.parametrize("kind", STYLES)
@settings(max_examples=60)
@given(conversation=conversations())
def test_every_prompt_is_the_beginning_of_what_was_trained(
    tokenizer_of: Callable[[str], Tokenizer], kind: str, conversation: Conversation
) -> None:
    tokenizer = tokenizer_of(kind)
    tokens, learned, _ = encode_conversation(tokenizer, conversation)
    expected = [False] * len(tokens)
    for turn, message in enumerate(conversation.messages):
        if message.role != "assistant":
            continue
        prompt = encode_prompt(tokenizer, conversation.messages[:turn])
        assert prompt.tolist() == tokens[: len(prompt)].tolist()
        stop = next(at for at in range(len(prompt), len(tokens)) if int(tokens[at]) in tokenizer.stop_ids)
        expected[len(prompt) : stop + 1] = [True] * (stop + 1 - len(prompt))
    assert learned.tolist() == expected


@pytest.mark.parametrize("kind", STYLES)
@settings(max_examples=60)
@given(conversation=conversations())
def test_no_control_token_comes_out_of_the_data(
    tokenizer_of: Callable[[str], Tokenizer], kind: str, conversation: Conversation
) -> None:
    tokenizer = tokenizer_of(kind)
    control = set(tokenizer.special_tokens.values())
    tokens, _, _ = encode_conversation(tokenizer, conversation)
    harmless = Conversation(tuple(Message(message.role, "x") for message in conversation.messages), PLACE)
    wanted, _, _ = encode_conversation(tokenizer, harmless)
    assert [i for i in tokens.tolist() if i in control] == [i for i in wanted.tolist() if i in control]


def chatml_text(turns: Sequence[Message]) -> str:
    system = [] if turns[0].role == "system" else [Message("system", "Be kind.")]
    return "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in [*system, *turns])


def llama2_text(turns: Sequence[Message]) -> str:
    system = f"<<SYS>>\n{turns[0].content}\n<</SYS>>\n\n" if turns[0].role == "system" else ""
    turns = turns[1:] if system else turns
    pairs = zip(turns[::2], turns[1::2], strict=True)
    texts = [f"<s>[INST] {asked.content} [/INST] {answered.content} </s>" for asked, answered in pairs]
    return "".join(texts).replace("[INST] ", f"[INST] {system}", 1)


@pytest.mark.parametrize(("kind", "written"), [("chatml", chatml_text), ("llama2", llama2_text)])
@settings(max_examples=100)
@given(conversation=conversations())
def test_the_tokens_spell_the_text_character_for_character(
    tokenizer_of: Callable[[str], Tokenizer],
    kind: str,
    written: Callable[[Sequence[Message]], str],
    conversation: Conversation,
) -> None:
    tokens, _, _ = encode_conversation(tokenizer_of(kind), conversation)
    assert tokenizer_of(kind).decode(tokens.tolist()) == written(conversation.messages)


@pytest.mark.parametrize("kind", STYLES)
@pytest.mark.parametrize("turns", PLAIN, ids=["single", "system", "unicode"])
def test_tokens_equal_those_of_transformers(
    folder_of: Callable[[str], Path], tokenizer_of: Callable[[str], Tokenizer], kind: str, turns: list[tuple[str, str]]
) -> None:
    from transformers import PreTrainedTokenizerFast

    oracle = PreTrainedTokenizerFast.from_pretrained(folder_of(kind))
    messages = [{"role": role, "content": content} for role, content in turns]
    conversation = talk(*turns)
    expected = oracle.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert encode_conversation(tokenizer_of(kind), conversation).tokens.tolist() == expected
    expected = oracle.apply_chat_template(messages[:-1], tokenize=True, return_dict=False, add_generation_prompt=True)
    assert encode_prompt(tokenizer_of(kind), conversation.messages[:-1]).tolist() == expected


def test_an_answer_is_learned_from_its_first_character_to_its_stop_token(chatml: Tokenizer) -> None:
    tokens, learned, _ = encode_conversation(chatml, talk(("user", "2 + 2?"), ("assistant", "It is 4.")))
    assert chatml.decode(tokens[learned].tolist()) == "It is 4.<|im_end|>"
    assert chatml.decode(tokens[~learned].tolist()).endswith("<|im_start|>assistant\n\n")


def test_a_stop_token_in_the_answer_does_not_end_it(chatml: Tokenizer) -> None:
    answer = "Write <|im_end|> to stop."
    tokens, learned, _ = encode_conversation(chatml, talk(("user", "How?"), ("assistant", answer)))
    assert chatml.decode(tokens[learned].tolist()) == answer + "<|im_end|>"
    assert tokens[learned].tolist().count(chatml.stop_tokens["<|im_end|>"]) == 1


def test_a_stop_token_before_the_answer_does_not_end_it(tmp_path: Path) -> None:
    template = CHATML.replace(
        "+ message['content']", "+ ('<|im_end|>' if message.role == 'assistant' else '') + message['content']"
    )
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, "chatml", template=template))
    tokens, learned, _ = encode_conversation(tokenizer, talk(("user", "How?"), ("assistant", "So.")))
    assert tokenizer.decode(tokens[learned].tolist()) == "<|im_end|>So.<|im_end|>"


def test_a_control_token_in_the_data_is_encoded_as_ordinary_text(chatml: Tokenizer) -> None:
    tokens, learned, _ = encode_conversation(chatml, talk(("user", "How?"), ("assistant", "<|im_end|>")))
    stop = chatml.stop_tokens["<|im_end|>"]
    assert tokens[learned].tolist() == [*chatml.encode("<|im_end|>", special=False), stop]


def test_a_control_token_that_the_vocabulary_spells_is_broken_up(tmp_path: Path) -> None:
    """</s> as an ordinary word of the vocabulary, which merges would reach."""
    import tokenizers
    from tokenizers import models

    vocabulary = {"<": 0, "/": 1, "s": 2, ">": 3, "a": 4, "</": 5, "s>": 6, "</s>": 7, "\n": 8, ":": 9}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [("<", "/"), ("s", ">"), ("</", "s>")]))
    template = (
        "{% for m in messages %}{{ m.role[0] + ':' + m.content }}{{ '</s>' if m.role == 'assistant' }}{% endfor %}"
    )
    template += "{% if add_generation_prompt %}a:{% endif %}"
    backend.add_tokens(["u"])
    tokenizer = Tokenizer(backend, template, {"eos_token": "</s>"})
    assert tokenizer.encode("</s>", special=False) == [7]
    tokens, learned, _ = encode_conversation(tokenizer, talk(("user", "a</s>a"), ("assistant", "</s>")))
    assert tokens.tolist().count(7) == 1
    assert tokens[learned].tolist() == [0, 1, 6, 7]
    assert tokenizer.decode(tokens.tolist()).replace(" ", "") == "u:a</s>aa:</s></s>"


def test_an_answer_gets_no_space_that_belongs_to_the_beginning_of_a_text(tmp_path: Path) -> None:
    """A Metaspace tokenizer writes "▁" before a text; the piece behind "assistant:" is no beginning."""
    template = "{% for m in messages %}{{ m.role + ':' + m.content + (eos_token if m.role == 'assistant' else ' ') }}"
    template += "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, "llama2", template=template))
    tokens, learned, _ = encode_conversation(tokenizer, talk(("user", "ok"), ("assistant", "done")))
    pieces = [tokenizer.backend.id_to_token(int(token)) for token in tokens[learned]]
    assert "".join(pieces) == "done</s>"
    assert tokenizer.decode(tokens.tolist()) == "user:ok assistant:done</s>"


def test_many_are_encoded_as_one_by_one(chatml: Tokenizer) -> None:
    good = [talk(*turns) for turns in PLAIN]
    together = encode_conversations(chatml, good)
    for conversation, encoded in zip(good, together, strict=True):
        assert not isinstance(encoded, TemplateError)
        assert encoded.tokens.tolist() == encode_conversation(chatml, conversation).tokens.tolist()


REWRITES = CHATML.replace(
    "message['content'] +", "(message['content'] if loop.last or message.role == 'user' else 'forgotten') +"
)
FORGETS = "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% else %}" + CHATML + "{% endif %}"
REFUSED = {
    "leaves the question out of the prompt": FORGETS,
    "would not end the answer in a stop token": CHATML.replace(
        "'<|im_end|>\\n' -}}\n{%- endfor", "'\\n' -}}\n{%- endfor"
    ),
    "changes the answer": CHATML.replace("message['content'] +", "message['content'] | upper +"),
    "renders an answered question unlike the question alone": CHATML.replace(
        "assistant\\n' -}}", "assistant\\nWell: ' -}}"
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_template_that_would_teach_something_else_is_refused(tmp_path: Path, reason: str) -> None:
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, "chatml", template=REFUSED[reason]))
    conversation = talk(("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four"))
    with pytest.raises(TemplateError, match=reason) as caught:
        encode_conversation(tokenizer, conversation)
    assert caught.value.do
    assert isinstance(encode_conversations(tokenizer, [conversation])[0], TemplateError)


def test_a_history_that_the_template_rewrites_can_still_be_asked(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, "chatml", template=REWRITES))
    history = talk(("user", "one"), ("assistant", "two"), ("user", "three")).messages
    text = tokenizer.decode(encode_prompt(tokenizer, history).tolist())
    assert text.endswith("user\nthree<|im_end|>\n<|im_start|>assistant\n")
    assert "forgotten" in text
