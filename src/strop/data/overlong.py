"""What happens to a sample that is longer than the recipe's ``max_tokens``.

    refuse       it is not learned, and counted as refused
    cut_prompt   text is cut from the beginning of the user's turns, the oldest turn first, until the sample fits; what
                 the template writes, the system prompt, the answers and their stop tokens stay whole
    cut_end      tokens are cut from the end; the last answer loses its stop token, which the user asked for

``cut_prompt`` shortens the messages and encodes them again, instead of cutting tokens: so the sample is still exactly
what chat would send for the shortened question.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, TypeAlias

from strop.data.records import Conversation, Refusal
from strop.data.segments import Learn
from strop.data.tokenizer import Tokenizer
from strop.data.tokens import Encoded, encode_conversation

Overlong: TypeAlias = Literal["refuse", "cut_prompt", "cut_end"]


def fit(
    tokenizer: Tokenizer,
    conversation: Conversation,
    encoded: Encoded,
    max_tokens: int | None,
    overlong: Overlong,
    learn: Learn = "answers",
) -> Encoded | Refusal:
    """Make a sample fit, or refuse it.

    Args:
        tokenizer: the model's tokenizer.
        conversation: what the sample was encoded from.
        encoded: the sample.
        max_tokens: the longest sample, in tokens; None for no limit.
        overlong: what to do with a longer one.
        learn: what of it is learned.

    Raises:
        TemplateError: the template cannot render the shortened conversation.
    """
    if max_tokens is None or len(encoded.tokens) <= max_tokens:
        return encoded
    return _WAYS[overlong](tokenizer, conversation, encoded, max_tokens, learn)


def _refuse(_: Tokenizer, conversation: Conversation, encoded: Encoded, max_tokens: int, learn: Learn) -> Refusal:
    return Refusal(
        conversation.place,
        f"longer than {max_tokens} tokens",
        "raise data.max_tokens, or set data.overlong to cut_prompt or cut_end",
        f"{len(encoded.tokens)} tokens",
    )


def _cut_end(
    _: Tokenizer, conversation: Conversation, encoded: Encoded, max_tokens: int, learn: Learn
) -> Encoded | Refusal:
    weights = None if encoded.weights is None else encoded.weights[:max_tokens]
    cut = Encoded(encoded.tokens[:max_tokens], encoded.learned[:max_tokens], weights)
    if cut.learned.any():
        return cut
    return Refusal(
        conversation.place,
        f"the prompt alone fills {max_tokens} tokens, so that nothing of the answer is left",
        "raise data.max_tokens, or set data.overlong to cut_prompt",
        f"{len(encoded.tokens)} tokens",
    )


def _cut_prompt(
    tokenizer: Tokenizer, conversation: Conversation, encoded: Encoded, max_tokens: int, learn: Learn
) -> Encoded | Refusal:
    length = len(encoded.tokens)
    while (excess := len(encoded.tokens) - max_tokens) > 0:
        shorter = _shorten(tokenizer, conversation, excess)
        if shorter == conversation:
            return Refusal(
                conversation.place,
                f"longer than {max_tokens} tokens without the user's text",
                "raise data.max_tokens; answers and system prompts are not cut",
                f"{length} tokens",
            )
        conversation, encoded = shorter, encode_conversation(tokenizer, shorter, learn)
    return encoded


def _shorten(tokenizer: Tokenizer, conversation: Conversation, excess: int) -> Conversation:
    """Cut about so many tokens from the user's turns, the oldest first; leave a last token in each."""
    messages = list(conversation.messages)
    for number, message in enumerate(messages):
        if message.role != "user" or excess <= 0:
            continue
        starts = tokenizer.token_starts(message.content)
        # Tokens that are parts of one character share its start; text that is all blank is no question.
        cuts = [at for at in range(1, len(starts)) if starts[at] > 0 and message.content[starts[at] :].strip()]
        if cuts:
            cut = next((at for at in cuts if at >= excess), cuts[-1])
            messages[number] = replace(message, content=message.content[starts[cut] :])
            excess -= cut
    return replace(conversation, messages=tuple(messages))


_WAYS: dict[Overlong, Callable[[Tokenizer, Conversation, Encoded, int, Learn], Encoded | Refusal]] = {
    "refuse": _refuse,
    "cut_prompt": _cut_prompt,
    "cut_end": _cut_end,
}
