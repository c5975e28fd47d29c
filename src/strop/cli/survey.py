"""A data set's figures in a terminal: account, lengths, what limits cost, packs, refusals, findings, prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from strop.cli.console import printable
from strop.cli.plan import bar
from strop.cli.show import show_facts

if TYPE_CHECKING:
    from rich.console import Console
    from rich.padding import Padding

    from strop.data.findings import Severity
    from strop.review.fix import Cleaned
    from strop.review.survey import Survey

_MOST_SOURCES, _MOST_REASONS, _MOST_FINDINGS, _SHOWN_INSTANCES = 12, 12, 30, 3
_LEAST_BAR, _MOST_BAR = 8, 48

_STYLES: Final[dict[Severity, str]] = {"stop": "bold red", "warn": "yellow", "note": "cyan"}


def show_survey(survey: Survey, console: Console) -> None:
    """Print all figures of a data set.

    Args:
        survey: the data set.
        console: where to print; its width and whether it shows more than ASCII decide the form.
    """
    _show_account(survey, console)
    if len(survey.dataset.learned):
        _show_lengths(survey, console)
    if survey.everything.over:
        _show_limits(survey, console)
    if len(survey.dataset.learned):
        _show_packs(survey, console)


def show_verdict(survey: Survey, console: Console) -> None:
    """Print what is refused, what was noticed, and whether training and chat ask alike: what a person must not miss."""
    _show_refusals(survey, console)
    _show_findings(survey, console)
    show_prompts(survey, console)


def show_cleaned(cleaned: Cleaned, console: Console) -> None:
    """Print what was done to the data and where the cleaned file is."""
    from rich.text import Text

    count = len(cleaned.changes)
    heading(f"cleaned: {count or 'no'} {'change' if count == 1 else 'changes'}", console)
    for change in cleaned.changes:
        console.print(Text.assemble((printable(change.what), "bold"), f" [{change.kind}]"))
        for instance in change.instances[:_SHOWN_INSTANCES]:
            console.print(_indented(f"{instance.place}: {instance.text}", "dim"))
    if cleaned.left:
        kinds = ", ".join(finding.kind for finding in cleaned.left)
        console.print(Text(printable(f"still found, for you to decide: {kinds}"), "yellow"))
    refused = f"; {cleaned.refused:,} refused records are not in it" if cleaned.refused else ""
    console.print(f"written: {printable(str(cleaned.file))}, {cleaned.written:,} samples{refused}", soft_wrap=True)


def heading(text: str, console: Console) -> None:
    """Print the heading of a part."""
    from rich.text import Text

    console.print()
    console.print(Text(printable(text), "bold"))


def percent(part: float, whole: float) -> str:
    """A share in words: ``48 %``, ``0.3 %``; nothing for a part of nothing."""
    if not whole:
        return "0 %"
    share = part / whole * 100
    if 0 < share < 0.05:
        return "<0.1 %"
    return f"{share:.1f} %" if 0 < share < 9.95 or 99.05 <= share < 100 else f"{share:.0f} %"


def show_prompts(survey: Survey, console: Console) -> None:
    """Say whether the prompts that are trained are those that chat sends; show the first that is not."""
    from rich.text import Text

    from strop.data.counts import number_of

    if not survey.compared:
        return
    heading("training prompt against chat prompt", console)
    if not survey.unequal:
        text = f"equal, token for token, in {survey.compared:,} of {survey.compared:,} samples that were compared"
        console.print(Text(text, "green"))
        return
    pair = survey.unequal[0]
    what = f"{len(survey.unequal):,} differ of {survey.compared:,} samples that were compared; the first:"
    console.print(Text(what, "bold red"))
    console.print(Text(f"sample {number_of(pair.sample)}, {printable(str(pair.sample.place))}, answer {pair.turn}"))
    if pair.fault:
        console.print(Text(printable(pair.fault)))
        return
    first = pair.first_difference or 0
    rows = []
    for at in range(max(first - 4, 0), min(max(len(pair.trained), len(pair.sent)), first + 12)):
        sides = [side[at] if at < len(side) else None for side in (pair.trained, pair.sent)]
        shown = ["(nothing)" if one is None else f"{one} {survey.tokenizer.decode([one])!r}" for one in sides]
        rows.append([str(at + 1), *shown, "" if sides[0] == sides[1] else "differs"])
    table(["token", "trained", "sent by chat", ""], rows, console, bold=lambda row: bool(row[3]), left=(1, 2, 3))


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    console: Console,
    *,
    bold: Callable[[Sequence[str]], bool] = lambda _: False,
    left: Sequence[int] = (0,),
) -> None:
    """Print rows under headings, numbers to the right."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="dim")
    for index, name in enumerate(headings):
        made.add_column(name, justify="left" if index in left else "right", overflow="fold", no_wrap=index not in left)
    for row in rows:
        made.add_row(*(Text(printable(cell), "bold" if bold(row) else "") for cell in row))
    console.print(made)


