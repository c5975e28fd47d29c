"""Beginnings that several samples have in common: found exactly, and chosen to save the most tokens.

Samples of one step often begin alike: the same system prompt, the same worked examples, the same passage. Causal
attention makes what a model computes at a position a function of the tokens up to there, so an equal beginning gives
equal keys and values, and is computed once for all of them. What is taken out of n samples saves (n - 1) × its length.

    a: S S S S P P 1 2      S: system prompt, P, Q: passages. The common beginnings are a tree:
    b: S S S S P P 3
    c: S S S S P P 4 5                SSSS (5 samples) ┬ PP (a, b, c)
    d: S S S S Q Q 6                                   └ QQ (d, e)
    e: S S S S Q Q 7
                            once for all: saves 4 × 4 = 16.  PP for a, b, c and QQ for d, e: saves 2 × 6 + 6 = 18.

A sample continues one beginning at most, so the best choice is a dynamic program over that tree: with the nearest
chosen beginning above a node a tokens long, what the samples below it save is

    best(node, a) = max( own × a + Σ best(child, a),  own × length - packs × length + Σ best(child, length) )

where own are the samples that end their common beginning at the node, and packs is how many packs its samples need at
least: each of them computes the beginning anew. (Without this factor a prompt of 64 tokens that 7,324 samples share
falls apart over the questions' first words, and 14 % of all positions are saved instead of 23 %.) The tree is read off
the sorted samples and the lengths of the common beginnings of neighbours (Kasai et al. 2001, "Linear-time
longest-common-prefix computation in suffix arrays and its applications").

A position in a common beginning is computed for all its samples at once and therefore must teach nothing in any: a
beginning ends before the first position whose next token is learned. So it always leaves a token of every sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

from strop.data.records import Example

if TYPE_CHECKING:
    from strop.data.records import Tokens

LEAST_TOKENS = 8
"""Shorter beginnings are not shared: attention over one more stretch costs about what they save."""


class Prefix(NamedTuple):
    """A beginning that samples have in common.

    Args:
        tokens: its length, at least `LEAST_TOKENS`.
        members: the samples' numbers, two or more, ascending.
    """

    tokens: int
    members: tuple[int, ...]


class _Node(NamedTuple):
    """Sorted samples left … right, of which all begin with the same so many tokens."""

    tokens: int
    left: int
    right: int

    @property
    def samples(self) -> int:
        return self.right - self.left + 1


def shared_prefixes(examples: Sequence[Example], pack_tokens: int) -> list[Prefix]:
    """Choose the common beginnings that save the most tokens; a sample has at most one.

    Args:
        examples: the samples; the choice depends on their tokens and order alone.
        pack_tokens: the longest pack, in tokens.

    Returns:
        The beginnings, ordered by their first sample.
    """
    lengths = [_untaught(example) for example in examples]
    keys = {
        number: examples[number].tokens[:length].tobytes()
        for number, length in enumerate(lengths)
        if length >= LEAST_TOKENS
    }
    # Any order that keeps equal beginnings together will do; comparing bytes is the fastest.
    order = sorted(keys, key=lambda number: (keys[number], number))
    common = [_common(examples[a].tokens[: lengths[a]], examples[b].tokens[: lengths[b]]) for a, b in pairwise(order)]
    nodes = _tree(common)
    ends = [0, *accumulate(len(examples[number]) for number in order)]
    prices = [_price(node, ends[node.right + 1] - ends[node.left], pack_tokens) for node in nodes]
    nearest: dict[int, int] = {}
    for index in _choose(nodes, prices):
        nearest.update(dict.fromkeys(order[nodes[index].left : nodes[index].right + 1], index))
    members: dict[int, list[int]] = {}
    for number in sorted(nearest):
        members.setdefault(nearest[number], []).append(number)
    return [Prefix(nodes[index].tokens, tuple(numbers)) for index, numbers in members.items()]


def _untaught(example: Example) -> int:
    """The longest beginning in which no position teaches anything, and behind which a token is left."""
    taught = example.learned[1:]
    first = int(taught.argmax()) if len(taught) else 0
    return first if len(taught) and taught[first] else len(example) - 1


def _common(a: Tokens, b: Tokens) -> int:
    """How many tokens two samples begin with alike."""
    shorter = min(len(a), len(b))
    differs = a[:shorter] != b[:shorter]
    first = int(differs.argmax())
    return first if differs[first] else shorter


def _tree(common: Sequence[int]) -> list[_Node]:
    """The common beginnings of sorted samples, each below the shorter ones that contain it; parents come last.

    Args:
        common: tokens that sample i and sample i + 1 begin with alike.
    """
    nodes: list[_Node] = []
    open_nodes: list[tuple[int, int]] = []  # (tokens, left), longer and longer
    for right, tokens in enumerate([*common, 0]):
        left = right
        while open_nodes and open_nodes[-1][0] > tokens:
            length, left = open_nodes.pop()
            nodes.append(_Node(length, left, right))
        if tokens >= LEAST_TOKENS and (not open_nodes or open_nodes[-1][0] < tokens):
            open_nodes.append((tokens, left))
    return nodes


def _price(node: _Node, read_tokens: int, pack_tokens: int) -> int:
    """The positions that a beginning takes up: its length in each pack that its samples need at least."""
    rest = read_tokens - node.samples * node.tokens
    packs = -(-rest // max(pack_tokens - node.tokens, 1))
    return node.tokens * min(packs, node.samples)


def _choose(nodes: Sequence[_Node], prices: Sequence[int]) -> list[int]:
    """The nodes to compute once a pack, each behind those that contain it."""
    parents = _parents(nodes)
    own = [node.samples for node in nodes]
    above: list[list[int]] = [[] for _ in nodes]  # lengths of the beginnings a node lies in, its own last
    for index in reversed(range(len(nodes))):
        parent = parents[index]
        above[index] = [*(above[parent] if parent >= 0 else [0]), nodes[index].tokens]
        if parent >= 0:
            own[parent] -= nodes[index].samples
    # saved[n][j]: what the samples below node n save where the nearest chosen beginning is above[n][j]; for the last
    # j, n itself, before its price is paid.
    saved = [[count * length for length in lengths] for count, lengths in zip(own, above, strict=True)]
    for index, parent in enumerate(parents):
        if parent >= 0:
            chosen = saved[index][-1] - prices[index]
            saved[parent] = [a + max(b, chosen) for a, b in zip(saved[parent], saved[index], strict=False)]
    picked: list[int] = []
    nearest = [0] * len(nodes)  # the j of what is chosen, for a node's children
    for index in reversed(range(len(nodes))):
        j = nearest[parents[index]] if parents[index] >= 0 else 0
        if saved[index][-1] - prices[index] > saved[index][j]:
            picked.append(index)
            j = len(saved[index]) - 1
        nearest[index] = j
    return picked


def _parents(nodes: Sequence[_Node]) -> list[int]:
    """The index of the shortest node that contains each node, or -1."""
    parents = [-1] * len(nodes)
    containing: list[int] = []
    for index in reversed(range(len(nodes))):
        while containing and nodes[containing[-1]].left > nodes[index].right:
            containing.pop()
        if containing:
            parents[index] = containing[-1]
        containing.append(index)
    return parents
