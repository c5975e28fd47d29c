"""A resolved recipe: later values, rows, and YAML that reads as the same recipe."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from strop.errors import UsageError
from strop.recipe import FIELDS, Resolved, from_yaml, resolve
from strop.recipe.write import scalar

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
awkward = st.sampled_from(
    ["", " ", "none", "null", "~", "no", "1e-4", "0x10", "- a", "a: b", "# c", "'", '"', "\\", "%", "@"]
)


def base() -> Resolved:
    return resolve(model="m", data="d")


def test_later_values_name_their_source():
    before = base()
    after = before.with_value("data.max_tokens", 2048, "model").with_value("watch.ask", ("Why?",), "data")
    assert after.recipe.data.max_tokens == 2048
    assert after.recipe.watch.ask == ("Why?",)
    assert (after.sources["data.max_tokens"], after.sources["watch.ask"]) == ("model", "data")
    assert after.sources["model"] == "argument MODEL"
    assert before.recipe.data.max_tokens is None
    assert before.sources["data.max_tokens"] == "default"


def test_later_values_are_checked():
    with pytest.raises(UsageError, match=r"model: data\.max_tokens"):
        base().with_value("data.max_tokens", 3, "model")
    with pytest.raises(KeyError):
        base().with_value("data.nothing", 3, "model")


def test_it_is_frozen_and_hashable():
    resolved = base()
    with pytest.raises(AttributeError):
        resolved.recipe = resolved.recipe  # type: ignore[misc]
    with pytest.raises(TypeError):
        resolved.sources["model"] = "x"  # type: ignore[index]
    with pytest.raises(ValidationError):
        resolved.recipe.train.lr = 3.0  # type: ignore[misc]
    assert resolved == base()
    assert hash(resolved) == hash(base())


def test_rows_stand_in_the_schemas_order():
    rows = base().rows()
    assert [row.path for row in rows] == [field.path for field in FIELDS]
    assert rows[0] == ("model", "m", "argument MODEL")


def test_changed_compares_with_the_default():
    resolved = resolve(model="m", data="d", overrides=[("train.lr", "0.0002"), ("train.seed", "1")])
    assert resolved.changed("model")
    assert resolved.changed("train.seed")
    assert not resolved.changed("train.lr")


def test_yaml_names_the_source_on_every_line():
    text = resolve(model="m", data="d", overrides=[("train.lr", "1e-5"), ("watch.ask", "Why?")]).to_yaml()
    lines = {line.split(":")[0].strip(): line for line in text.splitlines()}
    assert "1.0e-05" in lines["lr"]  # YAML 1.1 needs the dot
    assert lines["lr"].endswith("# flag --train.lr")
    assert lines["epochs"].endswith("# default")
    assert lines["ask"].endswith("# flag --watch.ask")
    assert '    - "Why?"' in text.splitlines()


def test_yaml_reads_as_the_same_recipe_for_any_yaml_reader():
    from ruamel.yaml import YAML

    resolved = resolve(model="no", data="1e-4", overrides=[("data.system", "null: # x"), ("train.lr", "1e-7")])
    assert from_yaml(resolved.to_yaml()).recipe == resolved.recipe
    for version in ((1, 1), (1, 2)):
        reader = YAML(typ="safe", pure=True)
        reader.version = version
        read = reader.load(resolved.to_yaml())
        assert read["model"] == "no"
        assert read["data"]["train"] == "1e-4"
        assert read["data"]["system"] == "null: # x"
        assert read["train"]["lr"] == 1e-7
        assert read["train"]["steps"] is None


@settings(max_examples=150, deadline=None)
@given(
    model=texts.filter(bool) | awkward.filter(bool),
    system=st.none() | texts | awkward,
    held_out=st.floats(0, 1e9) | texts.filter(bool) | awkward.filter(bool),
    ask=st.lists(texts | awkward, max_size=4),
    lr=st.floats(min_value=1e-300, max_value=1e300),
    seed=st.integers(0, 2**63 - 1),
    source=texts,
)
def test_any_recipe_survives_yaml(model, system, held_out, ask, lr, seed, source):
    resolved = (
        base()
        .with_value("model", model, source)
        .with_value("data.system", system, source)
        .with_value("data.eval", held_out, "data")
        .with_value("watch.ask", tuple(ask), source)
        .with_value("train.lr", lr, "x")
        .with_value("train.seed", seed, "x")
    )
    if model.startswith("~"):
        return  # a leading tilde is the home folder wherever it is read
    if isinstance(held_out, str) and held_out.startswith("~"):
        return
    assert from_yaml(resolved.to_yaml()).recipe == resolved.recipe


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (3, "3"),
        (0.5, "0.5"),
        (1e-5, "1.0e-05"),
        (1.5e-7, "1.5e-07"),
        ("./a/b-c.jsonl", "./a/b-c.jsonl"),
        ("no", '"no"'),
        ("1e5", '"1e5"'),
        ("a b", '"a b"'),
        ("a\u2028\x85\x7f", '"a\\u2028\\u0085\\u007f"'),
        ("\U000e0001", '"\\U000e0001"'),
        ("é", '"é"'),
    ],
)
def test_scalars(value: object, text: str):
    assert scalar(value) == text
