"""Secrets and personal data: found by their form, never shown whole.

A form alone is a weak sign: mathematics is full of eleven-digit numbers. Hence a number counts only with its check
digit (identity numbers: GB 11643-1999; cards: Luhn, ISO/IEC 7812-1), its grouping or a word beside it that names it,
and addresses and keys that are known examples (example.com, 192.0.2.0/24, …EXAMPLE) never count.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from datetime import date

Found = tuple[str, int, int]
"""A kind, the first character, and the one behind the last."""

_TOKENS = re.compile(
    r"(?P<key>-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----(?s:.{0,4000}?-----END (?:[A-Z]+ )*PRIVATE KEY-----)?)"
    r"|(?<![A-Za-z0-9])(?P<token>"
    r"(?:AKIA|ASIA)[A-Z0-9]{16}"  # AWS
    r"|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{40,}|glpat-[\w-]{20,}"  # GitHub, GitLab
    r"|sk-(?:proj-|ant-|or-|svcacct-)?[A-Za-z0-9_-]{20,}|sk_live_[A-Za-z0-9]{20,}"  # OpenAI and its like, Stripe
    r"|hf_[A-Za-z0-9]{30,}|xox[abprs]-[A-Za-z0-9-]{20,}|AIza[\w-]{35}|LTAI[A-Za-z0-9]{16,}"
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{20,}"  # JSON web tokens
    r"|(?<=[Bb]earer )[A-Za-z0-9._~+/-]{24,}=*)(?![A-Za-z0-9])"
)
_EXAMPLE = re.compile(r"example|placeholder|your|xxx|x{4}|0000|1234567|abcdef|\.\.\.|\*\*\*", re.IGNORECASE)
_EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.)+[A-Za-z]{2,18})(?![\w@])"
)
_NOBODY = re.compile(
    r"(?:^|\.)(?:example|test|invalid|localhost|local|domain|company|email|mail|yourdomain|mydomain|website|xyz|abc)"
    r"\.?[a-z]{0,4}$|(?:^|\.)example\.",
    re.IGNORECASE,
)
_NO_PERSON = re.compile(
    r"^(?:no-?reply|user(?:name)?|name|you|your\.?(?:name|email)|someone|foo|bar|test|example|git|abc|xxx+|admin|info|support)@",
    re.IGNORECASE,
)
_MOBILE = re.compile(
    r"(?<![\w.,+*/=×^$-])(?:(?:\+|00)86[ -]?)?(1[3-9]\d(?:[ -]?\d{4}){2})(?![\w*/=×^]|[.,-]\d)", re.ASCII
)
_PHONE = re.compile(
    r"(?<![\w.,*/=×^-])(?:\+[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{2,4}(?:[ .-]\d{2,4}){1,4}"
    r"|(?:1[ .-])?\(\d{3}\) ?\d{3}[ .-]\d{4}|(?<!\d )\d{3}-\d{3}-\d{4})(?![\w*/=×^]|[.,-]\d)",
    re.ASCII,
)
_IDENTITY = re.compile(r"(?<![\w.])[1-8]\d{5}(?:19|20)\d{9}[\dXx](?![\w.])", re.ASCII)
_CARD = re.compile(r"(?<![\w.,-])(?:\d{4}([ -])\d{4}\1\d{4}\1\d{4}|\d{15,16})(?![\w]|[.,-]\d)", re.ASCII)
_CARD_WORD = re.compile(r"card|visa|mastercard|amex|credit|debit|payment|卡号|信用卡|银行卡|银联|卡", re.IGNORECASE)
_PHONE_WORD = re.compile(
    r"phone|mobile|call|tel|cell|contact|whatsapp|电话|手机|联系|致电|号码|微信|热线", re.IGNORECASE
)
_IP = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)", re.ASCII)
_VERSION = re.compile(r"(?:version|ver|release|build|section|§|v|版本|第)\.?\s*$", re.IGNORECASE)
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_TEST_CARDS = frozenset(
    {"4111111111111111", "4242424242424242", "5555555555554444", "378282246310005", "4000000000000002"}
)
_NAMED_SERVERS = frozenset(
    {"8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "114.114.114.114", "223.5.5.5", "1.2.3.4"}
)


def find_secrets(text: str) -> Iterator[Found]:
    """Keys and tokens whose form is unmistakable."""
    for found in _TOKENS.finditer(text):
        if found.lastgroup == "key" or not (_EXAMPLE.search(found[0]) or _is_plain(found[0])):
            yield "secrets", found.start(), found.end()


def find_addresses(text: str) -> Iterator[Found]:
    """E-mail addresses of somebody."""
    for found in _EMAIL.finditer(text):
        if not (_NOBODY.search(found[1]) or _NO_PERSON.match(found[0])):
            yield "e-mail-addresses", found.start(), found.end()


def find_long_numbers(text: str) -> Iterator[Found]:
    """Phone numbers, identity numbers and card numbers."""
    taken = bytearray(len(text))
    for found in _IDENTITY.finditer(text):
        if is_identity_number(found[0]):
            _take(found, taken)
            yield "identity-numbers", *found.span()
    for found in _CARD.finditer(text):
        digits = re.sub("[ -]", "", found[0])
        named = found[1] or _CARD_WORD.search(text[max(0, found.start() - 40) : found.end() + 40])
        if named and is_card_number(digits) and digits not in _TEST_CARDS:
            _take(found, taken)
            yield "card-numbers", *found.span()
    for found in _MOBILE.finditer(text):
        digits = re.sub(r"\D", "", found[1])
        if (
            not re.search(r"0000$|(\d)\1{5}|12345678", digits)
            and _named_phone(text, found)
            and not any(taken[found.start() : found.end()])
        ):
            _take(found, taken)
            yield "phone-numbers", *found.span()
    for found in _PHONE.finditer(text):
        made_up = re.search(r"\b555\b|5550\d|123-456", found[0])
        if 8 <= sum(map(str.isdigit, found[0])) <= 15 and not made_up and not any(taken[found.start() : found.end()]):
            yield "phone-numbers", *found.span()


def find_hosts(text: str) -> Iterator[Found]:
    """Public IPv4 addresses."""
    for found in _IP.finditer(text):
        try:
            address = ipaddress.IPv4Address(found[0])
        except ValueError:
            continue
        version = _VERSION.search(text[max(0, found.start() - 16) : found.start()])
        if address.is_global and 9 < address.packed[0] < 224 and found[0] not in _NAMED_SERVERS and not version:
            yield "ip-addresses", found.start(), found.end()


def find_private(text: str) -> Iterator[Found]:
    """All of them."""
    yield from find_secrets(text)
    yield from find_addresses(text)
    yield from find_long_numbers(text)
    yield from find_hosts(text)


def mask(text: str) -> str:
    """The text with all but the first characters of what is private as dots; its length stays."""
    for kind, start, end in find_private(text):
        kept = {"secrets": 4, "e-mail-addresses": 1}.get(kind, 3)
        hidden = re.sub(r"[^\s@.]" if kind == "e-mail-addresses" else r"[^\s]", "•", text[start + kept : end])
        text = text[: start + kept] + hidden + text[end:]
    return text


def is_identity_number(text: str) -> bool:
    """Whether 18 characters are a Chinese identity number: its birthday a day, its check digit right (GB 11643)."""
    try:
        born = date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    except ValueError:
        return False
    if not (date(1900, 1, 1) <= born <= date.today()):
        return False
    return (
        "10X98765432"[sum(int(digit) * weight for digit, weight in zip(text, _WEIGHTS, strict=False)) % 11]
        == text[17].upper()
    )


def is_card_number(digits: str) -> bool:
    """Whether digits are those of a payment card: a known issuer, and Luhn's check digit."""
    length = len(digits)
    issuer = (length == 16 and re.match(r"4|5[1-5]|2[2-7]|62|6011|65|35", digits) is not None) or (
        length == 15 and digits[:2] in ("34", "37")
    )
    doubled = [int(digit) * (1 + (place % 2)) for place, digit in enumerate(reversed(digits))]
    return issuer and len(set(digits)) > 1 and sum(number // 10 + number % 10 for number in doubled) % 10 == 0


def _named_phone(text: str, found: re.Match[str]) -> bool:
    """Eleven digits in a row are a phone number beside a word that says so, or where nothing is computed."""
    grouped = len(found[0]) > 11
    around = text[max(0, found.start() - 24) : found.end() + 12]
    return (
        grouped
        or _PHONE_WORD.search(around) is not None
        or not re.search(r"[+*/=×÷^<>\\$]|\d\D{1,3}\d", around.replace(found[0], " "))
    )


def _take(found: re.Match[str], taken: bytearray) -> None:
    """Mark characters as belonging to a number, so that no other is found in them."""
    taken[found.start() : found.end()] = b"\1" * (found.end() - found.start())


def _is_plain(token: str) -> bool:
    """A random token has digits or both cases, and many different characters; a name or a ruler has not."""
    body = token.split("-", 1)[-1]
    return len(set(body)) < 10 or not (any(map(str.isdigit, body)) and any(map(str.isalpha, body)))
