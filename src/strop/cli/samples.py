"""Samples and packs in a terminal, as the training step sees them: every run of tokens with what it is.

    sample 1  train.jsonl:1  87 tokens, 41 learned
    read     <|im_start|>user↵
             What is 47 + 38?<|im_end|>↵
             <|im_start|>assistant↵
    learned  47 + 38: tens 40 + 30 = 70, … The answer is $\\boxed{85}$.
    stop     <|im_end|>
    read     ↵

What a run is stands beside it in words, so that it can be read without colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from strop.cli.console import printable
from strop.cli.survey import heading, table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from strop.data.preview import Kind, Run
    from strop.data.records import Example, Place
    from strop.data.tokenizer import Tokenizer
    from strop.review.survey import Selection, Survey

_LABELS: Final[dict[Kind, str]] = {"context": "read", "learned": "learned", "stop": "stop"}
_STYLES: Final[dict[Kind, str]] = {"context": "dim", "learned": "green", "stop": "bold yellow"}
_LONGEST, _HEAD = 900, 600
"""Characters of a run that are shown where not all of them are, and how many of them from its beginning."""

_ASCII_MARKS: Final = str.maketrans({"↵": "\\n", "⇥": "\\t", "␍": "\\r", "·": ".", "⟨": "<", "⟩": ">", "…": "..."})


def show_samples(
    survey: Survey, selection: Selection, console: Console, *, whole: bool = False, tokens: bool = False
) -> None:
    """Print samples, run by run or token by token.

    Args:
        survey: the data that they are of.
        selection: which ones.
        console: where to print.
        whole: print long texts whole.
        tokens: print every token on a line of its own.
    """
    from rich.text import Text

    for refusal in selection.refused:
        heading(f"{refusal.place}: refused", console)
        console.print(Text(printable(f"{refusal.reason}{': ' + refusal.found if refusal.found else ''}"), "yellow"))
        console.print(Text(printable(f"do: {refusal.cure}"), "green"))
    if not selection.samples:
        if not selection.found and not selection.refused:
            heading(f"no samples{selection.words}", console)
        return
    if selection.found > len(selection.samples):
        heading(f"the first {len(selection.samples)} of {selection.found:,} samples{selection.words}", console)
    held_out = survey.held_out_ids
    for example in selection.samples:
        _show_sample(survey, example, example.id in held_out, console, whole=whole, tokens=tokens)


def show_packs(
    survey: Survey, step: int, number: int | None, pack_tokens: int, share_prefixes: bool, console: Console
) -> None:
    """Print the packs of a step with the borders of their documents.

    Args:
        survey: the data.
        step: the step, from 1.
        number: one pack of the step alone, from 1; None for all.
        pack_tokens: the length of a pack.
        share_prefixes: whether beginnings are computed once a pack.
        console: where to print.

    Raises:
        UsageError: the step has no such pack.
    """
    from strop.data.counts import number_of
    from strop.data.preview import documents
    from strop.errors import UsageError

    packs = survey.packs(step - 1, pack_tokens, share_prefixes)
    if number is not None and number > len(packs):
        raise UsageError(
            f"--pack {number}: step {step} has no such pack",
            expected=f"a number from 1 to {len(packs)}",
            found=str(number),
            do="give another number, or leave --pack out for all of them",
        )
    for place, pack in enumerate(packs, start=1):
        if number not in (None, place):
            continue
        found = documents(pack, survey.tokenizer)
        heading(
            f"step {step}, pack {place} of {len(packs)}: {len(pack):,} of {pack_tokens:,} tokens, "
            f"{pack.learned_tokens:,} learned, {len(found)} documents",
            console,
        )
        for index, document in enumerate(found):
            example = survey.dataset.learned.with_id(document.sample_id)
            after = f", goes on from document {document.continues + 1}" if document.continues is not None else ""
            what = f"document {index + 1}, sample {number_of(example)}"
            _rule(what, example.place, f"positions {document.start:,} to {document.end - 1:,}{after}", console)
            _show_runs(document.runs, console, whole=False)


def _show_sample(
    survey: Survey, example: Example, held_out: bool, console: Console, *, whole: bool, tokens: bool
) -> None:
    from strop.data.counts import number_of
    from strop.data.preview import cut_place, pieces, runs
    from strop.data.prompts import compare_prompts, unequal

    uncut = survey.uncut(example)
    learned = int(example.learned.sum())
    facts = [f"{len(example):,} tokens", f"{learned:,} learned"] + (["held out"] if held_out else [])
    cut = cut_place(example, uncut)
    if cut is not None:
        facts.append(f"cut at token {cut + 1:,}: {len(uncut) - len(example):,} of {len(uncut):,} tokens are gone")
    differing = unequal(compare_prompts(uncut, survey.tokenizer))
    if differing:
        facts.append("its prompt is not what chat sends")
    console.print()
    _rule(f"sample {number_of(example)}", example.place, ", ".join(facts), console)
    if tokens:
        _show_tokens(example, survey.tokenizer, console)
    else:
        found = pieces(survey.tokenizer, example.tokens, example.learned, example.weights)
        _show_runs(runs(found), console, whole=whole, cut=cut)


def _show_runs(found: Sequence[Run], console: Console, *, whole: bool, cut: int | None = None) -> None:
    """Print runs, each with what it is beside it, and where the sample was cut."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    position = 0
    for run in found:
        parts = [run.text]
        if cut is not None and position <= cut < position + run.tokens:
            before, taken = "", position
            for piece in run.pieces:
                if taken >= cut:
                    break
                before, taken = before + piece.text, taken + len(piece.ids)
            parts = [before, run.text[len(before) :]]
        for index, part in enumerate(parts):
            if index or (cut == position and len(parts) > 1 and not parts[0]):
                grid.add_row(Text("cut", "bold red"), Text("here text was cut to fit max_tokens", "bold red"))
            if part:
                grid.add_row(Text(_label(run), _STYLES[run.kind]), _text(part, run.kind, console, whole))
        position += run.tokens
    if cut is not None and cut >= position:
        grid.add_row(Text("cut", "bold red"), Text("here the rest was cut to fit max_tokens", "bold red"))
    console.print(grid)


