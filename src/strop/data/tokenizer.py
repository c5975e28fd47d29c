"""A model folder's tokenizer, with what Strop has to know about its control tokens.

    tokenizer.json            the tokenizer itself, run by the library `tokenizers`; or an older format
                              (`strop.data.tokenizer_files`)
    tokenizer_config.json     the named special tokens (bos_token, eos_token, …), and the chat template in older folders
    special_tokens_map.json   the named special tokens that tokenizer_config.json leaves out
    chat_template.jinja       the chat template, before the one in tokenizer_config.json; where there is neither, one
                              of `strop.data.stock_templates`, if the family has one and its control tokens are here
    generation_config.json, config.json   eos_token_id, a number or a list

**Control tokens** are the special tokens of tokenizer.json and the named ones. Other added tokens (``<think>`` in some
models) are vocabulary: the data may write them. **Stop tokens** are the control tokens that end an answer: every
eos_token_id, the eos_token, and what the chat template itself puts behind an answer. An eos_token_id that names an
ordinary piece of text is passed over, and so is a named token of one character: a wrong number in a config must not
turn "#" into the end of every answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import tokenizers

from strop.data.masks import any_of
from strop.data.segments import Segmenter, find_stop_token
from strop.data.stock_templates import stock_template
from strop.data.template import ChatTemplate
from strop.data.tokenizer_files import NAMED_TOKENS, raise_unless_of_the_library, read_backend, read_json
from strop.data.words import Words, words_of
from strop.errors import ModelError
from strop.foreign import read_text

"""The special tokens that have a name, by which chat templates use them."""


class Tokenizer:
    """Text to tokens and back, and conversations to segments.

    Args:
        backend: the tokenizer; it becomes this object's own, and control tokens that it lacks are registered in it.
        template: the chat template's source.
        named: named special tokens, {"eos_token": "</s>", …}; those outside the vocabulary only serve the template.
        eos_ids: tokens that end an answer, as configs name them.
        template_name: where the template stands, for messages.

    Attributes:
        backend: the tokenizer that reads control tokens in text.
        vocabulary_size: tokens, added ones included.
        special_tokens: every control token, string to id.
        stop_tokens: those that end an answer, string to id.
        bos: the id of bos_token, if there is one.
        eos: the id of eos_token, else the first of eos_ids.
        template: the compiled chat template.
        segmenter: what cuts rendered conversations into read and learned.

    Raises:
        TemplateError: the template is not Jinja, or cannot render one question and its answer.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        template: str,
        named: Mapping[str, str],
        eos_ids: Iterable[int] = (),
        template_name: str = "the chat template",
    ) -> None:
        self.backend = backend
        backend.no_padding()
        backend.no_truncation()
        eos_ids = list(eos_ids)
        self._made_of = (dict(named), eos_ids)
        _register(backend, named.values(), eos_ids)
        self.vocabulary_size = backend.get_vocab_size(with_added_tokens=True)
        self.bos = backend.token_to_id(named["bos_token"]) if "bos_token" in named else None
        self.eos = backend.token_to_id(named["eos_token"]) if "eos_token" in named else None
        self.template = ChatTemplate(template, named, template_name)
        behind_answers = find_stop_token(self.template, self._possible_ends())
        if behind_answers is not None:  # an added token that nobody called special, such as <eoa>, becomes so here
            _register(backend, [behind_answers], [])
        self.special_tokens = {
            token.content: index
            for index, token in sorted(backend.get_added_tokens_decoder().items())
            if token.special and len(token.content) > 1
        }
        self.stop_tokens = {
            text: index
            for text, index in self.special_tokens.items()
            if index in eos_ids or index == self.eos or text == behind_answers
        }
        if self.eos is None:
            self.eos = next((index for index in eos_ids if index in self.stop_tokens.values()), None)
        ending = (backend.id_to_token(self.eos) or "") if self.eos is not None else ""
        around = (self._before_texts(), ending)
        self.segmenter = Segmenter(self.template, self.special_tokens, self.stop_tokens, around)
        self._control_at_end = re.compile(f"(?:{any_of(self.special_tokens).pattern})\\Z")
        self._longest_control = max(map(len, self.special_tokens), default=0)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read a model folder's tokenizer.

        Args:
            folder: a folder with a tokenizer (see `strop.data.tokenizer_files`) and a chat template.

        Raises:
            ModelError: a file is missing or broken; with the folder, the file and the cure.
            TemplateError: the chat template is not Jinja, or cannot render one question and its answer.
        """
        folder = Path(folder)
        config = read_json(folder / "tokenizer_config.json")
        named = _named_tokens(config, read_json(folder / "special_tokens_map.json"))
        backend = read_backend(folder)
        template, template_name = _read_template(folder, config, backend)
        eos_ids = [
            index
            for file in ("generation_config.json", "config.json")
            for index in _as_ids(read_json(folder / file).get("eos_token_id"))
        ]
        return cls(backend, template, named, eos_ids, template_name)

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process that encodes: what this was made of."""
        named, eos_ids = self._made_of
        return _from_parts, (self.backend.to_str(), self.template.source, named, eos_ids, self.template.name)

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids of the stop tokens."""
        return frozenset(self.stop_tokens.values())

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Encode text as the beginning of a text; no token is added.

        Args:
            text: any text.
            special: whether strings such as ``<|im_end|>`` become control tokens, or stay text.
        """
        return self.encode_batch([text], special=special)[0]

    def encode_batch(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        """Encode many texts, on all processors unless TOKENIZERS_PARALLELISM says otherwise."""
        if not texts:  # what reads control tokens as text costs 0.1 s, and most data has none
            return []
        backend = self.backend if special else self._literal_backend
        words = self._words if special else self._literal_words
        known = [words.encode(text) for text in texts] if words else [None] * len(texts)
        others = [text for text, ids in zip(texts, known, strict=True) if ids is None]
        try:
            encoded = iter(backend.encode_batch_fast(others, add_special_tokens=False) if others else ())
        except BaseException as error:  # noqa: BLE001 - the next line lets through what is not expected
            raise_unless_of_the_library(error)
            raise ModelError(
                f"the tokenizer cannot read a text (one of {len(others):,})",
                expected="tokens for any text",
                found=str(error)[:200],
                do="use the tokenizer that belongs to the model",
            ) from None
        return [list(next(encoded).ids) if ids is None else ids for ids in known]

    def token_starts(self, text: str) -> list[int]:
        """Where each token of an ordinary text starts, in characters."""
        return [start for start, _ in self._literal_backend.encode(text, add_special_tokens=False).offsets]

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Decode tokens to text.

        Args:
            ids: tokens.
            skip_special: whether control tokens are left out of the text.
        """
        return self.backend.decode([int(index) for index in ids], skip_special_tokens=skip_special)

    def _possible_ends(self) -> list[str]:
        """The added tokens that may end an answer: no white space, and not what begins texts.

        A bos_token that a template writes behind answers is a slip that must not become a stop token.
        """
        added = self.backend.get_added_tokens_decoder()
        return [
            token.content
            for index, token in added.items()
            if len(token.content.strip()) == len(token.content) > 1 and (index != self.bos or index == self.eos)
        ]

    def _before_texts(self) -> str:
        """The control tokens that the tokenizer itself puts before a text, as its files say."""
        tokens = [self.backend.id_to_token(index) or "" for index in self.backend.encode("a").ids]
        return "".join(takewhile(self.special_tokens.__contains__, tokens))

    def control_at_end(self, text: str) -> str:
        """The control token that a text ends in, or ""."""
        match = self._control_at_end.search(text[-self._longest_control :]) if self._longest_control else None
        return match[0] if match else ""

    @cached_property
    def _words(self) -> Words | None:
        return words_of(self.backend)

    @cached_property
    def _literal_words(self) -> Words | None:
        return words_of(self._literal_backend)

    @cached_property
    def _literal_backend(self) -> tokenizers.Tokenizer:
        """The same tokenizer, blind to control tokens. A copy: the switch is a state of the whole object."""
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        backend.encode_special_tokens = True
        return backend


def _from_parts(
    backend: str, template: str, named: Mapping[str, str], eos_ids: Sequence[int], template_name: str
) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(backend), template, named, eos_ids, template_name)


def _register(backend: tokenizers.Tokenizer, named: Iterable[str], eos_ids: Sequence[int]) -> None:
    """Make named tokens, and added tokens that end an answer, special: read as a whole, and never out of the data."""
    added = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    ending = [text for index in eos_ids if (text := backend.id_to_token(index)) in added]
    for text in dict.fromkeys([*named, *ending]):
        known = added.get(text)
        if len(text) > 1 and backend.token_to_id(text) is not None and not (known and known.special):
            backend.add_special_tokens([known or tokenizers.AddedToken(text, normalized=False)])


def _read_template(folder: Path, config: Mapping[str, Any], backend: tokenizers.Tokenizer) -> tuple[str, str]:
    """The chat template's source and where it stands; a stock one's control tokens become special."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return read_text(file), str(file)
        except (OSError, ValueError) as error:
            raise ModelError(f"{file} cannot be read", found=str(error), do="save it as UTF-8 text") from error
    source = config.get("chat_template")
    if isinstance(source, list):
        by_name = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = by_name.get("default")
    if not isinstance(source, str):
        stock = stock_template(read_json(folder / "config.json"), backend.token_to_id)
        if stock is not None:
            _register(backend, stock.control, [])
            return stock.source, f"the stock template {stock.name}, as {folder} has none"
        raise ModelError(
            f"{folder} has no chat template",
            expected="chat_template.jinja, or chat_template in tokenizer_config.json",
            found="neither, and no stock template fits: it is a base model, or its template was not copied",
            do=f"use the model's chat version, or put the template into {file}",
        )
    return source, f"{folder / 'tokenizer_config.json'}: chat_template"


def _named_tokens(*configs: Mapping[str, Any]) -> dict[str, str]:
    """The named special tokens, the first config that names one winning."""
    named = {}
    for name in NAMED_TOKENS:
        for config in configs:
            token = config.get(name)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                named[name] = token
                break
    return named


def _as_ids(value: Any) -> list[int]:
    """An eos_token_id as configs write it: a number, a list, or nothing."""
    values = value if isinstance(value, list) else [value]
    return [index for index in values if isinstance(index, int) and not isinstance(index, bool) and index >= 0]
