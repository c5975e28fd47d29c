"""What is noticed about a data set, from everything that looks at it, the gravest first."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any, Final

from strop.data.examples import Dataset
from strop.data.findings import Finding, Instance, Severity
from strop.data.prompts import PromptPair
from strop.data.tokenizer import Tokenizer
from strop.run.journal import Journal

_RANK: Final[dict[Severity, int]] = {"stop": 0, "warn": 1, "note": 2}
_SHOWN: Final = 5


def find(
    dataset: Dataset,
    tokenizer: Tokenizer,
    max_tokens: int | None,
    context_tokens: int | None,
    unequal: Sequence[PromptPair],
    journal: Journal,
) -> list[Finding]:
    """Look for everything that may be wrong.

    Args:
        dataset: what a run would learn from.
        tokenizer: the model's tokenizer.
        max_tokens: the longest sample in force.
        context_tokens: the model's context.
        unequal: prompts that were trained and are not what chat sends.
        journal: is told how far the work has come.
    """
    found = [*prompt_findings(unequal, tokenizer)]
    lint = _part("lint")
    if lint is not None:
        found += lint.lint(
            [example.conversation for example in dataset.learned],
            [example.conversation for example in dataset.held_out],
            lengths=dataset.lengths_S.tolist(),
            held_out_lengths=[len(example) for example in dataset.held_out],
            max_tokens=max_tokens,
            control_tokens=tuple(tokenizer.special_tokens),
            context_tokens=context_tokens,
            progress=journal.progress("looking for faults"),
        )
    return sorted(found, key=lambda finding: _RANK[finding.severity])


def prompt_findings(unequal: Sequence[PromptPair], tokenizer: Tokenizer) -> list[Finding]:
    """The finding that prompts are trained which chat does not send; none where there are none."""
    if not unequal:
        return []
    return [
        Finding(
            "prompt-differs",
            "stop",
            f"{len(unequal)} prompts are trained that chat would not send, token for token",
            "repair the chat template: what it renders for a question alone must be how it begins an answered one",
            len(unequal),
            tuple(Instance(pair.sample.place, _difference(pair, tokenizer)) for pair in unequal[:_SHOWN]),
        )
    ]


def _difference(pair: PromptPair, tokenizer: Tokenizer) -> str:
    if pair.fault:
        return pair.fault
    at = pair.first_difference or 0
    trained, sent = (repr(tokenizer.decode(side[at : at + 8])) for side in (pair.trained, pair.sent))
    return f"answer {pair.turn}, token {at + 1}: trained {trained}, sent {sent}"


def _part(name: str) -> Any:
    """A module of `strop.data` that may not be there yet."""
    full = f"strop.data.{name}"
    return importlib.import_module(full) if importlib.util.find_spec(full) else None
