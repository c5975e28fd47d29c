"""What a run depends on, in hashes: a run is continued only where it is the same, or where a difference is accepted.

    part       what it is                                           accepted by name
    recipe     every field and its value                            yes
    model      the base's weights, and how they are read            yes
    template   the chat template                                    yes
    data       every token, learned or not, and how many samples    yes
    adapter    rank, alpha, dropout, targets                        no: its matrices would not fit
    plan       how it is computed: no part of the result, so a difference is only told

Parts stand in the order in which one decides the next: another template makes other tokens of the same data. So the
first that differs is to blame.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from strop.errors import InputError, UsageError
from strop.plan.plan import LATER, Plan
from strop.recipe import Recipe
from strop.recipe.fields import FIELDS
from strop.recipe.write import value_at

Identity = Mapping[str, Mapping[str, Any]]
"""Part → key → value; as JSON."""

ACCEPTABLE = ("recipe", "model", "template", "data")
_PARTS = (*ACCEPTABLE, "adapter")
_SHOWN = 6


def recipe_identity(recipe: Recipe) -> dict[str, Any]:
    """A recipe's values by dotted path, and their hash."""
    values = {field.path: value_at(recipe, field.path) for field in FIELDS}
    return {"sha256": _sha256(values), "fields": json.loads(json.dumps(values))}


def plan_identity(plan: Plan) -> dict[str, Any]:
    """A plan's hash; levers that older plans do not name count only where they are turned."""
    levers = plan.as_dict()
    return {"sha256": _sha256({name: value for name, value in levers.items() if value != LATER.get(name)})}


def check_accepted(names: Collection[str]) -> None:
    """Refuses names of parts that do not exist.

    Raises:
        UsageError: there is one.
    """
    unknown = [name for name in names if name not in ACCEPTABLE]
    if unknown:
        raise UsageError(
            "what is to be accepted is no part of a run",
            expected=f"some of {', '.join(ACCEPTABLE)}",
            found=", ".join(unknown),
            do="name the parts that strop resume refused",
        )


def check_identity(run: Path, kept: Identity, found: Identity, accepted: Collection[str] = ()) -> list[str]:
    """Compares what a run depends on with what it depended on.

    Args:
        run: the run's folder.
        kept: as its checkpoint has it, or its manifest before there is one.
        found: as it is now.
        accepted: parts that may differ.

    Returns:
        The differences that were accepted, in words, by part.

    Raises:
        InputError: another part differs.
    """
    differing = {part: _differences(kept.get(part, {}), found[part]) for part in _PARTS if part in found}
    differing = {part: lines for part, lines in differing.items() if lines}
    refused = [part for part in differing if part not in accepted]
    if refused:
        first = refused[0]
        if "adapter" in refused:
            do = "put the recipe back, or train a new run: these matrices do not fit another adapter"
        else:
            back = f"put the {first}{' (or the tokenizer)' if first == 'data' else ''} back"
            flags = " ".join(f"--accept {part}" for part in differing)
            do = f"{back}, or train a new run; or go on from here with what is there now: strop resume {run} {flags}"
        raise InputError(
            f"the {first} of run {run} has changed since it began",
            expected="what the run began with",
            found="; ".join(f"{part}: {', '.join(differing[part])}" for part in refused),
            do=do,
        )
    return [f"{part}: {', '.join(lines)}" for part, lines in differing.items()]


def _differences(kept: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What differs, in words: "train.lr 0.01 → 0.02"."""
    if "fields" in found and isinstance(kept.get("fields"), Mapping):
        return _differences(kept["fields"], found["fields"])
    names = [name for name in found if kept.get(name) != found[name]]
    lines = [f"{name} {_shown(kept.get(name))} → {_shown(found[name])}" for name in names[:_SHOWN]]
    return lines + ([f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else [])


def _shown(value: Any) -> str:
    text = "nothing" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text[:16] + "…" if len(text) == 64 else text[:80]


def _sha256(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
