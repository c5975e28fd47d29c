"""Sizes and times, for people.

    7_812_000_000 → "7.8 GB"
    45.2 → "45 s"        200 → "3 min 20 s"        7_500 → "2 h 05 min"

GB is 10⁹ bytes, as IEC 80000-13 has it.
"""

from __future__ import annotations

import math

from strop.errors import UsageError


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
