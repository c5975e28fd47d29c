"""A knob is a deliberate act: the recipe's fields, their types and their defaults stand here one by one."""

from strop.recipe import FIELD, FIELDS, SECTIONS, Recipe
from strop.recipe.fields import REQUIRED

FROZEN = [
    ("model", "text", REQUIRED),
    ("data.train", "text, or a list of texts", REQUIRED),
    ("data.eval", "a number of 0 or more, or text", 0.02),
    ("data.map", "text, or none", None),
    ("data.system", "text, or none", None),
    ("data.rows", "an integer of 1 or more, or none", None),
    ("data.max_tokens", "an integer of 8 or more, or none", None),
    ("data.overlong", "one of refuse, cut_prompt, cut_end", "refuse"),
    ("data.learn", "one of answers, last, all", "answers"),
    ("data.thinking", "one of keep, drop, or none", None),
    ("data.refuse_limit", "a number from 0 to 1", 0.05),
    ("adapter.rank", "an integer from 1 to 1024", 16),
    ("adapter.alpha", "a number above 0", 32.0),
    ("adapter.dropout", "a number from 0 and below 1", 0.0),
    ("adapter.targets", "text", "all-linear"),
    ("train.epochs", "a number above 0", 3.0),
    ("train.steps", "an integer of 1 or more, or none", None),
    ("train.samples_per_step", "an integer of 1 or more", 16),
    ("train.lr", "a number above 0", 2e-4),
    ("train.schedule", "one of cosine, linear, constant", "cosine"),
    ("train.warmup", "a number from 0 and below 1", 0.03),
    ("train.weight_decay", "a number of 0 or more", 0.0),
    ("train.clip", "a number of 0 or more", 1.0),
    ("train.spike", "one of stop, skip, ignore", "skip"),
    ("train.save_every", "an integer of 1 or more", 100),
    ("train.seed", "an integer of 0 or more", 0),
    ("watch.every", "an integer of 1 or more", 50),
    ("watch.ask", "a list of texts", ()),
    ("watch.answer_tokens", "an integer of 1 or more", 256),
]


def test_the_fields_are_exactly_these():
    assert [(field.path, field.allowed, field.default) for field in FIELDS] == FROZEN


def test_there_are_at_most_forty():
    assert len(FIELDS) <= 40


def test_every_field_is_described():
    assert [field.path for field in FIELDS if not field.description] == []


def test_the_defaults_are_those_of_the_schema():
    recipe = Recipe.model_validate({"model": "m", "data": {"train": "d"}}).model_dump()
    flat = {f"{s}.{name}": value for s in SECTIONS for name, value in recipe[s].items()}
    assert {path: value for path, value in flat.items() if not FIELD[path].required} == {
        path: default for path, _, default in FROZEN if default != REQUIRED
    }
    assert flat.keys() | {"model"} == {path for path, _, _ in FROZEN}
