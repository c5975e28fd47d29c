"""How numbers are written for people: 5 min 8 s, 1.2 GB, 55,523 tokens, a loss of 0.0213.

Rounded here and nowhere else, so that the same number reads the same on every line of a report.
"""

from __future__ import annotations

import math

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def whole(value: float) -> str:
    """A count, with commas between thousands: ``55,523``."""
    return f"{value:,.0f}"


def significant(value: float, digits: int = 4) -> str:
    """A number to some significant digits, without an exponent where it can be read without: ``0.0213``, ``2e-5``.

    Zeros at the end stay where they say that something was rounded (``0.5000`` for 0.50001) and go where they do not.

    Args:
        value: any finite number.
        digits: significant digits; digits before the decimal point are never dropped.
    """
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    text = f"{value:,.{max(0, digits - 1 - magnitude)}f}"
    exact = "." in text and float(text.replace(",", "")) == value
    return text.rstrip("0").rstrip(".") if exact else text


def duration(seconds: float) -> str:
    """A time in its two largest units: ``41.2 s``, ``5 min 8 s``, ``2 h 3 min``, ``3 d 4 h``.

    Args:
        seconds: at least 0.
    """
    if seconds < 60:
        return f"{significant(seconds, 3)} s"
    total = round(seconds)
    for (large, large_name), (small, small_name) in (
        ((86400, "d"), (3600, "h")),
        ((3600, "h"), (60, "min")),
        ((60, "min"), (1, "s")),
    ):
        if total >= large:
            return f"{total // large} {large_name} {total % large // small} {small_name}"
    return f"{total} s"


def size(count: float) -> str:
    """A number of bytes in decimal units (1 GB = 10⁹ bytes): ``1.24 GB``."""
    divisor, unit = byte_unit(count)
    return f"{significant(count / divisor, 3) if divisor > 1 else whole(count)} {unit}"


def byte_unit(largest: float) -> tuple[float, str]:
    """Returns the unit that suits a largest value, as (its bytes, its name)."""
    for exponent, name in ((12, "TB"), (9, "GB"), (6, "MB"), (3, "kB")):
        if abs(largest) >= 10**exponent:
            return 10.0**exponent, name
    return 1.0, "bytes"


def power_unit(largest: float) -> tuple[float, str]:
    """Returns the power of ten that suits a largest value below 0.01, as (the power, ``× 10⁻⁴``); else (1, "")."""
    if not 0 < largest < 0.01:
        return 1.0, ""
    exponent = math.floor(math.log10(largest))
    return 10.0**exponent, f"× 10{str(exponent).translate(_SUPERSCRIPTS)}"


def change(before: float, after: float) -> str:
    """By how much a positive number changed: ``−98.6 %``; empty where that says nothing."""
    if before <= 0:
        return ""
    percent = (after - before) / before * 100
    return f"{'−' if percent < 0 else '+'}{significant(abs(percent), 3)} %"
