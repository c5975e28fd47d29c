"""Segments to tokens: one function for training, chat and evaluation.

    training   encode(prompt) + encode(answer and stop token) + encode(what follows) + …
    chat       encode(prompt)

The borders of segments are borders of tokens, by construction: the tokens of a prompt cannot depend on the answer
that follows, and so chat sends exactly the tokens that were trained. (Encoding the whole text at once can merge the
prompt's last character with the answer's first.) Where no token crosses a border the result equals
``apply_chat_template(tokenize=True)`` of transformers; a test holds the two to each other.

A piece in the middle of a text must be encoded as a continuation: some tokenizers put a space before whatever stands
at the beginning of a text. So a piece is encoded behind what it follows, whose tokens are then cut off:

    control token before it    <|im_end|> + "\\nand"   →  [<|im_end|>] \\n and
    ordinary text before it    its last character, if that is encoded alike with and without the piece;
                               else a line break, under the same condition; else nothing

Text of the data that spells a control token is a piece of its own, encoded with control tokens switched off. Should
the vocabulary spell the control token nonetheless, the piece is cut behind its first character.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from strop.data.records import Conversation, Message
from strop.data.segments import Learn, Segment
from strop.data.tokenizer import Tokenizer
from strop.errors import TemplateError

if TYPE_CHECKING:
    from strop.data.records import Learned, Tokens, Weights


class Encoded(NamedTuple):
    """A conversation's tokens.

    Args:
        tokens: int32 [T].
        learned: bool [T].
        weights: float32 [T], 0 where it is not learned; None where every learned token weighs 1.
    """

    tokens: Tokens
    learned: Learned
    weights: Weights | None = None


class _Piece(NamedTuple):
    """A stretch of text that is encoded at once."""

    text: str
    before: str
    """What stands before it: a control token, or a character; "" at the beginning of the text."""
    literal: bool
    """Whether control tokens are switched off."""


def encode_conversation(tokenizer: Tokenizer, conversation: Conversation, learn: Learn = "answers") -> Encoded:
    """Encode one conversation for training.

    Args:
        tokenizer: the model's tokenizer.
        conversation: one that ends in an answer, or a plain text.
        learn: what of it is learned where the row does not say otherwise; the tokens are the same in any case.

    Raises:
        TemplateError: the template cannot render it, or what would be learned is not the answers.
    """
    encoded = encode_conversations(tokenizer, [conversation], learn)[0]
    if isinstance(encoded, TemplateError):
        raise encoded
    return encoded


def encode_conversations(
    tokenizer: Tokenizer, conversations: Sequence[Conversation], learn: Learn = "answers"
) -> list[Encoded | TemplateError]:
    """Encode many conversations for training, faster than one by one.

    Returns:
        For each conversation its tokens, or the error that `encode_conversation` would raise.
    """
    outcomes: list[list[Segment] | TemplateError] = []
    for conversation in conversations:
        try:
            outcomes.append(tokenizer.segmenter.conversation(conversation, learn))
        except TemplateError as error:
            outcomes.append(error)
    ids = iter(_encode_segments(tokenizer, [outcome for outcome in outcomes if isinstance(outcome, list)]))
    return [
        outcome if isinstance(outcome, TemplateError) else _join(tokenizer, outcome, next(ids)) for outcome in outcomes
    ]


def encode_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[str] = (), *, thinking: bool = False
) -> Tokens:
    """Encode a history and the opening of the assistant's next turn, as chat and evaluation send it.

    For the messages before an answer that is learned the result is the beginning of `encode_conversation`'s tokens,
    exactly.

    Args:
        tokenizer: the model's tokenizer.
        messages: the turns so far, the last one the user's or a tool's.
        tools: the conversation's tools.
        thinking: whether the answer is to reason first, as those that were learned did or did not.

    Returns:
        int32 [T].

    Raises:
        TemplateError: the template cannot render the messages.
    """
    segments = tokenizer.segmenter.prompt(messages, tools, thinking=thinking)
    ids = _encode_segments(tokenizer, [segments])[0]
    return np.array([*chain.from_iterable(ids)], dtype=np.int32)


def _join(tokenizer: Tokenizer, segments: Sequence[Segment], ids: Sequence[Sequence[int]]) -> Encoded | TemplateError:
    """One conversation's segments to arrays; every answer that is learned must end in a stop token."""
    stop_ids = tokenizer.stop_ids
    for segment, piece in zip(segments, ids, strict=True):
        if segment.ends and segment.learned and (not piece or piece[-1] not in stop_ids):
            return TemplateError(
                f"{tokenizer.template.name}: an answer's last token is not a stop token",
                expected=f"one of {', '.join(tokenizer.stop_tokens)}",
                found=repr(tokenizer.decode(piece[-1:])),
                do="list the stop token among the added_tokens of tokenizer.json",
            )
    tokens = np.array([*chain.from_iterable(ids)], dtype=np.int32)
    weights = np.repeat([segment.weight for segment in segments], [len(piece) for piece in ids]).astype(np.float32)
    weights[:1] = 0.0  # nothing precedes the first token
    learned = weights > 0
    if not learned.any():
        return TemplateError(
            "nothing of it would be learned",
            expected="an answer, or a part of one, with a weight above 0",
            do="give a turn a weight, or drop the row",
        )
    return Encoded(tokens, learned, None if all(segment.weight in (0, 1) for segment in segments) else weights)


