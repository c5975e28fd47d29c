"""Fixed questions and their answers: what a person looks at before, while and after a model is tuned.

A question carries the whole history that leads to it, so that it is asked with the prompt that was trained, token for
token: the same template, the same system prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from strop.data.records import Example, Message
from strop.data.tokenizer import Tokenizer
from strop.data.tokens import encode_prompt
from strop.model.decoder import Decoder
from strop.model.generate import generate
from strop.model.lora import Adapter

# Questions taken from the held-out samples where the recipe asks none.
DEFAULT_QUESTIONS = 3


@dataclass(frozen=True, slots=True)
class Question:
    """A history that ends in a user's turn, and the answer that the data gives, if any."""

    messages: tuple[Message, ...]
    reference: str | None = None

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
            "messages": [{"role": message.role, "content": message.content} for message in question.messages],
            "question": question.text,
            "answer": self.text,
            "reference": question.reference,
            "stopped": self.stopped,
            "tokens": self.tokens,
        }


def question_of_text(text: str, system: str | None) -> Question:
    """A question from its text, asked with the run's system prompt."""
    head = (Message("system", system),) if system is not None else ()
    return Question((*head, Message("user", text)))


def question_of_sample(example: Example) -> Question:
    """The last question of a sample, with the sample's answer as the reference."""
    conversation = example.conversation
    if conversation is None:
        raise ValueError(f"sample {example.id} has lost its conversation")
    return Question(conversation.messages[:-1], conversation.messages[-1].content)


def answer_questions(
    decoder: Decoder,
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
    prompts = [[int(token) for token in encode_prompt(tokenizer, question.messages)] for question in questions]
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
