"""``strop train``: put the recipe together, show it, train."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from strop.cli.app import verb
from strop.cli.overrides import TakesOverrides, read_budget, read_recipe
from strop.cli.show import recipe_flags


def train(
    model: str,
    data: str | None = None,
    /,
    *,
    model_flag: Annotated[str | None, Parameter(name="--model")] = None,
    memory: str | None = None,
    run: Path | None = None,
    json: bool = False,
    overrides: TakesOverrides = (),
) -> None:
    """Fine-tune a chat model on your data.

    Give a model and data, or a recipe that names both. Anything else has a default; every field of the recipe can be
    set by a flag, --section.field VALUE. The fastest way to compute it within the memory is found by itself; strop plan
    shows it beforehand. A run that was stopped is continued by strop resume.

    Args:
        model: a model folder, a .gguf file, an id on a hub (owner/name, ms:owner/name), the name
            smollm2-135m-instruct, or a recipe (RECIPE.yaml).
        data: what to learn from: a file, a folder or glob of files, or an id on a hub; several with commas between.
        model_flag: the model, in place of the one that the recipe names.
        memory: the most memory that the run may take, such as 8GB (default: a share of what is free).
        run: the run's folder (default: runs/DATE-MODEL-DATA).
        json: print the result as one JSON object.

    Examples:
        strop train ./my-model ./data.jsonl
        strop train smollm2-135m-instruct ./MATH/train --train.epochs 1
        strop train ./my-model ./data.jsonl --memory 8GB
        strop train recipe.yaml --train.lr 1e-4 --watch.ask "What is 3/4 + 1/8?"
    """
    from strop.cli.console import error_console, output_console, print_json
    from strop.cli.progress import TerminalListener
    from strop.cli.show import show_recipe, show_run

    budget = read_budget(memory)
    resolved, levers = read_recipe(model, data, model_flag, overrides)
    console = error_console()
    show_recipe(resolved, console)
    from strop.training.session import train_run

    with TerminalListener(console) as listener:
        summary = train_run(resolved, folder=run, budget_bytes=budget, plan_overrides=levers, listener=listener)
    if json:
        print_json(summary)
    else:
        show_run(summary, output_console())


app = verb(train, more=recipe_flags(shutil.get_terminal_size((80, 24)).columns - 1))
