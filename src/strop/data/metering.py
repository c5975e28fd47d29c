"""Writes into a parsed chat template what it pays for its work (`strop.data.sandbox`).

    {% for m in messages %}   →   {% for m in messages | #loop(nodes of the body) %}
    a + b + c                 →   a | #sum(b, c)
    a ~ b                     →   a | #joined(b)
    [a, b]   a[1:]   a == b   →   [a, b] | #weighed   a[1:] | #weighed   a | #weighed == b | #weighed

    {{ a }}                   →   {{ a | #read }}

What is written here begins with "#", which no template can spell as a filter. Text of the template is counted where it
comes out; where it is kept instead (macros, ``{% set x %}…{% endset %}``, filter and call blocks), by each run through
the block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import jinja2
from jinja2 import nodes, pass_context
from jinja2.visitor import NodeTransformer

from strop.data.prices import Meter

MOST_NODES: Final = 20_000
"""Of a parsed template; the longest that models come with have about 3,000."""

_SEARCHING = ("in", "notin")


def metered(tree: nodes.Template) -> nodes.Template:
    """The same template, paying for what it does.

    Raises:
        jinja2.TemplateSyntaxError: it has too many nodes, or a block that chat templates do without.
    """
    count = sum(1 for _ in tree.find_all(nodes.Node))
    if count > MOST_NODES:
        raise jinja2.TemplateSyntaxError(f"{count:,} nodes, at most {MOST_NODES:,} are read", 1)
    _Payments().visit(tree)
    return tree


class _Payments(NodeTransformer):
    """Puts the payments around what is paid for."""

    def __init__(self) -> None:
        self._kept = 0

    def visit_For(self, node: nodes.For) -> nodes.Node:
        price = _price([*node.body, *([node.test] if node.test else [])], with_text=self._kept > 0)
        self.generic_visit(node)
        node.iter = _hook(node.iter, "#loop", nodes.Const(price))
        return node

    def visit_Add(self, node: nodes.Add) -> nodes.Node:
        parts: list[nodes.Expr] = [node.right]
        first = node.left
        while isinstance(first, nodes.Add):
            parts.append(first.right)
            first = first.left
        return _hook(self.visit(first), "#sum", *[self.visit(part) for part in reversed(parts)])

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        first, *rest = [self.visit(part) for part in node.nodes]
        return _hook(first, "#joined", *rest)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        sides = [node.expr, *(operand.expr for operand in node.ops)]
        searches = any(operand.op in _SEARCHING for operand in node.ops)
        # Against a constant, no more than the constant is read.
        bounded = not searches and any(map(_is_constant, sides))
        constant = [bounded or _is_constant(side) for side in sides]
        self.generic_visit(node)
        hook = "#searched" if searches else "#weighed"
        if not constant[0]:
            node.expr = _hook(node.expr, hook)
        for operand, free in zip(node.ops, constant[1:], strict=True):
            if not free:
                operand.expr = _hook(operand.expr, hook)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _hook(node, "#weighed") if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List | nodes.Dict | nodes.Tuple) -> nodes.Node:
        if _is_constant(node) or getattr(node, "ctx", "load") != "load":
            return node
        self.generic_visit(node)
        return _hook(node, "#weighed")

    visit_Dict = visit_Tuple = visit_List

    def visit_Macro(self, node: nodes.Macro | nodes.CallBlock) -> nodes.Node:
        price = _price(node.body, with_text=True)
        self._visit_kept(node)
        node.body.insert(0, nodes.Output([_hook(nodes.Const(price), "#spent")]).set_lineno(node.lineno))
        return node

    visit_CallBlock = visit_Macro

    def visit_AssignBlock(self, node: nodes.AssignBlock | nodes.FilterBlock) -> nodes.Node:
        self._visit_kept(node)
        return node

    visit_FilterBlock = visit_AssignBlock

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [part if _is_paid(part) else _hook(part, "#read") for part in node.nodes]
        return node

    def visit_Block(self, node: nodes.Block) -> nodes.Node:
        """Templates are not inherited from: a block is what is in it."""
        self.generic_visit(node)
        return nodes.Scope(node.body).set_lineno(node.lineno)

    def visit_ScopedEvalContextModifier(self, node: nodes.ScopedEvalContextModifier) -> nodes.Node:
        raise jinja2.TemplateSyntaxError("autoescape is not read", node.lineno)

    def _visit_kept(self, node: nodes.Node) -> None:
        self._kept += 1
        self.generic_visit(node)
        self._kept -= 1


def _price(body: Sequence[nodes.Node], *, with_text: bool) -> int:
    """What one run through a body costs: its nodes, and its text where that is kept."""
    price = 5
    for node in body:
        price += 1 + sum(1 for _ in node.find_all(nodes.Node))
        if with_text:
            price += sum(len(text.data) for text in node.find_all(nodes.TemplateData))
    return price


def _hook(value: nodes.Node, name: str, *args: nodes.Node) -> nodes.Filter:
    hook: nodes.Filter = nodes.Filter(value, name, list(args), [], None, None)
    hook.set_lineno(value.lineno)
    return hook


def _is_constant(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Tuple | nodes.List):
        return all(map(_is_constant, node.items))
    if isinstance(node, nodes.Neg):
        return _is_constant(node.node)
    return isinstance(node, nodes.Const)


def _is_paid(part: nodes.Node) -> bool:
    """Whether something printed is text of the template, or was paid for when it was made."""
    made = isinstance(part, nodes.Filter) and part.name in ("#sum", "#joined", "#spent")
    return made or isinstance(part, nodes.TemplateData | nodes.Const)


# ── what runs in their place ─────────────────────────────────────────────────────────────────────────────────────────


@pass_context
def _weighed(meter: Meter, value: Any) -> Any:
    meter.spend(meter.weigh(value))
    return value


@pass_context
def _read(meter: Meter, value: Any) -> Any:
    meter.spend(meter.reading(value))
    return value


@pass_context
def _searched(meter: Meter, value: Any) -> Any:
    if not isinstance(value, dict):
        meter.spend(meter.weigh(value))
    return value


@pass_context
def _spent(meter: Meter, price: int) -> str:
    meter.spend(price)
    return ""


@pass_context
def _loop(meter: Meter, items: Any, price: int) -> Any:
    if hasattr(items, "__len__"):
        meter.spend(len(items) * price)
        return items
    return meter.counted(items, price) if hasattr(items, "__next__") else items


@pass_context
def _sum(meter: Meter, total: Any, *rest: Any) -> Any:
    work = 0
    for item in rest:
        total = total + item
        work += len(total) if type(total) is str else meter.weigh(total)
        if work > meter.left:
            break
    meter.spend(work)
    return total


@pass_context
def _joined(meter: Meter, *parts: Any) -> str:
    meter.spend(sum(map(meter.reading, parts)))
    return "".join(map(str, parts))


HOOKS: dict[str, Callable[..., Any]] = {
    "#weighed": _weighed,
    "#read": _read,
    "#searched": _searched,
    "#spent": _spent,
    "#loop": _loop,
    "#sum": _sum,
    "#joined": _joined,
}
