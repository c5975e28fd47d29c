"""``strop train``: put the recipe together, show it, train."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from strop.cli.app import verb
from strop.cli.overrides import TakesOverrides, split_plan
from strop.cli.show import recipe_flags
from strop.errors import UsageError

RECIPE_ENDINGS = (".yaml", ".yml")


def train(
    model: str,
    data: str | None = None,
    /,
    *,
    model_flag: Annotated[str | None, Parameter(name="--model")] = None,
    run: Path | None = None,
    json: bool = False,
    overrides: TakesOverrides = (),
) -> None:
    """Fine-tune a chat model on your data.

    Give a model and data, or a recipe that names both. Anything else has a default; every field of the recipe can be
    set by a flag, --section.field VALUE. A run that was stopped is continued by strop resume.

    Args:
        model: a model folder, a .gguf file, the name smollm2-135m-instruct, or a recipe (RECIPE.yaml).
        data: what to learn from: a .json or .jsonl file, or a folder of them.
        model_flag: the model, in place of the one that the recipe names.
        run: the run's folder (default: runs/DATE-MODEL-DATA).
        json: print the result as one JSON object.

    Examples:
        strop train ./my-model ./data.jsonl
        strop train smollm2-135m-instruct ./MATH/train --train.epochs 1
        strop train recipe.yaml --train.lr 1e-4 --watch.ask "What is 3/4 + 1/8?"
    """
    from strop.cli.console import error_console, output_console, print_json
    from strop.cli.progress import TerminalListener
    from strop.cli.show import show_recipe, show_run
    from strop.recipe import resolve

    file, model_text, data_text = sort_arguments(model, data)
    recipe_overrides, plan_overrides = split_plan(overrides)
    if model_flag is not None:
        recipe_overrides.append(("model", model_flag))
    resolved = resolve(file, model=model_text, data=data_text, overrides=recipe_overrides)

    console = error_console()
    show_recipe(resolved, console)
    from strop.training.session import train_run

    with TerminalListener(console) as listener:
        summary = train_run(resolved, folder=run, plan_overrides=plan_overrides, listener=listener)
    if json:
        print_json(summary)
    else:
        show_run(summary, output_console())


def sort_arguments(model: str, data: str | None) -> tuple[str | None, str | None, str | None]:
    """Tell a recipe from a model and data: of the two arguments, the one that ends in .yaml or .yml is the recipe.

    Returns:
        The recipe file, the model and the data; None for what is not given.

    Raises:
        UsageError: two recipes.
    """
    model_is_recipe = model.lower().endswith(RECIPE_ENDINGS)
    data_is_recipe = data is not None and data.lower().endswith(RECIPE_ENDINGS)
    if model_is_recipe and data_is_recipe:
        raise UsageError(
            "two recipes are given",
            expected="one recipe, or a model and data",
            found=f"{model} and {data}",
            do=f"strop train {model}",
        )
    if model_is_recipe:
        return model, None, data
    if data_is_recipe:
        return data, model, None
    return None, model, data


app = verb(train, more=recipe_flags(shutil.get_terminal_size((80, 24)).columns - 1))
