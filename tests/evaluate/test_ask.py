"""What is trained is what is asked: the prompt that is sent is the sample's own, token for token."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import strop.evaluate.ask as ask_module
from strop.data.examples import Dataset, prepare
from strop.data.records import Example, Message, Place
from strop.data.tokenizer import Tokenizer
from strop.data.tokens import encode_prompt
from strop.errors import DataError
from strop.evaluate.ask import AnswerText, Question, answer_questions, question_of_sample, question_of_text
from strop.evaluate.chat import Chat
from strop.evaluate.compare import compare
from strop.evaluate.tuned import TunedModel, load_tuned
from strop.model.decoder import Decoder
from strop.model.generate import Answer
from strop.model.load import load_decoder
from strop.run.folder import RunFolder
from tiny_run import RECIPE, Tiny, write_rows


class Spy:
    """Stands where answers are generated: keeps what it was asked and answers with a text."""

    def __init__(self, tokenizer: Tokenizer, answer: str = "It is 5.") -> None:
        self.answer = tokenizer.encode(answer, special=False)
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self, decoder: Any, adapter: Any, prompts: Any, stop_tokens: Any, max_tokens: int, **rest: Any
    ) -> list[Answer]:
        self.calls.append(
            {"adapter": adapter, "prompts": prompts, "stop_tokens": stop_tokens, "max_tokens": max_tokens, **rest}
        )
        if rest.get("on_token"):
            for token in self.answer:
                rest["on_token"](0, token)
        return [Answer(self.answer, True) for _ in prompts]

    @property
    def prompts(self) -> list[list[int]]:
        """All prompts, in order."""
        return [prompt for call in self.calls for prompt in call["prompts"]]


@pytest.fixture(scope="module")
def tokenizer(tiny: Tiny) -> Tokenizer:
    return Tokenizer.from_folder(tiny.model)


@pytest.fixture(scope="module")
def decoder(tiny: Tiny) -> Decoder:
    return load_decoder(tiny.model)


@pytest.fixture(scope="module")
def dataset(tiny: Tiny, tokenizer: Tokenizer) -> Dataset:
    return prepare(tiny.recipe().recipe.data, tokenizer, seed=0)


@pytest.fixture(scope="module")
def model(finished: RunFolder) -> TunedModel:
    return load_tuned(finished.path)


@pytest.fixture
def spy(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Spy:
    spy = Spy(tokenizer)
    monkeypatch.setattr(ask_module, "generate", spy)
    return spy


def trained_prompt(example: Example) -> list[int]:
    """The tokens of a sample up to its last answer."""
    learned = np.flatnonzero(example.learned)
    gaps = np.flatnonzero(np.diff(learned) > 1)
    first = learned[gaps[-1] + 1] if len(gaps) else learned[0]
    tokens: list[int] = example.tokens[:first].tolist()
    return tokens


# ── prompts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_samples_question_is_asked_as_it_was_trained(
    dataset: Dataset, tokenizer: Tokenizer, decoder: Decoder, spy: Spy
):
    examples = [*dataset.learned, *dataset.held_out]
    answer_questions(decoder, None, tokenizer, [question_of_sample(example) for example in examples], 9)
    assert spy.prompts == [trained_prompt(example) for example in examples]
    (call,) = spy.calls
    assert call["stop_tokens"] == sorted(tokenizer.stop_ids) != []
    assert (call["max_tokens"], call["temperature"]) == (9, 0.0)


def test_a_run_is_asked_with_the_system_prompt_it_was_trained_with(model: TunedModel, dataset: Dataset, spy: Spy):
    examples = dataset.learned
    model.ask([question_of_sample(example).text for example in examples], max_tokens=7, temperature=0.5)
    assert spy.prompts == [trained_prompt(example) for example in examples]
    assert "Be exact." in model.tokenizer.decode(spy.prompts[0])
    (call,) = spy.calls
    assert call["adapter"] is model.adapter
    assert (call["max_tokens"], call["temperature"], call["seed"]) == (7, 0.5, 0)
    model.ask(["Why?"], tuned=False)
    assert spy.calls[-1]["adapter"] is None


def test_a_system_prompt_is_asked_as_given_or_left_to_the_template(tokenizer: Tokenizer):
    def prompt(system: str | None) -> str:
        return tokenizer.decode(encode_prompt(tokenizer, question_of_text("Why?", system).messages).tolist())

    assert "system\nBe brief." in prompt("Be brief.")
    assert "system\nBe kind." in prompt(None)  # what the template puts there by itself


def conversations() -> list[dict[str, Any]]:
    """Rows of several turns, each with its own system prompt, which end in the same question."""
    return [
        {
            "messages": [
                {"role": "system", "content": f"You are number {number}."},
                {"role": "user", "content": f"Let x = {number}."},
                {"role": "assistant", "content": "Done."},
                {"role": "user", "content": "What is x + 1?"},
                {"role": "assistant", "content": f"x + 1 = {number + 1}."},
            ]
        }
        for number in range(8)
    ]


def test_what_is_watched_is_compared_with_its_whole_history(
    tiny: Tiny, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    several = Tiny(tiny.model, write_rows(tmp_path / "several.jsonl", conversations()))
    changes = {name: value for name, value in RECIPE.items() if name != "data.system"}
    monkeypatch.setattr("tiny_run.RECIPE", {**changes, "data.eval": 3, "train.steps": 1})
    run = several.train(tmp_path / "run")
    held_out = prepare(several.recipe().recipe.data, tokenizer, seed=0).held_out

    spy = Spy(tokenizer)
    monkeypatch.setattr(ask_module, "generate", spy)
    answers = compare(run.path)
    assert spy.prompts == [trained_prompt(example) for example in held_out] * 2
    assert [call["adapter"] is None for call in spy.calls] == [True, False]
    references = [example.conversation.messages[-1].content for example in held_out if example.conversation]
    assert [(answer["question"], answer["reference"]) for answer in answers] == [
        ("What is x + 1?", reference) for reference in references
    ]


def test_a_sample_without_its_conversation_cannot_be_asked():
    example = Example(np.array([1], np.int32), np.array([True]), 7, Place("x.jsonl", 1))
    with pytest.raises(ValueError, match="sample 7"):
        question_of_sample(example)


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_answer_is_its_text_without_control_tokens(
    tokenizer: Tokenizer, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
):
    spy = Spy(tokenizer)
    spy.answer = [*tokenizer.encode("Größe 🙂", special=False), tokenizer.special_tokens["<|im_start|>"]]
    monkeypatch.setattr(ask_module, "generate", spy)
    pieces: list[str] = []
    question = question_of_text("Why?", None)
    (answer,) = answer_questions(decoder, None, tokenizer, [question], 50, on_text=pieces.append)
    assert answer == AnswerText("Größe 🙂", True, len(spy.answer))
    assert "".join(pieces) == answer.text
    assert len(pieces) > 1
    assert not any("\ufffd" in piece for piece in pieces), "half a character is held back"


def test_a_text_that_ends_in_half_a_character_is_told_to_its_end(
    tokenizer: Tokenizer, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
):
    spy = Spy(tokenizer, "a🙂")
    spy.answer = spy.answer[:-1]
    monkeypatch.setattr(ask_module, "generate", spy)
    pieces: list[str] = []
    (answer,) = answer_questions(decoder, None, tokenizer, [question_of_text("Why?", None)], 50, on_text=pieces.append)
    assert "".join(pieces) == answer.text


def test_the_line_that_is_kept_can_be_asked_again():
    question = Question((Message("system", "Be exact."), Message("user", "Why?")), "So.")
    kept = AnswerText("Because.", False, 3).as_sample(20, question)
    assert kept == {
        "step": 20,
        "messages": [{"role": "system", "content": "Be exact."}, {"role": "user", "content": "Why?"}],
        "question": "Why?",
        "answer": "Because.",
        "reference": "So.",
        "stopped": False,
        "tokens": 3,
    }


# ── chat ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def roles(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


def test_a_chat_sends_its_whole_history(model: TunedModel, dataset: Dataset, spy: Spy):
    chat = Chat(model, max_tokens=11, temperature=0.25)
    first = dataset.learned[0]
    answer = chat.say(question_of_sample(first).text)
    assert answer.text == "It is 5."
    chat.say("And then?")
    history = [("system", "Be exact."), ("user", question_of_sample(first).text), ("assistant", "It is 5.")]
    assert roles(chat.messages) == [*history, ("user", "And then?"), ("assistant", "It is 5.")]
    asked = tuple(Message(role, text) for role, text in [*history, ("user", "And then?")])  # type: ignore[arg-type]
    assert spy.prompts == [trained_prompt(first), encode_prompt(model.tokenizer, asked).tolist()]
    assert {(call["max_tokens"], call["temperature"]) for call in spy.calls} == {(11, 0.25)}


def test_a_chat_streams_its_answer(model: TunedModel, spy: Spy):
    pieces: list[str] = []
    Chat(model).say("Why?", pieces.append)
    assert "".join(pieces) == "It is 5."


def test_a_history_can_be_taken_up(model: TunedModel, spy: Spy):
    history = [Message("user", "a"), Message("assistant", "b")]
    chat = Chat(model, messages=history)
    chat.say("c")
    assert roles(chat.messages)[:3] == [("user", "a"), ("assistant", "b"), ("user", "c")]


def test_a_chat_that_outgrows_the_context_says_so_and_keeps_its_history(model: TunedModel, spy: Spy):
    chat = Chat(model)
    chat.say("Why?")
    before = list(chat.messages)
    with pytest.raises(DataError, match="longer than the model's context") as caught:
        chat.say("why " * (2 * model.decoder.spec.context))
    assert str(model.decoder.spec.context) in caught.value.expected
    assert chat.messages == before
    assert len(spy.calls) == 1


def test_a_run_remembers_whether_its_answers_reason(tiny: Tiny, finished: RunFolder, tmp_path: Path):
    """And asks in that way: in chat, in sample answers, and when base and tuned are compared."""
    assert load_tuned(finished.path).recipe.data.thinking == "drop"
    rows = [{"question": f"{n} + 1?", "answer": f"<think>\nAdd.\n</think>\n\n{n + 1}"} for n in range(12)]
    other = Tiny(tiny.model, write_rows(tmp_path / "data.jsonl", rows))
    run = other.train(tmp_path / "run", {"train.steps": 1, "watch.every": 9})
    model = load_tuned(run.path)
    assert model.recipe.data.thinking == "keep"
    assert model.thinking
    assert model.question("1 + 1?").thinking
    assert {sample.get("thinking") for sample in run.lines(run.samples)} == {True}
    assert {sample.get("thinking") for sample in finished.lines(finished.samples)} == {None}


def test_a_question_with_tools_survives_its_line():
    from strop.data.records import ToolCall
    from strop.evaluate.ask import question_of_line

    call = Message("assistant", "", thinking="Look.", calls=(ToolCall("weather", "{}", "abcdefghi"),))
    messages = (Message("user", "Nice?"), call, Message("tool", "sun", call_id="abcdefghi", name="weather"))
    question = Question(messages, "Yes.", ('{"name": "weather"}',), thinking=True)
    assert question_of_line(AnswerText("Yes.", True, 2).as_sample(0, question)) == question


def test_a_plain_text_asks_nothing(tokenizer: Tokenizer):
    from strop.data.records import Conversation
    from strop.evaluate.ask import asks

    text = Example(np.zeros(2, np.int32), np.ones(2, np.bool_), 0, Place("f"), Conversation((), Place("f"), text="a"))
    assert not asks(text)
    with pytest.raises(ValueError, match="never was one"):
        question_of_sample(text)
