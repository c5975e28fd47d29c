"""What is noticed about a data set, from everything that looks at it, the gravest first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, overload

from strop.data.accounting import by_reason, check_refused
from strop.data.checks import check_questions
from strop.data.examples import Dataset
from strop.data.findings import Finding, Instance, Severity
from strop.data.lint import lint
from strop.data.prompts import PromptPair
from strop.data.records import Conversation, Example
from strop.data.tokenizer import Tokenizer
from strop.errors import DataError
from strop.recipe import Recipe
from strop.run.journal import Journal

_RANK: Final[dict[Severity, int]] = {"stop": 0, "warn": 1, "note": 2}
_SHOWN: Final = 5


def find(
    recipe: Recipe,
    dataset: Dataset,
    tokenizer: Tokenizer,
    context_tokens: int | None,
    unequal: Sequence[PromptPair],
    journal: Journal,
) -> list[Finding]:
    """Look for everything that may be wrong.

    Args:
        recipe: the recipe.
        dataset: what a run would learn from.
        tokenizer: the model's tokenizer.
        context_tokens: the model's context.
        unequal: prompts that were trained and are not what chat sends.
        journal: is told how far the work has come.
    """
    found = [
        *prompt_findings(unequal, tokenizer),
        *_too_many_refused(recipe, dataset),
        *_token_findings(recipe, dataset),
        *_text_findings(recipe, dataset, tokenizer, context_tokens, journal),
    ]
    # What two of them see is said once.
    by_kind = {finding.kind: finding for finding in reversed(found)}
    return sorted((one for one in found if by_kind[one.kind] is one), key=lambda finding: _RANK[finding.severity])


def _too_many_refused(recipe: Recipe, dataset: Dataset) -> list[Finding]:
    """More records are refused than the recipe allows; where that is all of them, `prepare` has said so."""
    if any(finding.kind == "nothing-left" for finding in dataset.findings):
        return []
    try:
        check_refused(dataset, recipe.data.refuse_limit)
    except DataError as error:
        refused = [*dataset.refused, *dataset.held_out_refused]
        instances = tuple(Instance(one.place, one.reason) for one in refused[:_SHOWN])
        reasons = by_reason(refused)
        cure = reasons[0].cure if len(reasons) == 1 else "repair them, each for the reason that is given with it"
        what = f"{error.what}, more than data.refuse_limit {recipe.data.refuse_limit:.4g} allows"
        do = f"{cure}; or go on without them: --data.refuse_limit 1"
        return [Finding("too-many-refused", "stop", what, do, len(refused), instances)]
    return []


def _token_findings(recipe: Recipe, dataset: Dataset) -> list[Finding]:
    """What the tokens show: nothing learned, no stop token, another model's template; `prepare` has looked for it."""
    return [*dataset.findings, *check_questions(recipe.watch.ask, dataset.learned)]


def _text_findings(
    recipe: Recipe, dataset: Dataset, tokenizer: Tokenizer, context_tokens: int | None, journal: Journal
) -> list[Finding]:
    """What the text shows: duplicates, leaks, broken characters, secrets, and all else that lint knows."""
    return lint(
        _Conversations(dataset.learned),
        _Conversations(dataset.held_out),
        lengths=dataset.lengths_S.tolist(),
        held_out_lengths=[len(example) for example in dataset.held_out],
        max_tokens=recipe.data.max_tokens,
        control_tokens=tuple(tokenizer.special_tokens),
        context_tokens=context_tokens,
        progress=journal.progress("looking for faults"),
    )


class _Conversations(Sequence[Conversation]):
    """What samples were made of, each taken when it is asked for."""

    def __init__(self, samples: Sequence[Example]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> _Conversations: ...
    def __getitem__(self, index: int | slice) -> Conversation | _Conversations:
        if isinstance(index, slice):
            return _Conversations(self._samples[index])
        return _said(self._samples[index])

    def __iter__(self) -> Iterator[Conversation]:
        return map(_said, self._samples)


def _said(sample: Example) -> Conversation:
    return sample.conversation or Conversation((), sample.place)


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
