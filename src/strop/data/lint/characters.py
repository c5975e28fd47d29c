"""Many texts as one array of code points, so that what every character must be asked is asked by numpy.

    texts     "Hi", "你好"
    codes     72 105 10 20320 22909 10            each text followed by a line feed, so that none is empty
    starts    0           3                       where each text begins
    owner     0  0   0   1     1     1            the text that a character belongs to

`Marks` are bits: each character has some, a text has those of all its characters, and a check that costs more looks
only at texts with its mark. Tables have an entry for each of the 1,114,112 code points and are made once.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from enum import IntFlag
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Codes = npt.NDArray[np.uint32]
    Integers = npt.NDArray[np.int64]

_CODE_POINTS = 0x110000

GBK_SHARE = 50
"""One character in so many has to be of those that mojibake of GBK is made of …"""

GBK_MANY = 12
"""… or so many in all: one paragraph of many."""


class Marks(IntFlag):
    """What a text has somewhere."""

    ANGLE = 1  # < or ＜: tags, control tokens
    SQUARE = 2  # [: [INST], [PAD]
    HASH = 4  # #: ### Human:
    AT = 8
    AMPERSAND = 16
    HIGH_LATIN = 32  # what begins UTF-8 read as Latin-1 or CP1252
    CONTROL = 64
    INVISIBLE = 128
    REPLACEMENT = 256
    SURROGATE = 512
    GBK = 1024  # what UTF-8 read as GBK is made of
    RETURN = 2048
    TAB = 4096
    LONG_TOKEN = 8192  # sixteen letters, digits, - or _ in a row
    LONG_NUMBER = 16384  # eight digits in a row, dashes, blanks and brackets between them passed over
    DOTTED = 32768  # seven digits and dots in a row
    DEBRIS = 65536  # 锟斤拷, 烫烫烫烫: what is left where bytes are lost


SCRIPTS = ("", "Latin", "Han", "Kana", "Hangul", "Cyrillic", "Greek", "Arabic", "Hebrew", "Devanagari", "Thai")
"""The scripts that are told apart; "" is everything else."""

_RANGES = (
    ("Latin", 0x41, 0x5A), ("Latin", 0x61, 0x7A), ("Latin", 0xC0, 0xD6), ("Latin", 0xD8, 0xF6), ("Latin", 0xF8, 0x24F),
    ("Latin", 0x1E00, 0x1EFF), ("Greek", 0x370, 0x3FF), ("Cyrillic", 0x400, 0x52F), ("Hebrew", 0x5D0, 0x5EA),
    ("Arabic", 0x620, 0x6FF), ("Arabic", 0x750, 0x77F), ("Arabic", 0xFB50, 0xFDFB), ("Arabic", 0xFE70, 0xFEFC),
    ("Devanagari", 0x900, 0x97F), ("Thai", 0xE01, 0xE5B), ("Kana", 0x3041, 0x30FA), ("Kana", 0x31F0, 0x31FF),
    ("Kana", 0xFF66, 0xFF9D), ("Hangul", 0x1100, 0x11FF), ("Hangul", 0x3131, 0x318E), ("Hangul", 0xAC00, 0xD7A3),
    ("Han", 0x3400, 0x4DBF), ("Han", 0x4E00, 0x9FFF), ("Han", 0xF900, 0xFAFF), ("Han", 0x20000, 0x3134F),
)  # fmt: skip


class Characters:
    """Texts as code points.

    Args:
        texts: any texts, lone surrogates and all.

    Attributes:
        codes: uint32 [characters and one line feed a text].
        starts: int64 [texts]: where each begins in codes.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        joined = "\n".join([*texts, ""])
        self.codes: Codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        lengths = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
        self.lengths: Integers = lengths
        self.starts: Integers = np.cumsum(lengths) - lengths

    @cached_property
    def owner(self) -> npt.NDArray[np.int32]:
        """int32 [characters]: the text that each belongs to."""
        return np.repeat(np.arange(len(self.lengths), dtype=np.int32), self.lengths)

    def marks(self) -> npt.NDArray[np.uint32]:
        """uint32 [texts]: the marks of each text."""
        if not len(self.starts):
            return np.zeros(0, np.uint32)
        marks = _marks()[self.codes]
        found = np.bitwise_or.reduceat(marks, self.starts)
        # Right Chinese has such characters as well, but few.
        many = np.bincount(self.owner[np.flatnonzero(marks & np.uint32(Marks.GBK))], minlength=len(self.starts))
        found[(many < 2) | ((many * GBK_SHARE < self.lengths - 1) & (many < GBK_MANY))] &= ~np.uint32(Marks.GBK)
        letters, digits, dotted = _token()[self.codes], _digit()[self.codes], _dotted()[self.codes]
        for mark, runs in (
            (Marks.LONG_TOKEN, _runs(letters, 16)),
            (Marks.LONG_NUMBER, _runs(digits, 8)),
            (Marks.DOTTED, _runs(dotted, 7)),
        ):
            found[self.owner[np.flatnonzero(runs)]] |= np.uint32(mark)
        return found

    def scripts(self) -> Integers:
        """int64 [texts, scripts]: letters of each script."""
        cells = self.owner.astype(np.int64) * len(SCRIPTS) + scripts_table()[self.codes]
        return np.bincount(cells, minlength=len(self.starts) * len(SCRIPTS)).reshape(-1, len(SCRIPTS))