def _show_account(survey: Survey, console: Console) -> None:
    from strop.review.survey import reading_notes, shapes

    dataset, recipe = survey.dataset, survey.recipe
    tokens, learned = survey.tokens, survey.learned_tokens
    parts = f"{len(dataset.learned):,} learned + {len(dataset.held_out):,} held out + {len(survey.refused):,} refused"
    facts = {
        "data": survey.data,
        "model": f"{recipe.model} (context {survey.context:,} tokens)" if survey.context else recipe.model,
        "read": f"{survey.read:,} records = {parts}",
    }
    if dataset.available > dataset.read:
        facts["rows"] = f"{dataset.read:,} of {dataset.available:,} in the data are used (data.rows)"
    facts["tokens"] = f"{tokens:,} to read, of which {learned:,} are learned ({percent(learned, tokens)})"
    facts |= {"shapes": ", ".join(f"{name} {count:,}" for name, count in shapes(dataset).items())}
    facts |= {"reading": "\n".join(f"{words}: {count:,} records" for words, count in reading_notes(dataset).items())}
    show_facts("", {name: text for name, text in facts.items() if text}, console)
    if len(survey.sources) > 1:
        console.print()
        rows = []
        for one in survey.sources[:_MOST_SOURCES]:
            counts = (one.read, one.learned, one.held_out, one.refused, one.tokens)
            rows.append([one.name, *(f"{count:,}" for count in counts), percent(one.learned_tokens, one.tokens)])
        table(["source", "read", "learned", "held out", "refused", "tokens", "of these learned"], rows, console)
        _more(len(survey.sources) - len(rows), "sources", console)


