"""A data set as one web page: account, lengths, limits, refusals, findings, prompts, and samples token by token.

Survey, Selection ──▶ view of plain records ──template, everything escaped──▶ one HTML file, without requests

The page has one script, a few lines that find samples by number or text. Its content policy allows that script alone,
by its hash: nothing that stands in the data can run. Without the script everything is there to read.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path, PurePath
from typing import Any, Final

from markupsafe import Markup

from strop.data.counts import group_refusals, number_of
from strop.data.lengths import quantiles
from strop.data.preview import Piece as Token
from strop.data.preview import Run, cut_place, length_histogram, sample_runs
from strop.data.prompts import PromptPair, compare_prompts
from strop.data.records import Example
from strop.errors import UsageError
from strop.review.survey import Selection, Survey, reading_notes, shapes
from strop.run.charts import bar_chart
from strop.run.figures import significant, whole
from strop.run.page import Chart, Value, render, write_page
from strop.run.report_sections import Piece, visible

_TEMPLATE: Final = Path(__file__).with_name("survey_template.html.jinja")
_SCRIPT: Final = Path(__file__).with_name("search.js")

_MOST_TOKENS = 6_000
_MOST_PAGE_TOKENS = 100_000
"""Tokens of all samples on a page together: 6 MB, which a telephone still opens."""

_OVERLONG: Final = {
    "refuse": "are refused",
    "cut_prompt": "lose the beginning of their questions",
    "cut_end": "lose their end",
}

_MOST_PROMPT_TOKENS = 400
_MOST_PLACES = 20
_MOST_REASONS, _MOST_FINDINGS, _MOST_SOURCES = 40, 60, 60


@dataclass(frozen=True)
class ShownToken:
    """A token, or several that make one character: what the pointer shows, and its text in pieces."""

    title: str
    pieces: list[Piece]


@dataclass(frozen=True)
class ShownRun:
    """Tokens of one kind: its class in the style sheet, its weight in words where it is unusual, and the tokens.

    `cut_before` counts the tokens before the place where the sample was cut; None where it was not cut here.
    """

    kind: str
    weight: str
    tokens: list[ShownToken]
    cut_before: int | None = None


@dataclass(frozen=True)
class ShownSample:
    """A sample with what there is to say about it."""

    number: int
    place: str
    facts: list[str]
    warnings: list[str]
    runs: list[ShownRun]


def write_survey(survey: Survey, selection: Selection, target: Path) -> None:
    """Writes the page.

    Args:
        survey: the data set.
        selection: the samples that are shown.
        target: the file; one that is there is replaced.

    Raises:
        UsageError: the file cannot be written.
    """
    page = render(_TEMPLATE, _view(survey, selection))
    try:
        write_page(target, page)
    except OSError as error:
        raise UsageError(
            f"the page {target} cannot be written", found=error.strerror or str(error), do="name another file"
        ) from None


def _view(survey: Survey, selection: Selection) -> dict[str, Any]:
    """Everything the template names."""
    script = _SCRIPT.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    held_out = survey.held_out_ids
    groups = group_refusals(survey.refused)
    return {
        "script": Markup(script),  # the package's own file
        "script_hash": Markup(f"'sha256-{digest}'"),
        "name": _short(survey.data),
        "model_name": _short(survey.recipe.model),
        "stops": [finding.what for finding in survey.stops],
        "tiles": _tiles(survey),
        "facts": _facts(survey),
        "sources": survey.sources[:_MOST_SOURCES] if len(survey.sources) > 1 else [],
        "more_sources": max(len(survey.sources) - _MOST_SOURCES, 0),
        "chart": _chart(survey),
        "quantiles": _quantiles(survey),
        "limits": _limits(survey) if survey.everything.over else [],
        "packs": _packs(survey),
        "pack_tokens": survey.fill.pack_tokens,
        "refused": len(survey.refused),
        "read": survey.read,
        "groups": groups[:_MOST_REASONS],
        "most_places": _MOST_PLACES,
        "findings": survey.findings[:_MOST_FINDINGS],
        "more_findings": max(len(survey.findings) - _MOST_FINDINGS, 0),
        "prompts": _prompts(survey, selection),
        "samples": [_sample(survey, example, held_out) for example in _as_fit(selection.samples)],
        "found": selection.found,
        "found_words": selection.words,
        "whole": whole,
        "share": _share,
    }


def _short(path: str) -> str:
    """The end of a path, which tells it from others; the whole of it stands in the account."""
    return "/".join(PurePath(path).parts[-2:])


def _share(part: float, all_of_it: float) -> str:
    """A share in words; nothing is 0 %."""
    share = part / all_of_it * 100 if all_of_it else 0.0
    if 0 < share < 0.1:
        return "< 0.1 %"
    return f"{significant(share, 2) if share < 10 else whole(share)} %"


def _tiles(survey: Survey) -> list[tuple[str, Value, str]]:
    dataset = survey.dataset
    tokens, learned = survey.tokens, survey.learned_tokens
    counts = [
        ("Samples to learn", len(dataset.learned), f"of {whole(survey.read)} read"),
        ("Held out", len(dataset.held_out), ""),
        ("Refused", len(survey.refused), _share(len(survey.refused), survey.read)),
        ("Tokens to read", tokens, ""),
        ("Tokens to learn", learned, _share(learned, tokens)),
        ("Findings", len(survey.findings), f"{len(survey.stops)} would stop a run" if survey.stops else ""),
    ]
    return [(title, Value(whole(count), str(count)), after) for title, count, after in counts]


def _facts(survey: Survey) -> list[tuple[str, str]]:
    dataset = survey.dataset
    parts = f"{whole(len(dataset.learned))} learned + {whole(len(dataset.held_out))} held out"
    facts = [
        ("Data", survey.data),
        ("Model", str(survey.recipe.model)),
        ("Account", f"{whole(survey.read)} read = {parts} + {whole(len(survey.refused))} refused"),
        ("Longest sample allowed", f"{whole(survey.limit)} tokens" if survey.limit is not None else "no limit"),
        ("Longer samples", _OVERLONG[survey.recipe.data.overlong]),
    ]
    if found := shapes(dataset):
        facts.append(("Shapes", ", ".join(f"{name} {whole(count)}" for name, count in found.items())))
    facts += [("While reading", f"{words}: {whole(count)} records") for words, count in reading_notes(dataset).items()]
    if dataset.available > dataset.read:
        facts.append(("Rows", f"{whole(dataset.read)} of {whole(dataset.available)} in the data"))
    return facts


def _chart(survey: Survey) -> Chart | None:
    bars = length_histogram(survey.dataset.lengths_S, buckets=24)
    if not bars:
        return None
    edges: list[float] = [*(bar.low for bar in bars), bars[-1].high + 1]
    counts = [float(bar.count) for bar in bars]
    label = f"Lengths of {whole(sum(counts))} samples, from {whole(edges[0])} to {whole(edges[-1])} tokens"
    axis = "tokens in a sample"
    return Chart(
        "Lengths",
        "samples to learn",
        Markup(bar_chart(label, edges, counts, axis, width=960, height=280)),
        Markup(bar_chart(label, edges, counts, axis, height=280)),
    )


def _quantiles(survey: Survey) -> list[tuple[str, str]]:
    figures = quantiles(survey.dataset.lengths_S)
    words = {"percentile_95": "95 % up to", "percentile_99": "99 % up to"}
    return [(words.get(name, name), whole(value)) for name, value in figures.items()]


def _limits(survey: Survey) -> list[dict[str, str]]:
    """Rows of the table of limits; shares are of what would be learned without any."""
    samples, learned = survey.everything.over, survey.everything.learned
    return [
        {
            "limit": whole(cost.max_tokens),
            "in_force": "in force" if cost.max_tokens == survey.limit else "",
            "over": whole(cost.over),
            "over_share": _share(cost.over, samples),
            "refused": whole(cost.learned),
            "refused_share": _share(cost.learned, learned),
            "cut": whole(cost.cut_learned),
            "cut_share": _share(cost.cut_learned, learned),
        }
        for cost in survey.costs
    ]


def _packs(survey: Survey) -> list[tuple[str, str]]:
    fill = survey.fill
    of = "All samples" if fill.samples == len(survey.dataset.learned) else f"{whole(fill.samples)} samples"
    every = survey.recipe.train.samples_per_step
    packs = f"{whole(fill.packs)} {'pack' if fill.packs == 1 else 'packs'}, {_share(fill.share, 1)} full"
    mean_packs = significant(fill.step_packs, 2)
    of_step = f"{whole(fill.step_tokens)} tokens in {mean_packs} {'pack' if mean_packs == '1' else 'packs'} on average"
    return [(f"{of}, packed at once", f"{packs}; none cut, none padded"), (f"A step of {every} samples", of_step)]


def _prompts(survey: Survey, selection: Selection) -> dict[str, Any]:
    """The comparison of prompts: the first that differs, else that of the first sample shown."""
    pair = survey.unequal[0] if survey.unequal else None
    if pair is None:
        shown = [survey.uncut(one) for one in selection.samples] or [*survey.dataset.learned[:1]]
        pair = next((pair for one in shown for pair in compare_prompts(one, survey.tokenizer)), None)
    return {
        "compared": survey.compared,
        "unequal": len(survey.unequal),
        "pair": pair,
        "number": number_of(pair.sample) if pair is not None else 0,
        "rows": _prompt_rows(pair, survey) if pair is not None else [],
    }


def _prompt_rows(pair: PromptPair, survey: Survey) -> list[tuple[int, str, str, bool]]:
    """Position, trained token, sent token, whether they are the same; from shortly before the first difference."""
    first = pair.first_difference
    start = max((first or 0) - 8, 0)
    end = min(max(len(pair.trained), len(pair.sent)), start + _MOST_PROMPT_TOKENS)
    rows = []
    for at in range(start, end):
        sides = [side[at] if at < len(side) else None for side in (pair.trained, pair.sent)]
        words = ["nothing" if one is None else f"{one} {survey.tokenizer.decode([one])!r}" for one in sides]
        rows.append((at + 1, words[0], words[1], sides[0] == sides[1]))
    return rows


def _as_fit(samples: Sequence[Example]) -> list[Example]:
    """As many of the first samples as a page should hold, at least one."""
    ends = accumulate(min(len(example), _MOST_TOKENS) for example in samples)
    return [
        example
        for number, (example, end) in enumerate(zip(samples, ends, strict=True))
        if not number or end <= _MOST_PAGE_TOKENS
    ]


def _sample(survey: Survey, example: Example, held_out: set[int]) -> ShownSample:
    uncut = survey.uncut(example)
    cut = cut_place(example, uncut)
    facts = [f"{whole(len(example))} tokens", f"{whole(int(example.learned.sum()))} learned"]
    if example.id in held_out:
        facts.append("held out")
    warnings = []
    if cut is not None:
        warnings.append(f"{whole(len(uncut) - len(example))} of its {whole(len(uncut))} tokens are cut")
    if len(example) > _MOST_TOKENS:
        warnings.append(f"the first {whole(_MOST_TOKENS)} tokens are shown")
    if not all(pair.equal for pair in compare_prompts(uncut, survey.tokenizer)):
        warnings.append("its prompt is not what chat sends")
    runs = _shown_runs(sample_runs(example, survey.tokenizer), cut)
    return ShownSample(number_of(example), str(example.place), facts, warnings, runs)


def _shown_runs(found: Sequence[Run], cut: int | None) -> list[ShownRun]:
    shown, position = [], 0
    for run in found:
        tokens: list[ShownToken] = []
        cut_before = None
        weight = "" if run.kind == "context" or run.weight == 1 else f"×{run.weight:g}"
        what = {"context": "read", "learned": "learned", "stop": "learned stop token"}[run.kind]
        for token in run.pieces:
            if position == cut:
                cut_before = len(tokens)
            if position < _MOST_TOKENS:
                title = f"{' '.join(map(str, token.ids))} {token.text!r} {what} {weight}".rstrip()
                tokens.append(ShownToken(title, _token_text(token)))
            position += len(token.ids)
        if tokens:
            shown.append(ShownRun(run.kind, weight, tokens, cut_before))
    if cut is not None and cut >= position:
        shown.append(ShownRun("context", "", [], 0))
    return shown


def _token_text(token: Token) -> list[Piece]:
    """A token's text with hidden characters marked; the space that most words begin with is left as it is."""
    core = token.text.strip(" ")
    if not core:
        return visible(token.text, token.kind)
    before, _, after = token.text.partition(core)
    edges = [[Piece(token.kind, edge)] if edge else [] for edge in (before, after)]
    return [*edges[0], *visible(core, token.kind), *edges[1]]
