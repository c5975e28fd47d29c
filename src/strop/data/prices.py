"""What a template's work costs, and the purse that it is paid from.

    MOST_WORK + WORK_PER_CHARACTER · characters + WORK_PER_MESSAGE · messages

A unit is about a character or a tenth of a microsecond. What grows what it is given is paid before it is done, by the
size of what it reads and makes; what cannot be paid, or would be too large whatever is paid, is `TooMuch`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from string import Formatter
from typing import Any, Final

import jinja2
from jinja2.runtime import Context
from jinja2.utils import Namespace

MOST_WORK: Final = 10_000_000
WORK_PER_CHARACTER: Final = 100
WORK_PER_MESSAGE: Final = 50_000
CALL: Final = 20
_MOST_LEVELS: Final = 100
MOST_BITS: Final = 4096
MOST_WIDTH: Final = 1000
_REPR: Final = 10
"""A character of a text in a list may take this many where the list becomes a text: '\\U000e0001'."""

_CONTAINERS = frozenset((list, tuple, dict, type({}.items()), type({}.keys()), type({}.values())))
_WIDE_PERCENT = re.compile(r"%[^a-zA-Z%]*?(?:\d{3}|\*)")
_WIDE_FIELD = re.compile(r"\d{3}|\{")


class TooMuch(jinja2.TemplateError):
    """A template does more than any chat needs."""


class Meter(Context):
    """The variables of one rendering, and what it may still spend."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.left = MOST_WORK
        self._weights: dict[int, tuple[Any, int]] = {}

    def spend(self, work: int) -> None:
        """Pays for work.

        Raises:
            TooMuch: nothing is left.
        """
        self.left -= work
        if self.left < 0 or work < 0:
            raise TooMuch("it does more work than a conversation of this size can need")

    def weigh(self, value: Any) -> int:
        """The size of a value: characters and items, at any depth."""
        kind = type(value)
        if kind is str:
            return len(value)
        if kind in _CONTAINERS:
            known = self._weights.get(id(value))
            return known[1] if known is not None else self._weigh_inside(value, 1)
        if isinstance(value, str | range):
            return len(value)
        if isinstance(value, int) and value.bit_length() > MOST_BITS:
            raise TooMuch(f"it makes a number of more than {MOST_BITS} bits")
        return 1

    def reading(self, value: Any) -> int:
        """What it costs to read a value as a text."""
        kind = type(value)
        if kind is str:
            return len(value)
        if kind is Namespace:
            raise TooMuch("it reads a namespace as a text")
        return self.weigh(value) * (_REPR if kind in _CONTAINERS else 1)

    def counted(self, items: Iterable[Any], price: int) -> Iterator[Any]:
        """Items that come one by one, each paid for when it comes."""
        for item in items:
            self.spend(price)
            yield item

    def _weigh_inside(self, value: Any, level: int) -> int:
        if level > _MOST_LEVELS:
            raise TooMuch(f"it nests lists deeper than {_MOST_LEVELS} levels")
        self.spend(len(value))
        weight = 1
        for item in (*value.keys(), *value.values()) if type(value) is dict else value:
            kind = type(item)
            if kind is str:
                weight += 1 + len(item)
            elif kind in _CONTAINERS:
                known = self._weights.get(id(item))
                weight += 1 + (known[1] if known is not None else self._weigh_inside(item, level + 1))
            elif kind is Namespace:
                raise TooMuch("it puts a namespace into a list")
            else:
                weight += 1 + self.weigh(item)
        # With the value itself, so that its id is not given to another.
        self._weights[id(value)] = (value, weight)
        return weight


Price = Callable[[Meter, Any, tuple[Any, ...], Mapping[str, Any]], int]
"""What a filter or test costs, by its value and arguments."""


def shallow(meter: Meter, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Of what looks at the first level of a value alone; a text becomes a list."""
    return 8 * len(value) if isinstance(value, str) else 1


def selecting(meter: Meter, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Of what takes items as they come: each is paid for then."""
    return 1


def deep(meter: Meter, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Of what reads all of a value and of its arguments."""
    return meter.reading(value) + sum(map(meter.weigh, (*args, *kwargs.values())))


def _price_of_escapes(meter: Meter, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    return 5 * deep(meter, value, args, kwargs)


def _price_of_sorting(meter: Meter, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    return 20 * deep(meter, value, args, kwargs)


def _price_of_sum(meter: Meter, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    start = kwargs.get("start", args[1] if len(args) > 1 else 0)
    if not isinstance(start, int | float):
        raise TooMuch("it sums what are no numbers")
    return deep(meter, value, args, kwargs)


def _price_of_join(meter: Meter, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    between = kwargs.get("d", args[0] if args else "")
    items = len(value) if hasattr(value, "__len__") else 0
    return deep(meter, value, args, kwargs) + items * meter.reading(between)


def _price_of_replace(meter: Meter, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    old, new = [*args, *[kwargs.get(name, "") for name in ("old", "new")[len(args) :]]][:2]
    meter.spend(deep(meter, value, args, kwargs))
    return replaced(*(part if isinstance(part, str) else str(part) for part in (value, old, new)))


def _price_of_format(meter: Meter, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    pay_for_format(meter, str(value) if isinstance(value, str) else "", "%", (*args, *kwargs.values()))
    return deep(meter, value, args, kwargs)


def _price_of_indent(meter: Meter, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    width = kwargs.get("width", args[0] if args else 4)
    width = len(width) if isinstance(width, str) else width
    if not isinstance(width, int) or width > MOST_WIDTH:
        raise TooMuch(f"it indents by more than {MOST_WIDTH} characters")
    lines = len(value.splitlines()) + 1 if isinstance(value, str) else 1
    return deep(meter, value, args, kwargs) + lines * max(width, 0)


def _price_of_digits(meter: Meter, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    if any(isinstance(number, int) and abs(number) > MOST_WIDTH for number in (*args, *kwargs.values())):
        raise TooMuch(f"it rounds to more than {MOST_WIDTH} digits")
    return deep(meter, value, args, kwargs)


def pay_for_format(meter: Meter, text: str, mark: str, values: Iterable[Any]) -> None:
    """Pays for a text with gaps that values are written into.

    Args:
        meter: the purse.
        text: the text.
        mark: what a gap begins with: % or {.
        values: what may be written.

    Raises:
        TooMuch: a gap is wide, or too little is left.
    """
    if mark == "%":
        wide = _WIDE_PERCENT.search(text) is not None
    else:
        wide = any(_WIDE_FIELD.search(layout or "") for _, _, layout, _ in Formatter().parse(text))
    if wide:
        raise TooMuch("it formats to a width of three digits, or one that is computed")
    meter.spend(len(text) + (text.count(mark) + 1) * sum(meter.reading(value) * _REPR for value in values))


def replaced(text: Any, old: Any, new: Any) -> int:
    """How many characters a replacement reads and makes."""
    if not (isinstance(text, str) and isinstance(old, str) and isinstance(new, str)):
        return MOST_WIDTH
    return len(text) + text.count(old) * len(new)


PRICES: Mapping[str, Price] = {
    "e": _price_of_escapes,
    "escape": _price_of_escapes,
    "format": _price_of_format,
    "indent": _price_of_indent,
    "join": _price_of_join,
    "replace": _price_of_replace,
    "round": _price_of_digits,
    "sort": _price_of_sorting,
    "dictsort": _price_of_sorting,
    "sum": _price_of_sum,
}
