"""Sizes and times, between people and numbers.

    "8GB", "8 gb", "8G" → 8,000,000,000        "6GiB" → 6,442,450,944        7_812_000_000 → "7.8 GB"
    45.2 → "45 s"        200 → "3 min 20 s"        7_500 → "2 h 05 min"

GB is 10⁹ bytes and GiB is 2³⁰ bytes, as IEC 80000-13 has it.
"""

from __future__ import annotations

import math
import re
from typing import Final

from strop.errors import UsageError

_SIZE: Final = re.compile(r"\s*(\d+(?:[._]\d+)*(?:e\d+)?)\s*([kmgt]i?b?|b|bytes?|)\s*", re.IGNORECASE)
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str, name: str = "--memory") -> int:
    """Read a number of bytes.

    Args:
        text: a number and a unit: B, kB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (powers of 1024); the B
            may be left out, case and spaces do not count.
        name: the flag, for errors.

    Returns:
        Bytes, rounded down to a whole number.

    Raises:
        UsageError: no such size, no unit, or zero.
    """
    match = _SIZE.fullmatch(text)
    unit = match[2].lower() if match else ""
    try:
        number = float(match[1].replace("_", "")) if match else math.nan
    except ValueError:  # two dots
        number = math.nan
    if not math.isfinite(number) or number <= 0 or not unit:
        bare = match is not None and not unit and number > 0
        raise UsageError(
            f"{name} is not a size",
            expected="a number above 0 and a unit: 8GB, 6GiB, 500MB",
            found=text.strip() or '""',
            do=f"did you mean {name} {text.strip()}GB ?" if bare else f"write {name} 8GB",
        )
    prefix = "" if unit.startswith("byte") else unit.rstrip("b").rstrip("i")
    base = 1024 if "i" in unit and prefix else 1000
    return int(number * base ** _POWERS[prefix])


def format_size(size: float) -> str:
    """Write a number of bytes with two or three digits: 950 → "950 B", 7_812_000_000 → "7.8 GB"."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if abs(value) < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or abs(value) >= 99.95 else f"{value:.1f} {unit}"


def format_duration(seconds: float) -> str:
    """Write a time span: 45.2 → "45 s", 200 → "3 min 20 s", 7_500 → "2 h 05 min", 0.25 → "0.2 s"."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def at_least(flag: str, value: float, least: float) -> None:
    """Hold a flag's number to its lower bound.

    Raises:
        UsageError: the number is below it, or not a number.
    """
    if not value >= least:
        raise UsageError(
            f"{flag} does not take this value",
            expected=f"a number of {least:g} or more",
            found=f"{value:g}",
            do=f"write {flag} {least:g} or more, or leave it out",
        )
