"""``vocab.json`` and ``merges.txt`` as a ``tokenizer.json``: byte-level BPE as GPT-2 was published, without its cut.

    vocab.json    {"Ġthe": 262, …}                        token → id
    merges.txt    #version: 0.2 ⏎ Ġ t ⏎ Ġ a ⏎ …           a line: two tokens that become one, best first

How texts are cut is the class's that the repository names (``tokenizer_class``), or the family's:

    Qwen2Tokenizer                       Qwen's pattern, on text in Unicode's form C
    GPT2Tokenizer, CodeGenTokenizer      GPT-2's; every digit by itself where no merge joins one

The last is how StarCoder and SmolLM were trained. The class does not tell them from GPT-2, whose merges begin to join
digits early; where none does, the finer cut gives the vocabulary's own tokens, spaces before numbers included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from strop.errors import ModelError
from strop.foreign import parse_json, read_text
from strop.vocabulary.added import Added, Json, entries, place
from strop.vocabulary.byte_level import DIGITS_SPLIT, GPT2_SPLIT, NFC, byte_level_json, pattern_split

MOST_BYTES = 64 << 20
END_OF_TEXT = "<|endoftext|>"
"""The control token that all these classes know without being told."""

_GPT2 = ("gpt2tokenizer", "codegentokenizer")
_QWEN = ("qwen2tokenizer",)
_FAMILIES = {"qwen2": _QWEN[0], "qwen3": _QWEN[0], "qwen3_moe": _QWEN[0], "starcoder2": _GPT2[0], "phi": _GPT2[1]}


def merges_json(
    vocabulary_file: Path, merges_file: Path, tokenizer_class: str, family: str, added: Mapping[int, Added]
) -> Json:
    """The content of a tokenizer.json.

    Args:
        vocabulary_file: vocab.json.
        merges_file: merges.txt.
        tokenizer_class: as tokenizer_config.json has it; "" where it does not say.
        family: model_type of config.json, which stands for the class where that is not said.
        added: added tokens by id.

    Raises:
        ModelError: a file is broken, or the class's cut is not known.
    """
    names = (tokenizer_class.lower().removesuffix("fast"), _FAMILIES.get(family, ""))
    name = next((one for one in names if one in (*_GPT2, *_QWEN)), None)
    if name is None:
        raise ModelError(
            f"{vocabulary_file}: how {tokenizer_class or family or 'this model'} cuts texts is not known",
            expected="tokenizer_class Qwen2Tokenizer, GPT2Tokenizer or CodeGenTokenizer in tokenizer_config.json",
            found=f"tokenizer_class {tokenizer_class!r}, model_type {family!r}",
            do="use a copy of the model with tokenizer.json",
        )
    vocabulary, merges = _vocabulary(vocabulary_file), _merges(merges_file)
    known = set(vocabulary)
    for number, merge in enumerate(merges):
        if not {*merge, "".join(merge)} <= known:
            raise _broken(merges_file, "two tokens of vocab.json that make a third", f"merge {number}: {merge}")
    place(vocabulary, added)
    split = pattern_split(r"\p{N}") if name in _QWEN else GPT2_SPLIT if _joins_digits(merges) else DIGITS_SPLIT
    normalizer = NFC if name in _QWEN else None
    return byte_level_json(vocabulary, merges, entries(added), split=split, normalizer=normalizer)


def named_tokens(vocabulary_file: Path, named: Iterable[str], added: Mapping[int, Added]) -> dict[int, Added]:
    """The control tokens that a repository names without an id: those of the vocabulary, and behind it the others.

    Args:
        vocabulary_file: vocab.json.
        named: texts of bos_token, eos_token, … and additional_special_tokens, in that order.
        added: added tokens by id, which come first.
    """
    vocabulary = _vocabulary(vocabulary_file)
    by_text = {**vocabulary, **{token.content: index for index, token in added.items()}}
    found = dict(added)
    for text in (END_OF_TEXT, *named):
        if text == END_OF_TEXT and text not in by_text:
            continue
        index = by_text.setdefault(text, max(by_text.values()) + 1)
        found.setdefault(index, Added(text))
    return found


def _joins_digits(merges: Iterable[tuple[str, str]]) -> bool:
    return any(letter in "0123456789" for merge in merges for part in merge for letter in part)


def _vocabulary(file: Path) -> dict[str, int]:
    try:
        content = parse_json(read_text(file, MOST_BYTES))
    except (OSError, ValueError) as error:
        raise _broken(file, "a JSON object: token and id", str(error)) from None
    ids = content.values() if isinstance(content, dict) else ()
    if not all(type(index) is int and 0 <= index < 1 << 24 for index in ids) or not 0 < len(set(ids)) == len(ids):
        raise _broken(file, "a JSON object: token and id, every id once", f"{str(content)[:80]!r}")
    return dict(content)


def _merges(file: Path) -> list[tuple[str, str]]:
    try:
        lines = read_text(file, MOST_BYTES).split("\n")
    except (OSError, ValueError) as error:
        raise _broken(file, "lines of two tokens", str(error)) from None
    merges = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#version"):
            continue
        left, _, right = line.removesuffix("\r").partition(" ")
        if not left or not right or " " in right:
            raise _broken(file, "two tokens with a space between", f"line {number}: {line[:80]!r}")
        merges.append((left, right))
    return merges


def _broken(file: Path, expected: str, found: str) -> ModelError:
    return ModelError(f"{file} cannot be read", expected=expected, found=found, do="download the file again")
