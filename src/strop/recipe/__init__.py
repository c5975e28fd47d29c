"""The recipe: what is learned. Read from YAML and flags, checked, and shown with the source of every value.

    schema      the fields, as pydantic models                tree      YAML as scalars with line numbers
    fields      the same as a flat table                      read      what a file and flags give for each field
    names       did you mean                                  values    what a text means for a field
    provenance  a recipe with the source of each value        resolve   default < file < arguments < flags
    write       back to YAML

Nothing here imports torch, and YAML is only ever data: no tags, no code.
"""

from strop.recipe.fields import FIELD, FIELDS, SECTIONS, RecipeField
from strop.recipe.provenance import Resolved, Row
from strop.recipe.resolve import from_yaml, resolve
from strop.recipe.schema import AdapterSection, DataSection, Recipe, TrainSection, WatchSection

__all__ = [
    "FIELD",
    "FIELDS",
    "SECTIONS",
    "AdapterSection",
    "DataSection",
    "Recipe",
    "RecipeField",
    "Resolved",
    "Row",
    "TrainSection",
    "WatchSection",
    "from_yaml",
    "resolve",
]
