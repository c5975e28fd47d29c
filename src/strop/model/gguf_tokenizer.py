"""Turn the tokenizer inside a GGUF file into a complete ``tokenizer.json``.

Two kinds are read: byte-level BPE ("gpt2" in GGUF's words), and sentencepiece's BPE ("llama"), whose tokens, scores and
kinds are what a ``.model`` file holds (`strop.vocabulary.pieces`).

A byte-level BPE tokenizer is stored as three lists: tokens (a token's place is its id),
their kinds, and merges ("Ġ t", best first). How text is split before the merges apply is only named, in
``tokenizer.ggml.pre``; the split itself is taken from the tokenizer.json that the named model was published with:

    "It cost 1234 €"   smollm      It| cost| |1|2|3|4| €      every digit a piece of its own, then GPT-2's split
                       gpt-2       It| cost| 1234| €          letters | digits | rest, each with one space before it
                       llama-bpe   It| cost| |123|4| €        digits by threes, without the space
                       qwen2       It| cost| |1|2|3|4| €      digits one by one, without the space; text is NFC
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from strop.model.gguf_file import GGUFFile
from strop.vocabulary.byte_level import DIGITS_SPLIT, GPT2_SPLIT, NFC, byte_level_json, pattern_split
from strop.vocabulary.pieces import pieces_json
from strop.vocabulary.sentencepiece_file import BPE, BYTE, NORMAL, Piece, Pieces

Json = dict[str, Any]

# Kinds of tokens (llama.cpp's llama_token_type). The rest are normal, unused and byte: plain entries.
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4


@dataclass(frozen=True)
class _Split:
    """What a name in ``tokenizer.ggml.pre`` stands for."""

    pre_tokenizer: Json
    normalizer: Json | None = None
    ignore_merges: bool = False  # a piece that is a token as a whole is taken as it is
    adds_bos: bool = False  # unless the file says otherwise


_GPT2 = _Split(GPT2_SPLIT)
_LLAMA3 = _Split(pattern_split(r"\p{N}{1,3}"), ignore_merges=True, adds_bos=True)
_SPLITS = {
    "smollm": _Split(DIGITS_SPLIT),
    "gpt-2": _GPT2,
    "default": _GPT2,  # converters write this for a byte-level tokenizer without a split of its own
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _Split(pattern_split(r"\p{N}"), normalizer=NFC),
    "deepseek-r1-qwen": _Split(pattern_split(r"\p{N}")),
    "glm4": _Split(pattern_split(r"\p{N}{1,3}"), ignore_merges=True),
    "chatglm-bpe": _Split(pattern_split(r"\p{N}{1,3}"), ignore_merges=True),
    "phi-2": _GPT2,
}
_SPLITS |= dict.fromkeys(("starcoder", "refact"), _SPLITS["smollm"])
# What stands between the pieces of a sentencepiece model is its own; llama.cpp puts the begin token before a text.
_PIECES = _Split(GPT2_SPLIT, adds_bos=True)


@dataclass(frozen=True)
class TokenizerSource:
    """A tokenizer as a model folder holds it.

    Attributes:
        tokenizer_json: the content of ``tokenizer.json`` (the `tokenizers` library's format).
        tokenizer_config: the content of ``tokenizer_config.json``.
        chat_template: the chat template (Jinja), or None.
        bos_token_id: the token that begins a text, or None.
        pad_token_id: the token that fills, or None.
        eos_token_ids: the tokens that end an answer, the main one first.
    """

    tokenizer_json: Json
    tokenizer_config: Json
    chat_template: str | None
    bos_token_id: int | None
    pad_token_id: int | None
    eos_token_ids: tuple[int, ...]


def read_tokenizer(file: GGUFFile, *, vocabulary: int, context: int) -> TokenizerSource:
    """Read a GGUF file's tokenizer.

    Args:
        file: the open file.
        vocabulary: rows of the embedding; there may be fewer tokens, not more.
        context: the model's longest input, in tokens.

    Raises:
        ModelError: the tokenizer is of another kind than byte-level BPE, its split is not known, or its lists
            contradict each other.
    """
    kind = file.value("tokenizer.ggml.model", str)
    if kind not in ("gpt2", "llama"):
        file.refuse(
            "its tokenizer is not supported",
            expected="tokenizer.ggml.model gpt2 (byte-level BPE) or llama (sentencepiece)",
            found=kind,
            do="use the model's folder instead of its .gguf file",
        )
    split = _PIECES if kind == "llama" else _split(file)
    tokens = _tokens(file, vocabulary)
    ids = {
        name: _token_id(file, f"tokenizer.ggml.{name}_token_id", len(tokens))
        for name in ("bos", "eos", "unknown", "padding", "eot", "eom")
    }
    if ids["eos"] is None:
        file.refuse("metadata tokenizer.ggml.eos_token_id is missing", expected="the token that ends an answer")
    chat_template = file.value("tokenizer.chat_template", str) if file.has("tokenizer.chat_template") else None
    config: Json = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context}
    config |= {"add_prefix_space": False, "clean_up_tokenization_spaces": False}
    for field, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token_id = ids[name]
        if token_id is not None:
            config[f"{field}_token"] = tokens[token_id]
    if chat_template is not None:
        config["chat_template"] = chat_template
    ends = dict.fromkeys(token_id for name in ("eos", "eot", "eom") if (token_id := ids[name]) is not None)
    return TokenizerSource(
        tokenizer_json=(_pieces_json if split is _PIECES else _tokenizer_json)(
            file, split, tokens, ids["bos"], ids["eos"]
        ),
        tokenizer_config=config,
        chat_template=chat_template,
        bos_token_id=ids["bos"],
        pad_token_id=ids["padding"],
        eos_token_ids=tuple(ends),
    )


def _split(file: GGUFFile) -> _Split:
    pre = file.value("tokenizer.ggml.pre", str)
    if pre not in _SPLITS:
        file.refuse(
            "it names a way to split text that is not known",
            expected=f"tokenizer.ggml.pre one of {', '.join(_SPLITS)}",
            found=pre,
            do="use the model's folder instead of its .gguf file",
        )
    return _SPLITS[pre]


def _pieces_json(file: GGUFFile, split: _Split, tokens: list[str], bos: int | None, eos: int | None) -> Json:
    """The same of a sentencepiece model."""
    kinds, scores = _kinds(file, tokens), file.values("tokenizer.ggml.scores", float)
    if len(scores) != len(tokens) or not all(NORMAL <= kind <= BYTE for kind in kinds):
        file.refuse("its tokens' scores do not fit its tokens", expected=f"{len(tokens):,}", found=f"{len(scores):,}")
    model = Pieces(
        [Piece(*piece) for piece in zip(tokens, scores, kinds, strict=True)],
        BPE,
        byte_fallback=BYTE in kinds,
        dummy_prefix=file.value("tokenizer.ggml.add_space_prefix", bool, True),
        collapse_spaces=file.value("tokenizer.ggml.remove_extra_whitespaces", bool, False),
    )
    return {**pieces_json(model), "post_processor": _post_processor(file, split, tokens, bos, eos)}


def _kinds(file: GGUFFile, tokens: list[str]) -> list[int]:
    kinds = file.values("tokenizer.ggml.token_type", int)
    if len(kinds) != len(tokens):
        file.refuse("its tokens' kinds do not fit its tokens", expected=f"{len(tokens):,}", found=f"{len(kinds):,}")
    return kinds


def _tokens(file: GGUFFile, vocabulary: int) -> list[str]:
    tokens = file.values("tokenizer.ggml.tokens", str)
    if not 0 < len(tokens) <= vocabulary:
        file.refuse(
            "its vocabulary does not fit its embedding",
            expected=f"1 to {vocabulary:,} tokens",
            found=f"{len(tokens):,}",
        )
    if len(set(tokens)) != len(tokens):
        file.refuse("its vocabulary has a token twice", expected="every token once")
    return tokens


def _token_id(file: GGUFFile, key: str, tokens: int) -> int | None:
    if not file.has(key):
        return None
    token_id = file.value(key, int)
    if not 0 <= token_id < tokens:
        file.refuse(f"metadata {key} is impossible", expected=f"0 to {tokens - 1:,}", found=str(token_id))
    return token_id


def _tokenizer_json(file: GGUFFile, split: _Split, tokens: list[str], bos: int | None, eos: int | None) -> Json:
    vocabulary = {token: place for place, token in enumerate(tokens)}
    return byte_level_json(
        vocabulary,
        _merges(file, vocabulary),
        _added_tokens(file, tokens),
        split=split.pre_tokenizer,
        normalizer=split.normalizer,
        ignore_merges=split.ignore_merges,
        post_processor=_post_processor(file, split, tokens, bos, eos),
    )


def _merges(file: GGUFFile, vocabulary: dict[str, int]) -> list[list[str]]:
    merges = [merge.split(" ") for merge in file.values("tokenizer.ggml.merges", str)]
    for place, merge in enumerate(merges):
        if len(merge) != 2 or not all(part in vocabulary for part in (*merge, "".join(merge))):
            file.refuse(
                f"merge {place} of its tokenizer is impossible",
                expected="two tokens that make a third",
                found=repr(" ".join(merge))[:80],
            )
    return merges


def _added_tokens(file: GGUFFile, tokens: list[str]) -> list[Json]:
    """Tokens that are found in the text before it is split: control tokens (special) and user-defined ones (not)."""
    kinds = file.values("tokenizer.ggml.token_type", int)
    if len(kinds) != len(tokens):
        file.refuse("its tokens' kinds do not fit its tokens", expected=f"{len(tokens):,}", found=f"{len(kinds):,}")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": place, "content": token, **flags, "special": kind != _USER_DEFINED}
        for place, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]


def _post_processor(file: GGUFFile, split: _Split, tokens: list[str], bos: int | None, eos: int | None) -> Json | None:
    """The template that puts the begin token before a text and the end token behind it, where the file asks for it."""
    before = _edge(file, "tokenizer.ggml.add_bos_token", split.adds_bos, bos)
    behind = _edge(file, "tokenizer.ggml.add_eos_token", False, eos)
    if not before and not behind:
        return None

    def special(places: list[int]) -> list[Json]:
        return [{"SpecialToken": {"id": tokens[place], "type_id": 0}} for place in places]

    text: list[Json] = [{"Sequence": {"id": "A", "type_id": 0}}]
    pair: list[Json] = [{"Sequence": {"id": "B", "type_id": 0}}]
    single = [*special(before), *text, *special(behind)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, *special(before), *pair, *special(behind)],
        "special_tokens": {
            tokens[place]: {"id": tokens[place], "ids": [place], "tokens": [tokens[place]]}
            for place in (*before, *behind)
        },
    }


def _edge(file: GGUFFile, key: str, default: bool, token_id: int | None) -> list[int]:
    if not file.value(key, bool, default):
        return []
    if token_id is None:
        if file.has(key):
            file.refuse(f"{key} asks for a token that the file does not name", expected="its id in the metadata")
        return []
    return [token_id]
