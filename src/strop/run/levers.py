"""The levers of a plan in words, from plan.json or an event: what is kept, what is computed twice, and on what.

    {"recompute_layers": 12, "threads": 2, …} ──in_words──▶ [("processor", "cpu, float32, 2 threads"), …]

The plan may be a stranger's or an older version's: a lever that is missing, or is of no known kind, is passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from strop.run.figures import whole

_LONGEST_WORD: Final = 40


def in_words(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the levers say together, by subject.

    Args:
        plan: levers by name.

    Returns:
        (subject, words); a subject that no lever speaks of is left out.
    """
    rows = [
        ("processor", _joined(_processor(plan))),
        ("packs", _joined(_packs(plan))),
        ("backward pass", _joined(_backward(plan))),
        ("weights", _joined(_weights(plan))),
        ("head", _joined(_head(plan))),
        ("embedding", _joined(_embedding(plan))),
    ]
    return [(subject, words) for subject, words in rows if words]


def savings(plan: Mapping[str, Any]) -> str:
    """What a plan gives up to save memory, on one line; "everything kept" where it gives up nothing."""
    given_up = []
    whole_layers, elementwise = _count(plan, "recompute_layers"), _count(plan, "recompute_elementwise")
    if whole_layers:
        given_up.append(f"{_layers(whole_layers)} computed twice")
    if elementwise:
        given_up.append(f"{_layers(elementwise)} with norms and gated products made twice")
    if plan.get("head") == "stored":
        given_up.append("head widened in blocks")
    if plan.get("embedding") == "file":
        given_up.append("embedding read from the file")
    held = {"embedding": "embedding", "checkpoints": "layers' inputs", "base": "base"}
    outside = [words for name, words in held.items() if plan.get(name) == "host"]
    if outside:
        *first, last = outside
        given_up.append(f"{', '.join(first)}{' and ' if first else ''}{last} in the machine's memory")
    dense = _count(plan, "dense_layers")
    copies = [f"{_layers(dense)} dequantised in memory"] if dense else []
    return _joined([*(given_up or ["everything kept"]), *copies])


def _processor(plan: Mapping[str, Any]) -> list[str]:
    words = [_word(plan, "device"), _word(plan, "dtype")]
    threads = _count(plan, "threads")
    if threads and plan.get("device") == "cpu":
        words.append("1 thread" if threads == 1 else f"{whole(threads)} threads")
        matmul = _word(plan, "matmul")
        words.append(f"products by {matmul}" if matmul else "")
    elif _word(plan, "attention") not in ("", "native"):
        words.append(f"attention by {_word(plan, 'attention')}")
    return words


def _packs(plan: Mapping[str, Any]) -> list[str]:
    tokens = _count(plan, "pack_tokens")
    shared = {
        "shared": "what their samples begin with alike computed once",
        "repeated": "each sample computed from its beginning",
    }
    return [f"up to {whole(tokens)} tokens" if tokens else "", shared.get(_word(plan, "prefixes"), "")]


def _backward(plan: Mapping[str, Any]) -> list[str]:
    whole_layers, elementwise = _count(plan, "recompute_layers"), _count(plan, "recompute_elementwise")
    if whole_layers is None and elementwise is None:
        return []
    words = []
    if whole_layers:
        where = ", from inputs in the machine's memory" if plan.get("checkpoints") == "host" else ""
        words.append(f"{_layers(whole_layers)} from the bottom computed a second time{where}")
    if elementwise:
        above = " above them" if whole_layers else " from the bottom"
        words.append(f"{_layers(elementwise)}{above} with norms and gated products made a second time")
    return words or ["all that it needs is kept, nothing is computed twice"]


def _weights(plan: Mapping[str, Any]) -> list[str]:
    dense = _count(plan, "dense_layers")
    if dense is None:
        return []
    copies = f"{_layers(dense)} with a dequantised copy" if dense else "dequantised where they are used"
    outside = ["in the machine's memory, brought layer by layer"] if plan.get("base") == "host" else []
    return ["4 bits", *outside, copies]


def _head(plan: Mapping[str, Any]) -> list[str]:
    places = {"dense": "in the dtype of the products", "stored": "as the model's file has it, widened in blocks"}
    chunk = _count(plan, "loss_chunk")
    return [
        places.get(_word(plan, "head"), ""),
        f"logits of {whole(chunk)} learned tokens at a time" if chunk else "",
    ]


def _embedding(plan: Mapping[str, Any]) -> list[str]:
    places = {
        "memory": "in memory",
        "file": "rows read from the model's file where they are needed",
        "host": "in the machine's memory, rows brought where they are needed",
    }
    return [places.get(_word(plan, "embedding"), "")]


def _count(plan: Mapping[str, Any], name: str) -> int | None:
    value = plan.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None


def _word(plan: Mapping[str, Any], name: str) -> str:
    value = plan.get(name)
    return value[:_LONGEST_WORD] if isinstance(value, str) else ""


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{whole(count)} layers"


def _joined(words: list[str]) -> str:
    return ", ".join(word for word in words if word)
