"""``strop models``: the families that can be tuned, how each was checked, and a check on a user's own weights."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any, Final

from strop.cli.app import verb
from strop.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from strop.model.families.family import Family

_CHECKED: Final = {
    "transformers": "logits, loss, gradients, answers: transformers, tiny random weights",
    "formulas": "the same beside its published formulas (transformers lacks it), tiny random weights",
}
_REAL: Final = {"llama": "SmolLM2-135M-Instruct"}
"""Families of which real weights were run through the tests, and which weights."""


def models(*, check: str | None = None, template: str | None = None, json: bool = False) -> int:
    """List the families of models that can be tuned, or prove one on your weights.

    Every family is held to transformers (or to its published formulas where transformers lacks it) on tiny random
    weights. Real weights were run for SmolLM2 alone; for others --check compares every layer of a model of yours
    with transformers, which must be installed, in float32 and with the weights that NF4 leaves, and says how many
    matrices are in NF4: all that should be, or it is an error. It takes about a minute for a 7B model and ends with
    exit code 1 where they differ. A model that transformers has and this list has not is tuned by a general path over
    transformers' own code: --check says how it is computed.

    Args:
        check: a model to prove: a folder, a .gguf file, or an id on a hub.
        template: print this stock chat template, to be put into a model's folder as chat_template.jinja.
        json: print one JSON object.

    Examples:
        strop models
        strop models --check ./internlm3-8b-instruct
        strop models --template internlm-eoh
    """
    if check is not None and template is not None:
        raise UsageError("--check and --template do not go together", do="give one of them")
    if check is not None:
        return _check(check, json=json)
    if template is not None:
        return _template(template, json=json)
    return _list(json=json)


def _list(*, json: bool) -> int:
    from strop.cli.console import output_console, print_json, printable
    from strop.model.families import families
    from strop.model.paths import SLOWER

    rows = [_facts(family) for family in families().values()]
    if json:
        print_json({"families": rows})
        return 0
    from rich.table import Table
    from rich.text import Text

    console = output_console()
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("family", "models", "held to", "real weights"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        cells = (row["family"], row["models"], row["reference"], row["real_weights"] or "–")
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console.print(table)
    console.print()
    for name, how in _CHECKED.items():
        console.print(Text(f"{name}: {how}"), soft_wrap=True)
    console.print(Text("strop models --check MODEL proves a family on your own weights."), soft_wrap=True)
    console.print(Text(f"Other models that transformers has itself: {SLOWER}."), soft_wrap=True)
    return 0


def _facts(family: Family) -> dict[str, Any]:
    from strop.data.stock_templates import candidates

    return {
        "family": family.name,
        "models": family.covers,
        "model_types": list(family.model_types),
        "reference": family.reference,
        "checked": _CHECKED[family.reference],
        "real_weights": _REAL.get(family.name),
        "stock_templates": [one.name for one in candidates({"model_type": family.model_types[0]})],
    }


def _check(model: str, *, json: bool) -> int:
    from strop.cli.console import note, output_console, print_json
    from strop.evaluate.family_check import TOLERANCE, check_family
    from strop.model.families import find_family, read_config
    from strop.model.four_bit import as_facts
    from strop.model.source import model_folder

    folder = model_folder(model, note)
    if find_family(read_config(folder)) is None:
        return _check_general(folder, json=json)
    layers = []
    for one in check_family(folder):
        layers.append(one)
        if not json:
            note(f"layer {one.layer}: difference {one.difference:.1e}")
    worst = max(layers, key=lambda one: one.difference)
    quantised = reduce(add, (one.quantised for one in layers))
    passed = worst.difference < TOLERANCE
    if json:
        rows = [{"layer": one.layer, "difference": one.difference} for one in layers]
        facts = {"model": folder, "passed": passed, "tolerance": TOLERANCE, "layers": rows}
        print_json({**facts, "nf4": as_facts(quantised)})
    else:
        verdict = "the same as transformers" if passed else "NOT what transformers computes"
        output_console().print(
            f"{len(layers)} layers, {verdict}: largest difference {worst.difference:.1e} of the logits, "
            f"in layer {worst.layer} (allowed {TOLERANCE:.0e}); {quantised}",
            soft_wrap=True,
        )
    return 0 if passed else 1


def _check_general(folder: Path, *, json: bool) -> int:
    """Of the general path there is no second code to compare with: what is checked is what Strop adds to it."""
    from strop.cli.console import output_console, print_json
    from strop.evaluate.general_check import check_general
    from strop.model.paths import SLOWER

    found = check_general(folder)
    if json:
        print_json({"model": folder, "path": SLOWER, **found._asdict()})
    else:
        console = output_console()
        console.print(f"{found.family}: {SLOWER}", soft_wrap=True)
        console.print(
            f"{found.quantized:,} weights in NF4, {found.kept:,} as they are; adapters on {', '.join(found.targets)}",
            soft_wrap=True,
        )
        how = f"in packs, apart by {found.isolates}" if found.isolates else "a document at a time"
        console.print(
            f"documents are computed {how}: largest difference {found.difference:.1e} from alone "
            f"(allowed {found.tolerance:.0e}); answers {'go on from its cache' if found.caches else 'are made anew'}",
            soft_wrap=True,
        )
    return 0 if found.passed else 1


def _template(name: str, *, json: bool) -> int:
    import difflib
    import sys

    from strop.cli.console import print_json
    from strop.data.stock_templates import STOCK

    stock = STOCK.get(name)
    if stock is None:
        near = difflib.get_close_matches(name, STOCK, 1)
        raise UsageError(
            f"there is no stock template {name}",
            expected="one of " + ", ".join(STOCK),
            found=name,
            do=f"strop models --template {near[0] if near else next(iter(STOCK))}",
        )
    if json:
        print_json({"template": name, "control_tokens": list(stock.control), "source": stock.source})
    else:
        sys.stdout.write(stock.source)
    return 0


app = verb(models)
