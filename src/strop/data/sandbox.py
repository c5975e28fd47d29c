"""What a chat template may use, and how much of it: Jinja's immutable sandbox with white-lists and a meter.

Jinja's sandbox keeps a template from Python's insides. It does not keep it from `'a' * 10**9`, from loops in loops, or
from a list that holds itself twice, forty times over. Here everything that takes time or memory is paid for out of one
purse (`Meter.left`) that is filled before each rendering, by the size of what is rendered:

    MOST_WORK + WORK_PER_CHARACTER · characters + WORK_PER_MESSAGE · messages

    a turn of a loop      one unit for each node of its body
    a call, a filter      CALL, and the size of what it reads and makes
    + ~ * % slices        the size of what they make, paid before it is made
    a list, tuple, dict   the size of all that is in it, things that stand in it twice counted twice

A unit is about a character or a tenth of a microsecond. Work is counted, not timed, so a template is refused on every
machine or on none. `strop.data.metering` writes the payments into the compiled template.

Filters, methods and functions that are not named here do not exist. Left out are those that no chat needs and that
grow what they are given (center, wordwrap, batch), answer differently each time (random, lipsum), or reach into objects
(attr).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from string import Formatter
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import pass_context
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS
from jinja2.utils import Cycler, Joiner, Namespace, _PassArg

MOST_WORK: Final = 10_000_000
WORK_PER_CHARACTER: Final = 100
WORK_PER_MESSAGE: Final = 50_000
MOST_SOURCE: Final = 256 << 10
"""Characters of a template; the longest that models come with have about 20,000."""

CALL: Final = 20
_MOST_LEVELS: Final = 100
_MOST_BITS: Final = 4096
_MOST_WIDTH: Final = 1000
_REPR: Final = 10
"""A character of a text in a list may take this many where the list becomes a text: '\\U000e0001'."""

_SHALLOW = ("count", "d", "default", "first", "items", "last", "length", "list", "map", "reverse")
_SELECTING = ("reject", "rejectattr", "select", "selectattr")
_OTHER = (
    *("abs", "capitalize", "dictsort", "e", "escape", "float", "format", "indent", "int", "join", "lower", "max"),
    *("min", "replace", "round", "safe", "sort", "string", "sum", "title", "tojson", "trim", "truncate", "unique"),
    *("upper", "wordcount"),
)
_READING_TESTS = (
    *("!=", "<", "<=", "==", ">", ">=", "eq", "equalto", "ge", "greaterthan", "gt", "in", "le", "lessthan", "lower"),
    *("lt", "ne", "upper"),
)
_TEXT_METHODS = frozenset(
    (
        *("capitalize", "casefold", "count", "endswith", "find", "format", "index", "isalnum", "isalpha", "isascii"),
        *("isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "ljust", "lower"),
        *("lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rjust", "rpartition"),
        *("rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper", "zfill"),
    )
)
_METHODS: Mapping[type, frozenset[str]] = {
    dict: frozenset(("get", "items", "keys", "values")),
    list: frozenset(("count", "index", "copy")),
    tuple: frozenset(("count", "index")),
}
_LOOP_METHODS = (LoopContext, Cycler)
_CALLED = (Macro, Undefined, Joiner)
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
        if isinstance(value, int) and value.bit_length() > _MOST_BITS:
            raise TooMuch(f"it makes a number of more than {_MOST_BITS} bits")
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


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of chat templates."""

    context_class = Meter
    intercepted_binops = frozenset(("*", "**", "%"))

    def __init__(self) -> None:
        # Nothing is computed while a template is compiled: it could not be paid for.
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=["jinja2.ext.loopcontrols"])
        self.globals = {name: self.globals[name] for name in ("range", "dict", "cycler", "joiner", "namespace")}
        self.globals["raise_exception"] = _raise_exception
        prices: dict[str, Price] = {**dict.fromkeys(_SHALLOW, _shallow), **dict.fromkeys(_SELECTING, _selecting)}
        prices |= {name: _PRICES.get(name, _deep) for name in _OTHER}
        self.filters = {name: _metered(FILTERS[name], price) for name, price in prices.items()}
        self.filters["tojson"] = _to_json
        tests: dict[str, Any] = dict(TESTS)
        self.tests = {name: _metered(test, _deep) if name in _READING_TESTS else test for name, test in tests.items()}

    def getattr(self, obj: Any, attribute: str) -> Any:
        """``obj.attribute`` in a template.

        Jinja asks an object for the attribute, then for the item, and then whether it is safe. What templates ask for
        all the time is known to be: items of dicts that are no attribute, methods of texts, what a namespace holds.
        """
        kind = type(obj)
        if kind is dict:
            if attribute not in _OF_DICTS and attribute in obj:
                return obj[attribute]
        elif kind is Namespace or kind is LoopContext:
            if attribute[:1] != "_":
                value = getattr(obj, attribute, _MISSING)
                return value if value is not _MISSING else self.undefined(obj=obj, name=attribute)
        elif kind is str and attribute in _TEXT_METHODS and attribute != "format":
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - Jinja's
        """A call in a template, of something that may be called, paid for."""
        assert isinstance(__context, Meter)
        owner = getattr(__obj, "__self__", None)
        if isinstance(__obj, LoopContext) and args:
            args = (__context.counted(args[0], CALL), *args[1:])
        elif any(__obj is known for known in __self.globals.values()) or isinstance(__obj, _CALLED):
            pass
        elif isinstance(owner, _LOOP_METHODS):
            __context.spend(sum(map(__context.weigh, args)))
        else:
            args = _pay_for_method(__context, __obj, args, kwargs)
        __context.spend(CALL)
        result = super().call(__context, __obj, *args, **kwargs)
        if isinstance(result, str | list | dict):
            __context.spend(len(result))
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """``*``, ``**`` and ``%`` in a template, paid for before they are done."""
        assert isinstance(context, Meter)
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > 2 * _MOST_BITS:
                raise TooMuch("it makes a number that is too large")
        elif operator == "*":
            items, times = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(items, str | list | tuple) and isinstance(times, int):
                context.spend(len(items) * max(times, 0))
        elif operator == "%" and isinstance(left, str):
            _pay_for_format(context, left, "%", [right])
        return super().call_binop(context, operator, left, right)


