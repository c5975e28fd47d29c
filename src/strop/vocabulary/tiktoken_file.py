"""tiktoken-style vocabularies (``qwen.tiktoken``, GLM-4's and Llama 3's ``tokenizer.model``) as a ``tokenizer.json``.

    IQ== 0 ⏎ Ig== 1 ⏎ …      a line: the token's bytes in base64, its rank, which is its id

A text is cut by a pattern, and in each piece the two neighbours whose joint bytes have the lowest rank are joined,
again and again, leftmost first; a piece that is a token as a whole is taken as it is. The file holds neither the
pattern nor the control tokens: both are the family's, and stand here as its code has them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from strop.errors import ModelError
from strop.vocabulary.added import Added, Json, entries, numbered, place
from strop.vocabulary.byte_level import NFC, byte_letters, byte_level_json, pattern_split

MOST_BYTES = 64 << 20
_LONGEST_LINE = 4096


@dataclass(frozen=True, slots=True)
class TiktokenKind:
    """What a family's code adds to the file.

    Attributes:
        digits: the part of the pattern for digits.
        nfc: whether texts are brought to Unicode's form C first.
        control: control tokens that follow the ranks, in order, unless the repository names its own.
    """

    digits: str
    nfc: bool = False
    control: tuple[str, ...] = field(default=())


KINDS: Mapping[str, TiktokenKind] = {
    "qwen": TiktokenKind(
        r"\p{N}",
        nfc=True,
        control=("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{n}|>" for n in range(205))),
    ),
    "chatglm": TiktokenKind(
        r"\p{N}{1,3}",
        control=(
            *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"),
            *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
            *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
        ),
    ),
    "llama": TiktokenKind(
        r"\p{N}{1,3}",
        control=(
            *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
            *("<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>"),
            *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
            *(f"<|reserved_special_token_{n}|>" for n in range(3, 248)),
        ),
    ),
}
"""By model_type of config.json."""


def read_ranks(path: Path) -> list[bytes]:
    """The tokens' bytes in the order of their ranks.

    Raises:
        ModelError: it cannot be read, or a line is no token and its rank.
    """
    tokens: list[bytes] = []
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        with path.open("rb") as file:
            while line := file.readline(_LONGEST_LINE):
                if line.strip():
                    token, rank = line.split()
                    if int(rank) != len(tokens):
                        raise ValueError(f"rank {int(rank)} on line {len(tokens) + 1}")
                    tokens.append(base64.b64decode(token, validate=True))
        if len(set(tokens)) != len(tokens) or not {bytes([byte]) for byte in range(256)} <= set(tokens):
            raise ValueError("a token twice, or a byte without a token")
    except OSError as error:
        raise ModelError(f"{path} cannot be read", found=str(error), do="check the file and its permissions") from None
    except (ValueError, binascii.Error) as error:
        raise ModelError(
            f"{path} is not a tiktoken vocabulary",
            expected="a token in base64 and its rank on every line, ranks from 0 on",
            found=str(error),
            do="download the file again",
        ) from None
    return tokens


def tiktoken_json(tokens: list[bytes], kind: TiktokenKind, added: Mapping[int, Added] | None = None) -> Json:
    """The content of a tokenizer.json.

    Args:
        tokens: the tokens' bytes, by rank.
        kind: what the family's code adds.
        added: control tokens by id as the repository names them; None for the family's.
    """
    letters = byte_letters()
    names = ["".join(map(letters.__getitem__, token)) for token in tokens]
    vocabulary = {name: rank for rank, name in enumerate(names)}
    merges = [
        [name[:cut], name[cut:]]
        for name in names
        for cut in range(1, len(name))
        if name[:cut] in vocabulary and name[cut:] in vocabulary
    ]
    control = numbered(kind.control, len(tokens)) | dict(added or {})
    place(vocabulary, control)
    return byte_level_json(
        vocabulary,
        merges,
        entries(control),
        split=pattern_split(kind.digits),
        normalizer=NFC if kind.nfc else None,
        ignore_merges=True,
    )
