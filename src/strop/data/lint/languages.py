"""Languages, as far as scripts tell them: Chinese from Japanese and Korean, both from what is written in Latin letters.

A Chinese character says about as much as two letters, and counts so. English, French and German are one here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from strop.data.lint.characters import SCRIPTS, Characters

_NAMES = {
    "Latin": "Latin script", "Han": "Chinese", "Kana": "Japanese", "Hangul": "Korean", "Cyrillic": "Cyrillic script",
    "Greek": "Greek", "Arabic": "Arabic script", "Hebrew": "Hebrew", "Devanagari": "Devanagari", "Thai": "Thai",
}  # fmt: skip
_FORMAL = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\\[.*?\\\]|\\\(.*?\\\)|\\[A-Za-z]+|https?://\S+|<[^<>\n]*>"
    r"|^[^\n]*(?:[;{}]|\)[ ]*:|==|\+=|->|=>)[^\n]*$|^[ \t]*(?:import|from|def|class|return|SELECT)\b[^\n]*$"
    r"|[A-Za-z_]\w*\([^)\n]*\)|\b\w*_\w+\b|\b[A-Za-z]\b",
    re.DOTALL | re.MULTILINE,
)
_ASKS = re.compile(
    r"translat|翻译|译成|译为|译文|英文|英语|中文|汉语|日语|日文|韩语|法语|德语|俄语|拼音|双语|单词|"
    r"\b(?:in|into|to|from) (?:english|chinese|mandarin|japanese|korean|french|german|spanish|russian|arabic)\b|"
    r"\b(?:english|chinese|mandarin|japanese|korean|french|german|spanish|russian|pinyin|bilingual)\b|"
    r"代码|程序|函数|code|python|sql|program",
    re.IGNORECASE,
)


def language(counts: Sequence[int], least: int = 1, share: float = 0.6) -> str | None:
    """The language of a text.

    Args:
        counts: letters of each of `SCRIPTS`.
        least: letters below which nothing is said.
        share: of the letters that must be of one language.
    """
    weights = {script: int(count) for script, count in zip(SCRIPTS, counts, strict=True) if script and count}
    if "Han" in weights:
        weights["Han"] *= 2
    if "Kana" in weights:
        # Japanese is written in both; a few Kana in Chinese are a quotation.
        kana, han = weights["Kana"] * 2, weights.get("Han", 0)
        if kana * 6 >= han:
            weights["Kana"] = kana + weights.pop("Han", 0)
    total = sum(weights.values())
    if total < least or not total:
        return None
    name, most = max(weights.items(), key=lambda item: item[1])
    return _NAMES[name] if most >= share * total else None


def in_another_language(question: str, answer: str) -> tuple[str, str] | None:
    """The languages of question and answer where they clearly differ, and the question does not ask for that.

    Code, formulas, links and names of functions are not counted: they are the same in every language.
    """
    asked, answered = _formal_removed(question), _formal_removed(answer)
    if _ASKS.search(question):
        return None
    counts = Characters([asked, answered]).scripts()
    languages = [language(row.tolist(), least=24, share=0.85) for row in counts]
    if None in languages or languages[0] == languages[1]:
        return None
    return str(languages[0]), str(languages[1])


def _formal_removed(text: str) -> str:
    return _FORMAL.sub(" ", text)