_OF_DICTS = frozenset(dir(dict))
_MISSING = object()


def _pay_for_method(meter: Meter, method: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Pays for a method of a text, dict or list; gives its arguments, an iterator among them as a list."""
    method = getattr(method, "__wrapped__", method)  # Jinja's own str.format stands around the method
    owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    if not isinstance(owner, str):
        if name not in _METHODS.get(type(owner), ()):
            raise SecurityError(f"{name} of {type(owner).__name__} may not be called")
        if name in ("count", "index"):
            meter.spend(meter.weigh(owner) + sum(map(meter.weigh, args)))
        return args
    if name not in _TEXT_METHODS:
        raise SecurityError(f"{name} of a text may not be called")
    values = [*args, *kwargs.values()]
    if name == "join" and args:
        args = (list(args[0]), *args[1:])
        meter.spend(meter.weigh(args[0]) + len(owner) * len(args[0]))
    elif name == "replace" and len(args) > 1:
        meter.spend(_replaced(owner, args[0], args[1]))
    elif name == "format":
        _pay_for_format(meter, owner, "{", values)
    elif any(isinstance(value, int) and value > _MOST_WIDTH for value in values) and "just" in name + "zfilljust":
        raise TooMuch(f"it fills a text to more than {_MOST_WIDTH} characters")
    # The parts of a text weigh more than the text: each is an object.
    meter.spend(len(owner) * (8 if "split" in name else 1) + sum(map(meter.weigh, values)))
    return args


def _pay_for_format(meter: Meter, text: str, mark: str, values: Iterable[Any]) -> None:
    if mark == "%":
        wide = _WIDE_PERCENT.search(text) is not None
    else:
        wide = any(_WIDE_FIELD.search(layout or "") for _, _, layout, _ in Formatter().parse(text))
    if wide:
        raise TooMuch("it formats to a width of three digits, or one that is computed")
    meter.spend(len(text) + (text.count(mark) + 1) * sum(meter.reading(value) * _REPR for value in values))


def _replaced(text: Any, old: Any, new: Any) -> int:
    """How many characters a replacement reads and makes."""
    if not (isinstance(text, str) and isinstance(old, str) and isinstance(new, str)):
        return _MOST_WIDTH
    return len(text) + text.count(old) * len(new)


def _metered(function: Callable[..., Any], price: Price) -> Callable[..., Any]:
    """A filter or test that is paid for before it runs, and again by what it makes."""
    wanted = _PassArg.from_obj(function)

    @pass_context
    def metered(meter: Meter, value: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(value, Iterator):
            value = list(value)
        meter.spend(CALL + price(meter, value, args, kwargs))
        first: tuple[Any, ...] = ()
        if wanted is not None:
            sources = {_PassArg.context: meter, _PassArg.eval_context: meter.eval_ctx}
            first = (sources.get(wanted, meter.environment),)
        result = function(*first, value, *args, **kwargs)
        if isinstance(result, Iterator):
            return meter.counted(result, CALL)
        if isinstance(result, str | list):
            meter.spend(len(result))
        return result

    return metered


def _shallow(meter: Meter, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    return 8 * len(value) if isinstance(value, str) else 1


def _selecting(meter: Meter, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    return 1


def _deep(meter: Meter, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    return meter.reading(value) + sum(map(meter.weigh, (*args, *kwargs.values())))


def _price_of_escapes(meter: Meter, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    return 5 * _deep(meter, value, args, kwargs)


def _price_of_sorting(meter: Meter, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    return 20 * _deep(meter, value, args, kwargs)


def _price_of_sum(meter: Meter, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    start = kwargs.get("start", args[1] if len(args) > 1 else 0)
    if not isinstance(start, int | float):
        raise TooMuch("it sums what are no numbers")
    return _deep(meter, value, args, kwargs)


def _price_of_join(meter: Meter, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    between = kwargs.get("d", args[0] if args else "")
    items = len(value) if hasattr(value, "__len__") else 0
    return _deep(meter, value, args, kwargs) + items * meter.reading(between)


def _price_of_replace(meter: Meter, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    old, new = [*args, *[kwargs.get(name, "") for name in ("old", "new")[len(args) :]]][:2]
    meter.spend(_deep(meter, value, args, kwargs))
    return _replaced(*(part if isinstance(part, str) else str(part) for part in (value, old, new)))


def _price_of_format(meter: Meter, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    _pay_for_format(meter, str(value) if isinstance(value, str) else "", "%", (*args, *kwargs.values()))
    return _deep(meter, value, args, kwargs)


def _price_of_indent(meter: Meter, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    width = kwargs.get("width", args[0] if args else 4)
    width = len(width) if isinstance(width, str) else width
    if not isinstance(width, int) or width > _MOST_WIDTH:
        raise TooMuch(f"it indents by more than {_MOST_WIDTH} characters")
    lines = len(value.splitlines()) + 1 if isinstance(value, str) else 1
    return _deep(meter, value, args, kwargs) + lines * max(width, 0)


def _price_of_digits(meter: Meter, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    if any(isinstance(number, int) and abs(number) > _MOST_WIDTH for number in (*args, *kwargs.values())):
        raise TooMuch(f"it rounds to more than {_MOST_WIDTH} digits")
    return _deep(meter, value, args, kwargs)


_PRICES: Mapping[str, Price] = {
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


@pass_context
def _to_json(
    meter: Meter,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter ``tojson`` as transformers has it, without HTML escapes."""
    if isinstance(value, Iterator):
        value = list(value)
    meter.spend(CALL + 12 * meter.weigh(value))  # "\\ud83d\\ude00"
    if indent is None and separators is None:
        return json.dumps(value, ensure_ascii=ensure_ascii, sort_keys=sort_keys)
    widths = [indent if isinstance(indent, int) else len(indent or ""), *map(len, separators or ())]
    if max(widths) > _MOST_WIDTH:
        raise TooMuch(f"it indents by more than {_MOST_WIDTH} characters")
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    pieces = []
    for piece in encoder.iterencode(value):
        meter.spend(len(piece))
        pieces.append(piece)
    return "".join(pieces)


class TemplateRefusal(jinja2.TemplateError):
    """What ``raise_exception`` raises."""


def _raise_exception(message: str) -> NoReturn:
    raise TemplateRefusal(message)