def _show_lengths(survey: Survey, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    from strop.data.lengths import quantiles
    from strop.data.preview import length_histogram

    heading("lengths of the samples to learn, in tokens", console)
    figures = quantiles(survey.dataset.lengths_S)
    names = ("shortest", "median", "mean", "95 % up to", "99 % up to", "longest")
    keys = ("shortest", "median", "mean", "percentile_95", "percentile_99", "longest")
    parts = [f"{name} {figures[key]:,.0f}" for name, key in zip(names, keys, strict=True)]
    console.print(Text("\n".join(_filled(parts, console.width))))
    bars = length_histogram(survey.dataset.lengths_S)
    most = max(one.count for one in bars)
    grid = Table(box=None, pad_edge=False, show_header=False)
    grid.add_column(justify="right", style="dim", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(no_wrap=True)
    room = min(max(console.width - 28, _LEAST_BAR), _MOST_BAR)
    dash = "-" if console.options.ascii_only else "–"
    for one in bars:
        drawn = bar(one.count / most * room, console.options.ascii_only) if one.count else ""
        span = f"{one.low:,}{dash}{one.high:,}" if one.low != one.high else f"{one.low:,}"
        grid.add_row(span, f"{one.count:,}", Text(drawn, "cyan"))
    console.print(grid)


def _show_limits(survey: Survey, console: Console) -> None:
    heading("what each data.max_tokens would cost", console)
    samples, learned = survey.everything.over, survey.everything.learned
    rows = [
        [
            f"{cost.max_tokens:,}",
            f"{cost.over:,}",
            percent(cost.over, samples),
            f"{cost.learned:,} ({percent(cost.learned, learned)})" if cost.over else "nothing",
            f"{cost.cut_learned:,} ({percent(cost.cut_learned, learned)})" if cost.over else "nothing",
            "in force" if cost.max_tokens == survey.limit else "",
        ]
        for cost in survey.costs
    ]
    headings = ["max_tokens", "longer", "", "lost if refused", "lost if cut_end", ""]
    table(headings, rows, console, bold=lambda row: bool(row[5]), left=(5,))


def _show_packs(survey: Survey, console: Console) -> None:
    fill = survey.fill
    heading(f"packs of {fill.pack_tokens:,} tokens", console)
    of = "all samples" if fill.samples == len(survey.dataset.learned) else f"{fill.samples:,} samples"
    packs = "pack" if fill.packs == 1 else "packs"
    every = survey.recipe.train.samples_per_step
    show_facts(
        "",
        {
            "all at once": f"{of} in {fill.packs:,} {packs}, {percent(fill.share, 1)} full; none cut, none padded",
            "by step": f"{every} samples, {fill.step_tokens:,.0f} tokens, {fill.step_packs:.1f} packs on average",
        },
        console,
    )


def _show_refusals(survey: Survey, console: Console) -> None:
    from rich.text import Text

    from strop.data.counts import group_refusals

    if not survey.refused:
        return
    heading(f"refused: {len(survey.refused):,} of {survey.read:,} records", console)
    groups = group_refusals(survey.refused)
    for one in groups[:_MOST_REASONS]:
        times = "x" if console.options.ascii_only else "×"
        console.print(Text(f"{len(one.refusals):,} {times} {printable(one.reason)}", "yellow"))
        console.print(_indented(f"do: {one.cure}", "green"))
        for refusal in one.first[:_SHOWN_INSTANCES]:
            found = f": {refusal.found}" if refusal.found else ""
            console.print(_indented(f"{refusal.place}{found}", "dim"))
        _more(len(one.refusals) - len(one.first[:_SHOWN_INSTANCES]), "such records", console, indent=4)
    _more(len(groups) - _MOST_REASONS, "reasons", console)


def _show_findings(survey: Survey, console: Console) -> None:
    from rich.text import Text

    if not survey.findings:
        heading("findings: none", console)
        return
    heading(f"findings: {len(survey.findings)}", console)
    for one in survey.findings[:_MOST_FINDINGS]:
        console.print(
            Text.assemble((f"{one.severity} ", _STYLES[one.severity]), (printable(one.what), "bold"), f" [{one.kind}]")
        )
        console.print(_indented(f"do: {one.do}", "green"))
        for instance in one.instances[:_SHOWN_INSTANCES]:
            console.print(_indented(f"{instance.place}: {instance.text}", "dim"))
        _more(one.count - len(one.instances[:_SHOWN_INSTANCES]), "such records", console, indent=4)
    _more(len(survey.findings) - _MOST_FINDINGS, "findings", console)


def _filled(parts: Sequence[str], width: int, gap: str = "   ") -> list[str]:
    """Parts on as few lines as they fit on, none of them broken."""
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(gap) + len(part) > width:
            lines.append(part)
        else:
            lines[-1] += gap + part
    return lines


def _indented(text: str, style: str, indent: int = 4) -> Padding:
    """A text on one line, or on as many as it needs, below what it belongs to."""
    from rich.padding import Padding
    from rich.text import Text

    return Padding(Text(" ".join(printable(text).split()), style), (0, 0, 0, indent))


def _more(count: int, what: str, console: Console, indent: int = 0) -> None:
    """Say that there is more than is shown."""
    from rich.text import Text

    if count > 0:
        console.print(Text(f"{' ' * indent}and {count:,} more {what}", "dim"))
