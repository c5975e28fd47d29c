"""Sizes of memory as people write them: ``--memory 8GB``.

    "8GB", "8 gb", "8G" ──▶ 8,000,000,000        "6GiB" ──▶ 6,442,450,944        (parse_size)
    1,236,482,048 ──▶ "1.24GB"                                                   (write_size, rounded up)

GB is 10⁹ bytes and GiB is 2³⁰ bytes, as IEC 80000-13 has it. What is written is read as at least as many bytes, so
that a plan fits the budget that it asks for.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

from strop.errors import UsageError

HEADROOM: Final = 0.03
"""The share of a budget that no plan is laid out for: peaks lay up to 3 % above their forecasts, and a budget is a
promise (`benchmarks/memory_curve.py`, docs/log.md)."""

_SIZE: Final = re.compile(r"\s*(\d+(?:[._]\d+)*(?:e\d+)?)\s*([kmgt]i?b?|b|bytes?|)\s*", re.IGNORECASE)
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_LARGEST: Final = 10**18  # more is a slip of the pen


def parse_size(text: str, name: str = "--memory") -> int:
    """Reads a number of bytes.

    Args:
        text: a number and a unit: B, kB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (powers of 1024); the B
            may be left out, case and spaces do not count.
        name: the flag or argument, for errors.

    Returns:
        Bytes, rounded down to a whole number.

    Raises:
        UsageError: no such size, no unit, or zero.
    """
    match = _SIZE.fullmatch(text)
    unit = match[2].lower() if match else ""
    prefix = "" if unit.startswith("byte") else unit.rstrip("b").rstrip("i")
    base = 1024 if "i" in unit and prefix else 1000
    try:
        number = Decimal(match[1].replace("_", "")) if match else Decimal(0)
        size = number * base ** _POWERS[prefix]
    except ArithmeticError:  # two dots, or an exponent beyond everything
        number = size = Decimal(0)
    if not unit or not 1 <= size <= _LARGEST:
        bare = match is not None and not unit and 0 < number < 1_000_000
        raise UsageError(
            f"{name} is not a size",
            expected="a number above 0 and a unit: 8GB, 6GiB, 500MB",
            found=text.strip() or '""',
            do=f"did you mean {name} {text.strip()}GB ?" if bare else f"write {name} 8GB",
        )
    return int(size)


def usable(budget_bytes: int) -> int:
    """What plans may be laid out for inside a budget."""
    return int(budget_bytes * (1 - HEADROOM))


def budget_for(peak_bytes: int) -> int:
    """The smallest budget whose usable part holds a peak."""
    budget = int(peak_bytes / (1 - HEADROOM))
    return next(count for count in range(max(budget - 2, 0), budget + 4) if usable(count) >= peak_bytes)


def write_size(count: int) -> str:
    """Writes a number of bytes as ``--memory`` takes it, rounded up to three digits: 1,236,482,048 → "1.24GB"."""
    power = next((power for power in (4, 3, 2, 1) if count >= 1000**power), 0)
    if power == 0:
        return f"{max(count, 1)}B"
    decimals = max(3 - len(str(count // 1000**power)), 0)
    rounded = -(-count * 10**decimals // 1000**power)
    text = f"{rounded / 10**decimals:.{decimals}f}"
    return f"{text.rstrip('0').rstrip('.') if decimals else text}{'_kMGT'[power]}B"
