"""Fixed questions and their answers: what a person looks at before, while and after a model is tuned.

A question carries the whole history that leads to it, so that it is asked with the prompt that was trained, token for
token: the same template, the same system prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from strop.data.records import Example, Message, ToolCall
from strop.data.thinking import answers_thinking
from strop.data.tokenizer import Tokenizer
from strop.data.tokens import encode_prompt
from strop.model.generate import generate
from strop.model.lora import Adapter
from strop.model.paths import AnyDecoder

# Questions taken from the held-out samples where the recipe asks none.
DEFAULT_QUESTIONS = 3


@dataclass(frozen=True, slots=True)
class Question:
    """A history that ends in a user's or a tool's turn, and the answer that the data gives, if any.

    Attributes:
        messages: the history.
        reference: the answer.
        tools: the tools that the model is told of, as `Conversation.tools` has them.
        thinking: whether the model is to reason first, as the answers that it learned did or did not.
    """

    messages: tuple[Message, ...]
    reference: str | None = None
    tools: tuple[str, ...] = ()
    thinking: bool = False

    @property
    def text(self) -> str:
        """The last user's turn."""
        return self.messages[-1].content


@dataclass(frozen=True, slots=True)
class AnswerText:
    """An answer: its text, whether the model ended it itself, and its length in tokens."""

    text: str
    stopped: bool
    tokens: int

    def as_sample(self, step: int, question: Question) -> dict[str, Any]:
        """The line that samples.jsonl keeps."""
        return {
            "step": step,
            "messages": [_as_dict(message) for message in question.messages],
            "question": question.text,
            "answer": self.text,
            "reference": question.reference,
            "stopped": self.stopped,
            "tokens": self.tokens,
            **({"tools": list(question.tools)} if question.tools else {}),
            **({"thinking": True} if question.thinking else {}),
        }


def question_of_text(text: str, system: str | None, *, thinking: bool = False) -> Question:
    """A question from its text, asked with the run's system prompt and in its mode."""
    head = (Message("system", system),) if system is not None else ()
    return Question((*head, Message("user", text)), thinking=thinking)


def question_of_sample(example: Example) -> Question:
    """The last question of a sample, with the sample's answer as the reference; a plain text asks nothing."""
    conversation = example.conversation
    if conversation is None or not conversation.messages:
        raise ValueError(f"sample {example.id} has lost its conversation, or never was one")
    *history, last = conversation.messages
    return Question(tuple(history), last.content, conversation.tools, answers_thinking(conversation))


def question_of_line(line: Mapping[str, Any]) -> Question:
    """The question of a line that `AnswerText.as_sample` made."""
    messages = tuple(
        Message(**{**message, "calls": tuple(ToolCall(**call) for call in message.get("calls", ()))})
        for message in line["messages"]
    )
    return Question(messages, line["reference"], tuple(line.get("tools", ())), bool(line.get("thinking")))


def asks(example: Example) -> bool:
    """Whether a sample has a question: a plain text has none."""
    return example.conversation is not None and bool(example.conversation.messages)


def _as_dict(message: Message) -> dict[str, Any]:
    """What of a turn reaches the model: role and content, and what else it has."""
    kept = {"role": message.role, "content": message.content}
    more = {"thinking": message.thinking, "call_id": message.call_id, "name": message.name}
    calls = [asdict(call) for call in message.calls]
    return {**kept, **{key: value for key, value in more.items() if value}, **({"calls": calls} if calls else {})}


def answer_questions(
    decoder: AnyDecoder,
    adapter: Adapter | None,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    max_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    on_text: Callable[[str], None] | None = None,
) -> list[AnswerText]:
    """Asks a model questions.

    Args:
        decoder: the base.
        adapter: the adapter, or None for the base alone.
        tokenizer: its tokenizer and template.
        questions: what to ask.
        max_tokens: longest answer.
        temperature: 0 takes the likeliest token.
        seed: decides the draws above temperature 0.
        on_text: given the text of a single question's answer piece by piece as it comes.

    Returns:
        One answer a question, in order.
    """
    prompts = [
        encode_prompt(tokenizer, question.messages, question.tools, thinking=question.thinking).tolist()
        for question in questions
    ]
    stream = _Stream(tokenizer, on_text) if on_text else None
    answers = generate(
        decoder,
        adapter,
        prompts,
        sorted(tokenizer.stop_ids),
        max_tokens,
        temperature=temperature,
        seed=seed,
        on_token=stream.add if stream else None,
    )
    texts = [AnswerText(tokenizer.decode(a.tokens, skip_special=True), a.stopped, len(a.tokens)) for a in answers]
    if stream and texts:
        stream.finish(texts[0].text)
    return texts


class _Stream:
    """Decodes as tokens come; holds back what may still change (half a character, a replaced byte)."""

    def __init__(self, tokenizer: Tokenizer, on_text: Callable[[str], None]) -> None:
        self._tokenizer = tokenizer
        self._on_text = on_text
        self._tokens: list[int] = []
        self._shown = ""

    def add(self, _prompt: int, token: int) -> None:
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens, skip_special=True)
        if not text.endswith("\ufffd"):
            self.finish(text)

    def finish(self, text: str) -> None:
        if text.startswith(self._shown) and len(text) > len(self._shown):
            self._on_text(text[len(self._shown) :])
            self._shown = text