def _runs(flags: npt.NDArray[np.bool_], length: int) -> npt.NDArray[np.bool_]:
    """Where `length` flags in a row begin, by doubling: 16 in a row are two times 8 in a row."""
    done = 1
    while done < length:
        step = min(done, length - done)
        flags = flags[:-step] & flags[step:] if len(flags) > step else flags[:0]
        done += step
    return flags


def _table(dtype: type) -> npt.NDArray[np.generic]:
    return np.zeros(_CODE_POINTS, dtype)


@lru_cache(maxsize=1)
def _marks() -> npt.NDArray[np.uint32]:
    table = np.zeros(_CODE_POINTS, np.uint32)
    for mark, characters in (
        (Marks.ANGLE, "<＜"), (Marks.SQUARE, "["), (Marks.HASH, "#"), (Marks.AT, "@"), (Marks.AMPERSAND, "&"),
        (Marks.REPLACEMENT, "\ufffd"), (Marks.RETURN, "\r"), (Marks.TAB, "\t"), (Marks.INVISIBLE, INVISIBLE),
        (Marks.GBK, gbk_mojibake_characters()), (Marks.CONTROL, CONTROL), (Marks.DEBRIS, "锟烫屯"),
    ):  # fmt: skip
        table[[ord(character) for character in characters]] |= np.uint32(mark)
    table[0xC2:0xF5] |= np.uint32(Marks.HIGH_LATIN)
    table[0xD800:0xE000] |= np.uint32(Marks.SURROGATE)
    return table


@lru_cache(maxsize=1)
def scripts_table() -> npt.NDArray[np.uint8]:
    """uint8 [code points]: the number in `SCRIPTS` of a letter's script; 0 for all that is no letter."""
    table = np.zeros(_CODE_POINTS, np.uint8)
    for script, first, last in _RANGES:
        table[first : last + 1] = SCRIPTS.index(script)
    return table


def _flags(characters: str) -> npt.NDArray[np.bool_]:
    table = np.zeros(_CODE_POINTS, np.bool_)
    table[[ord(character) for character in characters]] = True
    return table


_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_token = lru_cache(maxsize=1)(lambda: _flags(_LETTERS + "0123456789-_"))
_digit = lru_cache(maxsize=1)(lambda: _flags("0123456789-() +"))
_dotted = lru_cache(maxsize=1)(lambda: _flags("0123456789."))

CONTROL = "".join(map(chr, (*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), *range(0x7F, 0xA0))))
"""C0 and C1 without tab, line feed and carriage return."""

INVISIBLE = (
    "\xad\u061c\u180e\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
)
"""Zero width, direction marks, soft hyphens."""

_FREQUENT = (
    "的一是不了人我在有他这中大来上个国和也子时道说出而要于就下得可你年生自会那后能对着事其里所去行过家十用发天如然作方成者多日都三小军二"
    "无同么经法当起与好看学进种将还分此心前面又定见只主没公从请问题答案解计算为什以下文回翻译句语言"
)


@lru_cache(maxsize=1)
def gbk_mojibake_characters() -> str:
    """Characters that frequent Chinese ones become when their UTF-8 is read as GBK, and that are not frequent.

    锟斤拷 belongs to them: it is U+FFFD twice, read as GBK.
    """
    made = set("锟斤拷")
    for first in _FREQUENT:
        # Three bytes are one and a half characters in GBK: the second half depends on the neighbour.
        for second in "的是，。一":
            made.update((first + second).encode("utf-8").decode("gb18030", "ignore"))
            made.update((second + first).encode("utf-8").decode("gb18030", "ignore"))
    return "".join(sorted(character for character in made if ord(character) > 0x7F and character not in _FREQUENT))


@lru_cache(maxsize=1)
def plain_table() -> Codes:
    """uint32 [code points]: a character without case and width; 0 for blanks and for the marks of prose.

    What is left tells texts apart: letters, digits, and signs that compute (+ - * / = < >).
    """
    table = np.arange(_CODE_POINTS, dtype=np.uint32)
    for code in range(0x10000):
        character = chr(code)
        if 0xFF01 <= code <= 0xFF5E:
            character = chr(code - 0xFEE0)
        lower = character.lower()
        if character.isspace() or unicodedata.category(character) in ("Cc", "Cf", "Zs") or character in _PROSE:
            table[code] = 0
        elif len(lower) == 1:
            table[code] = ord(lower)
    return table


_PROSE = frozenset(".,;:!?'\"`()[]{}~_…·‘’“”„«»、。《》〈〉「」『』【】—–")


def plain(text: str) -> str:
    """The text by `plain_table`."""
    codes = plain_table()[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")]
    return str(codes[codes != 0].astype("<u4").tobytes(), "utf-32-le", "surrogatepass")
