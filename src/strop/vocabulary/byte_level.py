"""Byte-level BPE as a ``tokenizer.json``: the frame that GGUF files, tiktoken files and merges.txt are put into.

A text is cut into pieces, each byte of a piece is written as a letter, and neighbours are joined by the merges. What
differs between models is the cut, and what is done to a text before it:

    "It cost 1234 €"   GPT2_SPLIT          It| cost| 1234| €          letters | digits | rest, each with one space
                       DIGITS_SPLIT        It| cost| |1|2|3|4| €      every digit a piece of its own, then GPT-2's
                       pattern_split(…)    It| cost| |123|4| €        Llama 3's and Qwen's: digits without the space
"""

from __future__ import annotations

from collections.abc import Sequence

from strop.vocabulary.added import Json

_BYTES_ONLY: Json = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2_SPLIT: Json = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS_SPLIT: Json = {
    "type": "Sequence",
    "pretokenizers": [{"type": "Digits", "individual_digits": True}, GPT2_SPLIT],
}
NFC: Json = {"type": "NFC"}


def byte_letters() -> list[str]:
    """For each byte the letter that stands for it in byte-level tokenizers (GPT-2's table).

    Printable bytes stand for themselves; the others get the letters from U+0100 on, in their order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(0x100 + others.index(byte)) for byte in range(256)]


def digits_pattern(digits: str) -> str:
    """The pattern that Qwen, GLM-4 and Llama 3 cut texts by; they differ in how digits are grouped."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def pattern_split(digits: str) -> Json:
    """The cut by `digits_pattern`."""
    split = {"type": "Split", "pattern": {"Regex": digits_pattern(digits)}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _BYTES_ONLY]}


def byte_level_json(
    vocabulary: dict[str, int],
    merges: Sequence[Sequence[str]],
    added: list[Json],
    *,
    split: Json,
    normalizer: Json | None = None,
    ignore_merges: bool = False,
    post_processor: Json | None = None,
) -> Json:
    """The content of a tokenizer.json.

    Args:
        vocabulary: token → id, in letters of `byte_letters`; added tokens included.
        merges: pairs of tokens, best first.
        added: the list ``added_tokens``.
        split: how a text is cut.
        normalizer: what is done to it before.
        ignore_merges: whether a piece that is a token as a whole is taken as it is.
        post_processor: what is put around a text.
    """
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": split,
        "post_processor": post_processor,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": vocabulary,
            "merges": [list(merge) for merge in merges],
        },
    }
