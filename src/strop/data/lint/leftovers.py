"""What another tool left in the text: marks of chat templates, control tokens of the model, HTML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

Found = tuple[str, int, int]

_TEMPLATE = re.compile(
    r"<[|｜][A-Za-z][\w▁/ -]{0,40}[|｜]>"  # ChatML, Llama 3, DeepSeek, Phi
    r"|^[ \t]*<s>|</s>|(?<!\w)<(?:eo[ahs]|bos|pad|unk)>|<(?:start|end)_of_turn>|<<SYS>>|<</SYS>>"
    r"|\[/?INST\]|\[/?SYSTEM_PROMPT\]|\[(?:UNUSED_TOKEN|MASK|PAD|CLS|SEP)(?:_\d+)?\]|\[gMASK\]"
    r"|<\[?(?:UNUSED_TOKEN|TOKENS_UNUSED|reserved)_\d+\]?>|<(?:Human|User|Assistant|Bot|eoh|eoa)>[:：]?"
    r"|^#{2,3} ?(?:Human|Assistant|Instruction|Response|User|System) ?[:：]",
    re.MULTILINE,
)
_SPEAKERS = re.compile(r"^(USER|Human|User|用户|问|ASSISTANT|Assistant|助手|AI|Bot|答) ?[:：] ?\S", re.MULTILINE)
_ASKING = frozenset({"USER", "Human", "User", "用户", "问"})
_STRIKE = re.compile(r"<s>[^<]{0,200}</s>")
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|mdash|ndash|hellip|[lr][sd]quo|#\d{2,5}|#x[0-9a-fA-F]{2,5});")
_TAG = re.compile(
    r"</?(?:p|br|div|span|b|i|u|a|li|ul|ol|h[1-6]|strong|em|td|tr|table|font|img|script|style|center|blockquote|hr)"
    r"(?: [^<>\n]{0,200})?/?>",
    re.IGNORECASE,
)
_ABOUT_HTML = re.compile(
    r"html|xml|\bcss\b|\bdom\b|javascript|react|\bjsx?\b|php|<!doctype|web ?page|website|markup|\btag"
    r"|标签|网页|前端|转义|实体",
    re.IGNORECASE,
)
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)


def find_template_text(text: str) -> Iterator[Found]:
    """Marks of chat templates outside of code."""
    # <s>…</s> strikes words out in HTML.
    prose = _STRIKE.sub(lambda struck: " " * len(struck[0]), _without_code(text))
    for found in _TEMPLATE.finditer(prose):
        yield "template-text", *found.span()


def find_speakers(text: str) -> Iterator[Found]:
    """A dialogue inside one turn, as templates without control tokens write it: both speakers at the start of lines."""
    found = list(_SPEAKERS.finditer(text))
    asking = {match[1] in _ASKING for match in found}
    if len(found) >= 3 and len(asking) == 2:
        yield "template-text", found[0].start(), found[0].end()


def control_token_pattern(control_tokens: Sequence[str]) -> re.Pattern[str] | None:
    """What finds a model's control tokens; None where it has none."""
    words = sorted({token for token in control_tokens if len(token) > 1}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, words))) if words else None


def find_html(text: str, about: str) -> Iterator[Found]:
    """Tags and entities outside of code, unless the conversation is about HTML.

    Args:
        text: one turn.
        about: all turns.
    """
    prose = _without_code(text)
    found = _ENTITY.search(prose) or _TAG.search(prose)
    if found and not _ABOUT_HTML.search(about):
        yield "html-left-over", *found.span()


def _without_code(text: str) -> str:
    """The text with code blanked, of the same length."""
    return _CODE.sub(lambda code: " " * len(code[0]), text) if "`" in text else text
