"""The tokenizer files of a model folder: whichever format it has, one that the library `tokenizers` runs.

    tokenizer.json                                        as it is
    tokenizer.model, spiece.model, or the only *.model    sentencepiece (Llama 1 and 2, InternLM, Baichuan, ChatGLM …)
    tokenizer.model in lines of base64, *.tiktoken        tiktoken (Qwen 1, GLM-4, Llama 3)
    vocab.json and merges.txt                             byte-level BPE (Qwen 2, StarCoder 2, SmolLM, Phi 2)

The older formats are turned into the first in memory; nothing is written and no code of a repository runs. What they
leave out stands beside them:

    tokenizer_config.json     added_tokens_decoder: id → text and whether it is special; "legacy"
    added_tokens.json         text → id
    special_tokens_map.json   additional_special_tokens: which of them are special
    config.json               model_type, by which a tiktoken file's pattern and control tokens are known
    tokenizer_config.json     tokenizer_class, by which the cut that goes with vocab.json is known; bos_token, …
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers

from strop.errors import ModelError
from strop.foreign import parse_json, read_text, resolved_inside
from strop.vocabulary.added import Added, Json, numbered
from strop.vocabulary.merges_file import merges_json, named_tokens
from strop.vocabulary.pieces import pieces_json
from strop.vocabulary.sentencepiece_file import looks_like_pieces, read_pieces
from strop.vocabulary.tiktoken_file import KINDS, read_ranks, tiktoken_json

MOST_TOKENIZER_BYTES = 64 << 20
"""Of tokenizer.json; that of a vocabulary of 262,144 tokens has 33 MB."""

# Control tokens that ChatGLM 2 and 3 have in their code alone, behind the pieces of their sentencepiece model.
_CHATGLM = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_CHATGLM_PIECES = 64789

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_VOCABULARY, _MERGES = "vocab.json", "merges.txt"

_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")


def read_backend(folder: Path) -> tokenizers.Tokenizer:
    """Read a folder's tokenizer, from whichever file it has.

    Raises:
        ModelError: there is none, it is broken, or of a format that is not read.
    """
    file = folder / "tokenizer.json"
    try:
        if file.is_file():
            return tokenizers.Tokenizer.from_str(read_text(file, MOST_TOKENIZER_BYTES))
        file, content = _converted(folder)
        return tokenizers.Tokenizer.from_str(json.dumps(content))
    except ModelError:
        raise
    except OSError as error:
        raise ModelError(f"{file} cannot be read", found=str(error), do="check the file and its permissions") from error
    except BaseException as error:
        raise_unless_of_the_library(error)
        raise ModelError(
            f"{file} is not a tokenizer",
            found=str(error)[:500],
            do="download the file again, or update the package tokenizers",
        ) from error


def raise_unless_of_the_library(error: BaseException) -> None:
    """Lets through what is not the tokenizers library's: it raises plain exceptions, and panics that are none."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object, or {} where there is no file."""
    if not file.is_file():
        return {}
    try:
        value = parse_json(read_text(file))
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text: the tokenizer refuses it
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read", found=str(error), do="download the file again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file} is not a JSON object", found=type(value).__name__, do="download the file again")
    return value


def added_tokens(folder: Path) -> dict[int, Added]:
    """The added tokens that a folder's JSON files name, by id."""
    config = read_json(folder / "tokenizer_config.json")
    listed = read_json(folder / "special_tokens_map.json").get("additional_special_tokens")
    also = config.get("additional_special_tokens")
    special = {_text(token) for tokens in (listed, also) if isinstance(tokens, list) for token in tokens}
    added = {
        index: Added(text, special=text in special)
        for text, index in read_json(folder / "added_tokens.json").items()
        if _is_id(index) and text
    }
    decoder = config.get("added_tokens_decoder")
    for key, entry in decoder.items() if isinstance(decoder, dict) else ():
        text = _text(entry)
        if str(key).isdecimal() and text:
            flags = {name: bool(entry.get(name, False)) for name in _FLAGS if isinstance(entry, dict)}
            added[int(key)] = Added(text, **{**flags, "special": flags.get("special", False) or text in special})
    return added


def _converted(folder: Path) -> tuple[Path, Json]:
    """The content of a tokenizer.json, made from a file of an older format."""
    file = _older(folder)
    resolved_inside(file)
    added = added_tokens(folder)
    family = str(read_json(folder / "config.json").get("model_type", "")).lower()
    if file.name == _VOCABULARY:
        resolved_inside(folder / _MERGES)
        named, tokenizer_class = _named(folder)
        added = named_tokens(file, named, added)
        return file, merges_json(file, folder / _MERGES, tokenizer_class, family, added)
    if file.suffix != ".tiktoken" and looks_like_pieces(file):
        model = read_pieces(file)
        if family == "chatglm" and len(model.pieces) == _CHATGLM_PIECES:
            added = numbered(_CHATGLM, _CHATGLM_PIECES) | added
        legacy = read_json(folder / "tokenizer_config.json").get("legacy") is not False
        return file, pieces_json(model, added, legacy=legacy)
    kind = KINDS.get(family)
    if kind is None:
        raise ModelError(
            f"{file}: how {family or 'this model'} cuts texts is not known",
            expected=f"a tiktoken vocabulary of {', '.join(KINDS)}",
            found=f"model_type {family!r} in config.json",
            do="use a copy of the model with tokenizer.json",
        )
    return file, tiktoken_json(read_ranks(file), kind, added)


def _older(folder: Path) -> Path:
    """The file of an older format."""
    for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"):
        if (folder / name).is_file():
            return folder / name
    found = _files(folder, (".tiktoken", ".model"))
    if len(found) == 1:
        return found[0]
    if not found and all((folder / name).is_file() for name in (_VOCABULARY, _MERGES)):
        return folder / _VOCABULARY
    other = [file.name for file in found] or [
        name for name in ("vocab.json", "vocab.txt", "tekken.json") if (folder / name).is_file()
    ]
    raise ModelError(
        f"{folder} has no tokenizer.json",
        expected="tokenizer.json, tokenizer.model (sentencepiece or tiktoken), a *.tiktoken file, or vocab.json with "
        "merges.txt",
        found=f"{', '.join(other)}, {'several' if found else 'an older format'}" if other else "no tokenizer",
        do="give a complete model folder; AutoTokenizer.from_pretrained(…).save_pretrained(…) of transformers "
        "writes tokenizer.json out of the older formats",
    )


def _named(folder: Path) -> tuple[list[str], str]:
    """The texts of the control tokens that a folder names without ids, and its tokenizer_class."""
    config, listed = read_json(folder / "tokenizer_config.json"), read_json(folder / "special_tokens_map.json")
    both = {**listed, **{key: value for key, value in config.items() if value is not None}}
    more = both.get("additional_special_tokens")
    texts = [_text(both.get(name)) for name in NAMED_TOKENS]
    texts += [_text(token) for token in more] if isinstance(more, list) else []
    kind = config.get("tokenizer_class")
    return [text for text in texts if text], kind if isinstance(kind, str) else ""


def _files(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    return sorted(path for suffix in suffixes for path in folder.glob(f"*{suffix}") if path.is_file())


def _text(token: Any) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 24