def _show_tokens(example: Example, tokenizer: Tokenizer, console: Console) -> None:
    """Print a sample token by token: position, number in the vocabulary, text, what it is."""
    from strop.data.preview import Run, pieces

    rows, position = [], 0
    for piece in pieces(tokenizer, example.tokens, example.learned, example.weights):
        what = _label(Run(piece.kind, piece.weight, ()))
        rows.append([str(position), " ".join(map(str, piece.ids)), repr(piece.text), what])
        position += len(piece.ids)
    table(["position", "id", "text", "what"], rows, console, bold=lambda row: row[3] != "read", left=(2, 3))


def _label(run: Run) -> str:
    """What a run is, in a word, with its weight where that is not the usual one."""
    usual = run.kind == "context" or run.weight == 1
    return _LABELS[run.kind] if usual else f"{_LABELS[run.kind]} x {run.weight:g}"


def _text(text: str, kind: Kind, console: Console, whole: bool) -> Text:
    """A run's text with its hidden characters made visible; the middle of a long one left out unless `whole`."""
    from rich.text import Text

    from strop.run.report_sections import visible

    if not whole and len(text) > _LONGEST:
        tail = _LONGEST - _HEAD
        left = len(text) - _LONGEST
        text = f"{text[:_HEAD]} […{left:,} more characters…] {text[-tail:]}"
    shown = Text()
    for piece in visible(text, kind):
        style = "cyan dim" if piece.style == "mark" else _STYLES[kind]
        words = printable(piece.text)
        shown.append(words.translate(_ASCII_MARKS) if console.options.ascii_only else words, style)
    if shown.plain.endswith("\n"):
        shown.right_crop(1)
    return shown


def _rule(what: str, place: Place, facts: str, console: Console) -> None:
    """A line that begins a sample or a document: what it is, where it stands (its end, where room is short), facts."""
    from rich.text import Text

    ascii_only = console.options.ascii_only
    sign, left_out = ("-", "...") if ascii_only else ("─", "…")
    room = console.width - len(f"{sign * 2} {what}, : {facts} ")
    where = printable(str(place))
    if len(where) > room:
        where = left_out + where[-max(room - len(left_out), 12) :]
    line = Text(f"{sign * 2} {what}, {where}: {facts} ", "bold cyan")
    line.append(sign * max(console.width - line.cell_len, 0), "cyan")
    console.print(line)
