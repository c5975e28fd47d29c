"""``strop data``: what a run would learn from, token by token, and what is wrong with it; no weight is read."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from strop.cli.app import verb
from strop.cli.overrides import TakesOverrides, is_recipe, split_plan
from strop.cli.show import recipe_flags
from strop.errors import DataError, UsageError

if TYPE_CHECKING:
    from strop.data.findings import Finding
    from strop.recipe import Resolved

_SHOWN_SAMPLES = 3
_SHOWN_ON_PAGE = 50


def data(
    data: str,
    /,
    *,
    model: str | None = None,
    sample: tuple[int, ...] = (),
    search: str | None = None,
    step: int | None = None,
    pack: int | None = None,
    show: int | None = None,
    tokens: bool = False,
    html: Path | None = None,
    fix: Path | None = None,
    json: bool = False,
    overrides: TakesOverrides = (),
) -> int:
    """Show what will be learned, token by token, and what is wrong with the data.

    Reads the data exactly as strop train does and shows what became of every record, which tokens are learned, how long
    samples are and what a limit would cost, why records are refused, what looks wrong, and the first samples. With
    --sample, --search, --step or --pack it shows these alone. Every field of the recipe is a flag here too. Ends with
    exit code 3 where a run would be refused.

    Args:
        data: what to learn from, as strop train takes it, or a recipe (RECIPE.yaml).
        model: a model folder, a .gguf file or the name smollm2-135m-instruct; only its tokenizer and template are read.
        sample: the number of a record, from 1 in reading order, to show whole; may be repeated.
        search: show samples that have this text.
        step: show the packs of this optimiser step, from 1, with the borders of their documents.
        pack: show this pack of the step, from 1 (default: all of them).
        show: how many samples to show (default: 3, and 50 on the page).
        tokens: show every token on a line of its own, with its number in the vocabulary.
        html: a file to write the same to, as a web page.
        fix: a .jsonl file to write the data to, cleaned; says what changed.
        json: print the figures, the refusals and the findings as one JSON object.

    Examples:
        strop data ./data.jsonl --model ./my-model
        strop data ./data.jsonl --model ./my-model --html data.html
        strop data ./data.jsonl --model ./my-model --data.map problem:solution
        strop data recipe.yaml --sample 12 --tokens
        strop data recipe.yaml --search "3/4" --show 10
        strop data recipe.yaml --step 1
        strop data ./data.jsonl --model ./my-model --fix clean.jsonl
    """
    from strop.cli.console import error_console, output_console, print_error, print_json
    from strop.cli.progress import TerminalListener
    from strop.cli.units import at_least

    for flag, value, least in (("--step", step, 1), ("--pack", pack, 1), ("--show", show, 0)):
        if value is not None:
            at_least(flag, value, least)
    for flag, target in (("--html", html), ("--fix", fix)):
        _refuse_no_folder(flag, target)
    resolved, pack_tokens, share_prefixes = _read(data, model, overrides)
    from strop.review.fix import refuse_existing, write_cleaned
    from strop.review.survey import PACK_TOKENS, select, take_survey
    from strop.run.journal import Journal

    if fix is not None:
        refuse_existing(fix)
    pack_tokens = pack_tokens or PACK_TOKENS
    with TerminalListener(error_console()) as listener:
        journal = Journal(None, listener)
        survey = take_survey(resolved.recipe, pack_tokens=pack_tokens, journal=journal)
        selection = select(survey, sample, search, _SHOWN_SAMPLES if show is None else show)
        cleaned = write_cleaned(survey, fix, journal) if fix is not None else None
    if html is not None:
        from strop.review.page import write_survey

        write_survey(survey, select(survey, sample, search, _SHOWN_ON_PAGE if show is None else show), html)
    if json:
        print_json({**survey.as_dict(), **({"fixed": cleaned.as_dict()} if cleaned else {})})
    else:
        from strop.cli.samples import show_packs, show_samples
        from strop.cli.survey import show_cleaned, show_survey, show_verdict

        console = output_console()
        if step is not None or pack is not None:
            show_packs(survey, step or 1, pack, pack_tokens, share_prefixes, console)
        else:
            everything = not sample and search is None
            if everything:
                show_survey(survey, console)
            show_samples(survey, selection, console, whole=bool(sample), tokens=tokens)
            if everything:
                show_verdict(survey, console)
        if cleaned is not None:
            show_cleaned(cleaned, console)
        if html is not None:
            console.print(f"written: {html}", soft_wrap=True)
    stops = [finding for finding in survey.stops if cleaned is None or not cleaned.solves(finding)]
    if not stops:
        return 0
    refusal = _refusal(stops)
    print_error(refusal)
    return refusal.exit_code


def _read(data: str, model: str | None, overrides: Iterable[tuple[str, str]]) -> tuple[Resolved, int | None, bool]:
    """The recipe, and of the plan the length of a pack and whether packs share beginnings."""
    from strop.plan.plan import read_levers
    from strop.recipe import resolve

    fields, by_hand = split_plan(overrides)
    levers = read_levers(by_hand)
    if is_recipe(data):
        fields += [("model", model)] if model is not None else []
        resolved = resolve(data, overrides=fields)
    elif model is None:
        raise UsageError(
            "no model is given",
            expected="--model MODEL: tokens are those of a model's tokenizer and chat template",
            found="data alone",
            do=f"strop data {data} --model smollm2-135m-instruct, or the model that you want to tune",
        )
    else:
        resolved = resolve(model=model, data=data, overrides=fields)
    pack_tokens = levers.get("pack_tokens")
    share = levers.get("prefixes") == "shared" and resolved.recipe.adapter.dropout == 0
    return resolved, int(pack_tokens) if pack_tokens is not None else None, share


def _refusal(stops: Iterable[Finding]) -> DataError:
    """Why a run would be refused, in an error's four parts."""
    stops = list(stops)
    first = stops[0]
    found = [f"{one.place}: {one.text}" for one in first.instances[:3]]
    return DataError(
        "a run on this data would be refused: " + "; ".join(finding.what.rstrip(".") for finding in stops),
        found="\n".join(found),
        do=first.do,
    )


def _refuse_no_folder(flag: str, target: Path | None) -> None:
    """Say before any work that a file cannot be written there."""
    if target is not None and not target.parent.is_dir():
        raise UsageError(
            f"{flag} {target}: there is no folder {target.parent}",
            expected="a file in a folder that exists",
            found="nothing",
            do=f"make the folder first, or write {flag} {target.name}",
        )


app = verb(data, more=recipe_flags(shutil.get_terminal_size((80, 24)).columns - 1))
