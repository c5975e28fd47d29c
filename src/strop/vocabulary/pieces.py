"""A sentencepiece model as a ``tokenizer.json`` that gives the same tokens.

    "a  b<eoa>"  ─added tokens─▶  "a  b" · <eoa>  ─normaliser─▶  "a▁▁b"  ─merges or best path─▶  a · ▁▁ · b

**BPE.** sentencepiece joins, again and again, the two neighbours whose joint piece has the best score, leftmost first.
`tokenizers` does the same with a ranked list of pairs: every way to cut a piece into two pieces, in the order of the
pieces' scores. A piece that can be cut in several ways gives pairs that sentencepiece holds equal and the list cannot;
they are ranked by the length of their first half, and the tests hold the result to the library's on texts that are made
of repetitions. **Unigram** is the same model in both; where
two cuts have the same score to the last bit (a run of one letter), the two libraries may take another one of them.

Pieces that the user defined are whole wherever they stand, and are added tokens; so are control tokens, which
sentencepiece itself never reads out of a text. What stands for nothing (kind unused; a NUL, which the library
itself leaves to its byte) gets a name that no text spells.

After a control token sentencepiece puts its dummy prefix again, since to it every stretch of text is a text of its own:
so do transformers' tokenizers that call themselves ``legacy``. The others put it before the first stretch alone.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from strop.vocabulary.added import Added, Json, entries, place, unnamed
from strop.vocabulary.sentencepiece_file import BPE, BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Pieces

_SPACE = "▁"


def pieces_json(model: Pieces, added: Mapping[int, Added] | None = None, *, legacy: bool = True) -> Json:
    """The content of a tokenizer.json.

    Args:
        model: the sentencepiece model.
        added: further added tokens by id; one under the id of a piece takes its place.
        legacy: whether the dummy prefix comes again behind every added token, or at the beginning alone.
    """
    names = [_name(model, index) for index in range(len(model.pieces))]
    tokens = {
        index: Added(piece.text, special=piece.kind != USER_DEFINED)
        for index, piece in enumerate(model.pieces)
        if piece.kind in (UNKNOWN, CONTROL, USER_DEFINED) and piece.text
    } | dict(added or {})
    unknown = next((names[index] for index, piece in enumerate(model.pieces) if piece.kind == UNKNOWN), None)
    if unknown is not None and added:
        at = names.index(unknown)
        unknown = added[at].content if at in added else unknown
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": entries(tokens),
        "normalizer": _normalizer(model, legacy),
        "pre_tokenizer": None
        if legacy or not model.dummy_prefix
        else {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "first", "split": False},
        "post_processor": None,
        "decoder": _decoder(model),
        "model": _bpe(model, names, tokens, unknown) if model.model == BPE else _unigram(model, names, tokens, unknown),
    }


def _name(model: Pieces, index: int) -> str:
    piece = model.pieces[index]
    if piece.kind == UNUSED or not piece.text or (piece.text == "\0" and model.byte_fallback):
        return unnamed(index)
    return piece.text


def _normalizer(model: Pieces, legacy: bool) -> Json | None:
    steps: list[Json] = []
    if model.charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.charsmap).decode()})
    if model.collapse_spaces:
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if legacy or not model.dummy_prefix:
        if model.dummy_prefix:
            steps.append({"type": "Prepend", "prepend": _SPACE})
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": _SPACE})
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _decoder(model: Pieces) -> Json:
    steps: list[Json] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if model.dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _bpe(model: Pieces, names: list[str], added: Mapping[int, Added], unknown: str | None) -> Json:
    vocabulary = {name: index for index, name in enumerate(names)}
    place(vocabulary, added)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": [merge for merge in _merges(model, names) if all(part in vocabulary for part in merge)],
    }


def _merges(model: Pieces, names: list[str]) -> list[list[str]]:
    """Every way to make a piece out of two, best piece first."""
    usable = {name for name, piece in zip(names, model.pieces, strict=True) if piece.kind == NORMAL}
    ranked = [
        (-piece.score, index, cut)
        for index, (name, piece) in enumerate(zip(names, model.pieces, strict=True))
        if piece.kind == NORMAL
        for cut in range(1, len(name))
        if name[:cut] in usable and name[cut:] in usable
    ]
    ranked.sort()
    return [[names[index][:cut], names[index][cut:]] for _, index, cut in ranked]


def _unigram(model: Pieces, names: list[str], added: Mapping[int, Added], unknown: str | None) -> Json:
    scores = [piece.score for piece in model.pieces]
    vocabulary: list[list[Any]] = [
        [name if piece.kind in (NORMAL, BYTE, UNKNOWN, USER_DEFINED, CONTROL) else unnamed(index), score]
        for index, (name, piece, score) in enumerate(zip(names, model.pieces, scores, strict=True))
    ]
    for index in sorted(added):
        while len(vocabulary) <= index:
            vocabulary.append([unnamed(len(vocabulary)), 0.0])
        vocabulary[index][0] = added[index].content
    return {
        "type": "Unigram",
        "unk_id": next((index for index, (name, _) in enumerate(vocabulary) if name == unknown), None),
        "vocab": vocabulary,
        "byte_fallback": model.byte_fallback,
    }
