"""Text that went through a wrong encoding or a wrong escape: found, and repaired where there is one way to do it.

    cafÃ©      UTF-8 read as Latin-1 or CP1252      ─▶ café
    浣犲ソ      UTF-8 read as GBK                     ─▶ 你好
    锟斤拷      U+FFFD as UTF-8, read as GBK          lost
    ␌rac{1}{2} \\f of \\frac read as a form feed       ─▶ \\frac{1}{2}
    ␡ U+200B   control and invisible characters      ─▶ (nothing)

A repair is a list of `Edit`s, so that whatever counts characters (spans with weights) can follow it. An edit is made
only where encoding the repaired text wrongly gives back the text as it was: what else could it have been?
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from strop.data.lint.characters import CONTROL, GBK_MANY, GBK_SHARE, INVISIBLE, Marks, gbk_mojibake_characters


@dataclass(frozen=True, slots=True)
class Edit:
    """Characters of a text and what to put in their place.

    Args:
        kind: the kind of finding that it answers.
        start: the first character.
        end: the one behind the last.
        text: what to put there.
    """

    kind: str
    start: int
    end: int
    text: str


def _sloppy_bytes() -> dict[str, int]:
    """Characters to the byte that CP1252 reads as them; its five holes are read as Latin-1 does."""
    table = {chr(byte): byte for byte in range(0x80, 0x100)}
    for byte in range(0x80, 0xA0):
        try:
            table[bytes([byte]).decode("cp1252")] = byte
        except UnicodeDecodeError:
            continue
    return table


_BYTES = _sloppy_bytes()
_HIGH = re.compile(f"[{re.escape(''.join(_BYTES))}]{{2,}}")
_NON_ASCII = re.compile(r"[^\x00-\x7f]{2,}")
_SURROGATES = re.compile("[\ud800-\udfff]+")
_CONTROL = re.compile(f"[{re.escape(CONTROL)}]+")
_INVISIBLE = re.compile(f"[{re.escape(INVISIBLE)}]+")
_JOINERS = "\u200c\u200d"
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_RETURNS = re.compile(r"\r\n?")
_DEBRIS = re.compile("(?:锟斤拷)+|(?:ï¿½)+|烫{4,}|屯{4,}")
"""U+FFFD as UTF-8, read as GBK and as Latin-1; memory that was never written, read as GBK."""
_LOST = {
    "\x07": ("a", "lpha|pprox|ngle|st|rctan|rcsin|rccos|lign"),
    "\x08": ("b", "oxed|egin|eta|ar|inom|mod|ullet|ig|f|mathbf|ecause|ot"),
    "\x0b": ("v", "ec|ert|arphi|arepsilon|ee|dots"),
    "\x0c": ("f", "rac|lat|loor|orall|box"),
    "\t": ("t", r"ext(?:bf|it|rm)?\{|imes(?![a-z])|heta(?![a-z])|frac(?=[{\d])|binom\{|riangle(?![a-z])"),
    "\r": ("r", r"ight(?=[)\]}|.\\])|ightarrow(?![a-z])|floor(?![a-z])|angle(?![a-z])|ceil(?![a-z])"),
}
"""An escape, the letter it was, and how the LaTeX commands go on that it may have been."""
_BACKSLASH = re.compile("|".join(f"{re.escape(lost)}(?={rest})" for lost, (_, rest) in _LOST.items()))


def edits(text: str) -> list[Edit]:
    """All repairs of a text, apart and in order; what one repair uncovers is found when the text is looked at again."""
    found: list[Edit] = []
    taken = bytearray()
    for finder in _FINDERS:
        for edit in finder(text):
            taken = taken or bytearray(len(text))
            if not any(taken[edit.start : edit.end]):
                found.append(edit)
                taken[edit.start : edit.end] = b"\1" * (edit.end - edit.start)
    return sorted(found, key=lambda edit: edit.start)


def apply(text: str, changes: Sequence[Edit]) -> str:
    """The text with repairs made that are apart and in order."""
    pieces, done = [], 0
    for edit in changes:
        pieces += [text[done : edit.start], edit.text]
        done = edit.end
    return "".join([*pieces, text[done:]])


def losses(text: str) -> Iterator[tuple[str, int, int]]:
    """What cannot be repaired: kind, first character, the one behind the last."""
    if (at := text.find("\ufffd")) >= 0:
        yield "replacement-characters", at, at + 1
    if found := _DEBRIS.search(text):
        yield "mojibake", *found.span()
    for found in _SURROGATES.finditer(text):
        if _join(found[0]) is None or any("\ud800" <= character <= "\udfff" for character in _join(found[0]) or ""):
            yield "broken-surrogates", *found.span()
            break
    if (span := _looks_like_gbk(text)) is not None:
        yield "mojibake", *span


REPAIRABLE = Marks.HIGH_LATIN | Marks.CONTROL | Marks.INVISIBLE | Marks.SURROGATE | Marks.GBK | Marks.RETURN | Marks.TAB
"""Marks without which a text has no repairs."""

LOSSY = Marks.REPLACEMENT | Marks.SURROGATE | Marks.GBK | Marks.DEBRIS | Marks.HIGH_LATIN
"""Marks without which a text has no losses."""


def _surrogates(text: str) -> Iterator[Edit]:
    for found in _SURROGATES.finditer(text):
        joined = _join(found[0])
        if joined is not None and joined != found[0]:
            yield Edit("broken-surrogates", *found.span(), joined)


def _join(halves: str) -> str | None:
    return halves.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass") if len(halves) > 1 else None


def _backslashes(text: str) -> Iterator[Edit]:
    for found in _BACKSLASH.finditer(text):
        yield Edit("lost-backslashes", *found.span(), "\\" + _LOST[found[0]][0])


def _latin(text: str) -> Iterator[Edit]:
    """UTF-8 read as Latin-1 or CP1252."""
    for run in _HIGH.finditer(text):
        yield from _decoded(run[0], run.start())


def _decoded(run: str, offset: int) -> Iterator[Edit]:
    """The parts of a run of high characters whose bytes are UTF-8, each as one edit."""
    raw, at = bytes(_BYTES[character] for character in run), 0
    while at < len(raw):
        end, text = at, ""
        while (length := _sequence(raw, end)) and (character := _strict(raw[end : end + length])):
            end, text = end + length, text + character
        if text and _plausible(text, run[at:end]):
            yield Edit("mojibake", offset + at, offset + end, text)
        at = max(end, at + 1)


def _sequence(raw: bytes, at: int) -> int:
    """The length of the UTF-8 sequence that a byte begins; 0 for none."""
    if at >= len(raw):
        return 0
    first = raw[at]
    return 2 if 0xC2 <= first <= 0xDF else 3 if 0xE0 <= first <= 0xEF else 4 if 0xF0 <= first <= 0xF4 else 0


def _strict(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return ""


def _plausible(text: str, was: str) -> bool:
    """Whether a decoded run is what was meant.

    Two high characters can stand side by side in right text as well: ß“ ends a German quotation, and would be a letter
    of N'Ko. One character of two bytes counts only where it is of Latin-1, as in Ã© for é, and not where Ã ends a
    Portuguese quotation in capitals. Longer ones, and several in a row, do not come about by chance.
    """
    if "\ufffd" in text or any(unicodedata.category(character) in ("Cn", "Co", "Cs") for character in text):
        return False
    if len(text) == 1 and len(was) == 2:
        return "\xa0" <= text <= "\xff" and was[1] not in "”’»"
    if len(text) == 2 and len(was) == 4:
        return text.isprintable() and len({_block(character) for character in text}) == 1
    return True


def _block(character: str) -> int:
    """A rough block: Latin-1 and Latin Extended, Greek with Coptic, Cyrillic, … in steps of 128 characters."""
    return ord(character) >> 7 if ord(character) >= 0x250 else 0


def _gbk(text: str) -> Iterator[Edit]:
    """UTF-8 read as GBK, in runs of characters that are not ASCII."""
    if not _suspicious(text):
        return
    for run in _NON_ASCII.finditer(text):
        repaired = _from_gbk(run[0])
        if repaired is not None:
            yield Edit("mojibake", *run.span(), repaired)


def _from_gbk(run: str) -> str | None:
    """What a run was before it was read as GBK, or None where it is not certain."""
    if len(run) < 3 or sum(map(_GBK.__contains__, run)) * 3 < len(run):
        return None
    try:
        repaired = run.encode("gb18030").decode("utf-8")
        again = repaired.encode("utf-8").decode("gb18030")
    except UnicodeError:
        return None
    # Chance gives rare letters; what was meant is Chinese.
    chinese = sum(
        "\u4e00" <= character <= "\u9fff" or character in "，。！？、：；（）“”《》" for character in repaired
    )
    return repaired if again == run and chinese == len(repaired) else None


def _looks_like_gbk(text: str) -> tuple[int, int] | None:
    """A run that was read as GBK but lost a byte, so that it cannot be turned back whole."""
    if not _suspicious(text):
        return None
    for run in _NON_ASCII.finditer(text):
        piece = run[0][:60]
        if len(piece) >= 5 and sum(map(_GBK.__contains__, piece)) * 3 >= len(piece):
            decoded = piece.encode("gb18030", "ignore").decode("utf-8", "replace")
            good = sum("\u4e00" <= character <= "\u9fff" for character in decoded)
            if good >= 3 and good * 3 >= 2 * len(decoded):
                return run.span()
    return None


_GBK = frozenset(gbk_mojibake_characters())


def _suspicious(text: str) -> bool:
    """Whether enough characters are of those that mojibake is made of; in right text few are."""
    many = sum(map(_GBK.__contains__, text))
    return many >= 2 and (many * GBK_SHARE >= len(text) or many >= GBK_MANY)


def _controls(text: str) -> Iterator[Edit]:
    for found in _CONTROL.finditer(text):
        yield Edit("control-characters", *found.span(), "")


def _invisibles(text: str) -> Iterator[Edit]:
    """Invisible characters where nothing needs them: not in emoji, and not in scripts that join or run leftwards."""
    leftwards = None
    for found in _INVISIBLE.finditer(text):
        for offset, character in enumerate(found[0]):
            at = found.start() + offset
            if character in _JOINERS and (_joins(text, at - 1) or _joins(text, at + 1)):
                continue
            if character in _DIRECTIONS:
                if leftwards is None:
                    leftwards = _RIGHT_TO_LEFT.search(text) is not None
                if leftwards:
                    continue
            yield Edit("invisible-characters", at, at + 1, "")


def _joins(text: str, at: int) -> bool:
    """Whether a character is one that joiners stand beside: of an emoji, or of a script from Arabic to Khmer."""
    if not 0 <= at < len(text):
        return False
    code = ord(text[at])
    return 0x590 <= code <= 0x18AF or code in (0xFE0F, 0x20E3) or 0x2190 <= code <= 0x2BFF or 0x1F000 <= code <= 0x1FAFF


def _returns(text: str) -> Iterator[Edit]:
    for found in _RETURNS.finditer(text):
        yield Edit("carriage-returns", *found.span(), "\n")


_FINDERS: tuple[Callable[[str], Iterator[Edit]], ...] = (
    _surrogates,
    _backslashes,
    _latin,
    _gbk,
    _controls,
    _invisibles,
    _returns,
)
