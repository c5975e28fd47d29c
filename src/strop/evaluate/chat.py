"""A conversation with a run's model: every turn is sent with the whole history, as training renders it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from strop.data.records import Message
from strop.data.thinking import whole_answer
from strop.data.tokens import encode_prompt
from strop.errors import DataError
from strop.evaluate.ask import AnswerText, Question, answer_questions
from strop.evaluate.tuned import TunedModel


@dataclass(slots=True)
class Chat:
    """A conversation so far.

    Attributes:
        model: who answers.
        max_tokens: longest answer.
        temperature: 0 takes the likeliest token.
        messages: the turns so far, the run's system prompt first.
    """

    model: TunedModel
    max_tokens: int = 512
    temperature: float = 0.0
    messages: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        system = self.model.recipe.data.system
        if not self.messages and system is not None:
            self.messages.append(Message("system", system))

    def say(self, text: str, on_text: Callable[[str], None] | None = None) -> AnswerText:
        """Adds a user's turn and the model's answer.

        Args:
            text: what the user says.
            on_text: given the answer piece by piece as it comes.

        Raises:
            DataError: the conversation no longer fits the model's context; it is left as it was.
        """
        self._check_length([*self.messages, Message("user", text)])
        self.messages.append(Message("user", text))
        (answer,) = answer_questions(
            self.model.decoder,
            self.model.adapter,
            self.model.tokenizer,
            [Question(tuple(self.messages), thinking=self.model.thinking)],
            self.max_tokens,
            temperature=self.temperature,
            seed=self.model.recipe.train.seed,
            on_text=on_text,
        )
        self.messages.append(Message("assistant", whole_answer(answer.text)))
        return answer

    def _check_length(self, messages: list[Message]) -> None:
        prompt = encode_prompt(self.model.tokenizer, messages, thinking=self.model.thinking)
        tokens, context = len(prompt), self.model.decoder.spec.context
        if tokens >= context:
            raise DataError(
                "the conversation is longer than the model's context",
                expected=f"fewer than {context} tokens",
                found=f"{tokens} tokens",
                do="begin a new conversation, or ask a shorter question",
            )