def _encode_segments(tokenizer: Tokenizer, texts: Sequence[Sequence[Segment]]) -> list[list[list[int]]]:
    """Encode texts, each given as its segments in order, to the token ids of each segment of each text."""
    numbered = [
        (number, index, piece) for number, segments in enumerate(texts) for index, piece in _pieces(tokenizer, segments)
    ]
    result: list[list[list[int]]] = [[[] for _ in segments] for segments in texts]
    encoded = _encode_pieces(tokenizer, [piece for _, _, piece in numbered])
    for (number, index, _), ids in zip(numbered, encoded, strict=True):
        result[number][index] += ids
    return result


def _pieces(tokenizer: Tokenizer, segments: Sequence[Segment]) -> Iterator[tuple[int, _Piece]]:
    """Cut one text's segments at their literals; each piece with its segment's index."""
    before = ""
    for index, segment in enumerate(segments):
        position = 0
        for start, end in (*segment.literals, (len(segment.text), len(segment.text))):
            if text := segment.text[position:start]:
                yield index, _Piece(text, before, literal=False)
                before = tokenizer.control_at_end(text) or text[-1]
            if text := segment.text[start:end]:
                yield index, _Piece(text, before, literal=True)
                before = text[-1]
            position = end


def _encode_pieces(tokenizer: Tokenizer, pieces: Sequence[_Piece]) -> list[list[int]]:
    """Encode each piece as the continuation of what stands before it."""
    result: list[list[int]] = [[] for _ in pieces]
    for literal in (False, True):
        waiting = [number for number, piece in enumerate(pieces) if piece.literal == literal]
        for attempt in range(3):
            contexts = [(pieces[number].before, "\n", "")[attempt] for number in waiting]
            texts = [context + pieces[number].text for context, number in zip(contexts, waiting, strict=True)]
            encoded = tokenizer.encode_batch(texts, special=not literal)
            alone = {context: tokenizer.encode(context, special=not literal) for context in set(contexts)}
            again = []
            for number, context, ids in zip(waiting, contexts, encoded, strict=True):
                cut = alone[context]
                if ids[: len(cut)] == cut:
                    result[number] = ids[len(cut) :]
                else:
                    again.append(number)
            waiting = again
    control = set(tokenizer.special_tokens.values())
    for number, piece in enumerate(pieces):
        if piece.literal and len(piece.text) > 1 and not control.isdisjoint(result[number]):
            first, rest = piece.text[:1], piece.text[1:]
            halves = [_Piece(first, piece.before, literal=True), _Piece(rest, first, literal=True)]
            result[number] = [index for ids in _encode_pieces(tokenizer, halves) for index in ids]
    return result
