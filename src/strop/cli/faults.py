"""The parser's errors in Strop's own form: what failed, what was expected, what was found, what to do."""

from __future__ import annotations

from cyclopts import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from strop.cli.app import VERBS, examples
from strop.errors import UsageError


def usage_error(error: CycloptsError) -> UsageError:
    """Say what is wrong with a command line, with the nearest verb or flag."""
    chain = list(error.command_chain or ())
    command = " ".join(["strop", *chain])
    pointer = f"{command} --help shows how it is used"
    match error:
        case UnknownCommandError():
            return _unknown_command((error.unused_tokens or [""])[0])
        case UnknownOptionError():
            return _unknown_flag(error, command, takes_recipe=chain in (["train"], ["plan"], ["data"]))
        case MissingArgumentError() if error.argument is not None:
            name = error.argument.name
            if error.keyword:
                what, expected = f"{command}: flag {error.keyword} has no value", f"{error.keyword} VALUE"
            elif error.argument.index is not None:
                expected = name.lstrip("-").upper()
                what = f"{command}: {expected} is missing"
            else:
                what, expected = f"{command}: the flag {name} is missing", f"{name} VALUE"
            return UsageError(what, expected=expected, found="nothing", do=_example(error) or pointer)
        case CoercionError() if error.token is not None and error.argument is not None:
            name = error.token.keyword or error.argument.name
            kind = getattr(error.target_type, "__name__", str(error.target_type))
            words = {"int": "a whole number", "float": "a number", "bool": "no value: the flag alone says yes"}
            return UsageError(
                f"{command}: {name} does not take this value",
                expected=words.get(kind, kind),
                found=error.token.value,
                do=pointer,
            )
        case UnusedCliTokensError():
            found = " ".join(error.unused_tokens or ())
            return UsageError(f"{command}: too many arguments", expected="fewer", found=found, do=pointer)
        case _:
            error.verbose = False
            return UsageError(f"{command}: {error}", expected="a command line as its help page shows", do=pointer)


def _example(error: CycloptsError) -> str:
    """The first example on the help page of the verb that was called; empty when there is none."""
    lines = examples(error.target).splitlines()[1:2] if error.target is not None else []
    return f"for example: {lines[0].strip()}" if lines else ""


def _unknown_command(word: str) -> UsageError:
    from strop.recipe.names import nearest_of

    if word.startswith("-"):
        near = nearest_of(word, ["--help", "--version"])
        what, do = f"strop has no flag {word}", "a flag follows its verb: strop train MODEL DATA --json"
    else:
        near = nearest_of(word, list(VERBS))
        what, do = f"strop has no command {word}", "strop --help lists the commands"
    return UsageError(
        what, expected="one of " + ", ".join(VERBS), found=word, do=f"did you mean strop {near} ?" if near else do
    )


def _unknown_flag(error: UnknownOptionError, command: str, takes_recipe: bool) -> UsageError:
    from strop.recipe.names import nearest_of

    flag = (error.token.keyword or error.token.value).partition("=")[0]
    known = [
        name
        for argument in error.argument_collection
        if argument.parse
        for name in argument.names
        if name.startswith("--")
    ]
    near = nearest_of(flag, known)
    if takes_recipe:
        from strop.recipe.names import suggest

        suggestion = suggest(flag)
        recipe_flags = [f"--{path}" for path in suggestion.paths]
        if suggestion.note:
            return UsageError(
                f"{command} has no flag {flag}", expected=f"a flag of {command}", found=flag, do=suggestion.note
            )
        if recipe_flags:
            near = " or ".join(recipe_flags)
    do = f"did you mean {near} ?" if near else f"{command} --help lists the flags"
    return UsageError(f"{command} has no flag {flag}", expected="one of " + ", ".join(known), found=flag, do=do)
