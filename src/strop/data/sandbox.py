"""What a chat template may use, and how much of it: Jinja's immutable sandbox with white-lists and a meter.

Jinja's sandbox keeps a template from Python's insides. It does not keep it from `'a' * 10**9`, from loops in loops, or
from a list that holds itself twice, forty times over. Here everything that takes time or memory is paid for out of one
purse (`strop.data.prices`) that is filled before each rendering, by the size of what is rendered:

    a turn of a loop      one unit for each node of its body
    a call, a filter      CALL, and the size of what it reads and makes
    + ~ * % slices        the size of what they make, paid before it is made
    a list, tuple, dict   the size of all that is in it, things that stand in it twice counted twice

Work is counted, not timed, so a template is refused on every machine or on none. `strop.data.metering` writes the
payments into the compiled template.

Filters, methods and functions that are not named here do not exist. Left out are those that no chat needs and that
grow what they are given (center, wordwrap, batch), answer differently each time (random, lipsum), or reach into objects
(attr).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import pass_context
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS
from jinja2.utils import Cycler, Joiner, Namespace, _PassArg

from strop.data.prices import (
    CALL,
    MOST_BITS,
    MOST_WIDTH,
    PRICES,
    Meter,
    Price,
    TooMuch,
    deep,
    pay_for_format,
    replaced,
    selecting,
    shallow,
)

MOST_SOURCE: Final = 256 << 10
"""Characters of a template; the longest that models come with have about 20,000."""

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


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of chat templates."""

    context_class = Meter
    intercepted_binops = frozenset(("*", "**", "%"))

    def __init__(self) -> None:
        # Nothing is computed while a template is compiled: it could not be paid for.
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=["jinja2.ext.loopcontrols"])
        self.globals = {name: self.globals[name] for name in ("range", "dict", "cycler", "joiner", "namespace")}
        self.globals["raise_exception"] = _raise_exception
        prices: dict[str, Price] = {**dict.fromkeys(_SHALLOW, shallow), **dict.fromkeys(_SELECTING, selecting)}
        prices |= {name: PRICES.get(name, deep) for name in _OTHER}
        self.filters = {name: _metered(FILTERS[name], price) for name, price in prices.items()}
        self.filters["tojson"] = _to_json
        tests: dict[str, Any] = dict(TESTS)
        self.tests = {name: _metered(test, deep) if name in _READING_TESTS else test for name, test in tests.items()}

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
            if bits > 2 * MOST_BITS:
                raise TooMuch("it makes a number that is too large")
        elif operator == "*":
            items, times = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(items, str | list | tuple) and isinstance(times, int):
                context.spend(len(items) * max(times, 0))
        elif operator == "%" and isinstance(left, str):
            pay_for_format(context, left, "%", [right])
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
        meter.spend(replaced(owner, args[0], args[1]))
    elif name == "format":
        pay_for_format(meter, owner, "{", values)
    elif any(isinstance(value, int) and value > MOST_WIDTH for value in values) and "just" in name + "zfilljust":
        raise TooMuch(f"it fills a text to more than {MOST_WIDTH} characters")
    # The parts of a text weigh more than the text: each is an object.
    meter.spend(len(owner) * (8 if "split" in name else 1) + sum(map(meter.weigh, values)))
    return args


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
    if max(widths) > MOST_WIDTH:
        raise TooMuch(f"it indents by more than {MOST_WIDTH} characters")
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
