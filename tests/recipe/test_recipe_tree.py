"""YAML as a tree: lines, no types, and a refusal with its place for all that is broken or too much."""

import pytest

from strop.errors import UsageError
from strop.recipe.tree import MAX_BYTES, Mapping, Scalar, Sequence, decode, read_tree


def test_scalars_keep_their_spelling_and_line():
    tree = read_tree("a: no\nb: {c: 1e-4,\n d: 'x'}\ne:\n- 012\n- |\n  text\n", "r.yaml")
    assert isinstance(tree, Mapping)
    values = {key.text: node for key, node in tree.entries}
    assert values["a"] == Scalar("no", quoted=False, line=1)
    assert isinstance(values["b"], Mapping)
    assert [(key.text, key.line, node) for key, node in values["b"].entries] == [
        ("c", 2, Scalar("1e-4", False, 2)),
        ("d", 3, Scalar("x", True, 3)),
    ]
    assert values["e"] == Sequence((Scalar("012", False, 5), Scalar("text\n", True, 6)), 5)


def test_an_alias_is_the_anchors_value():
    tree = read_tree("a: &x [1]\nb: *x\n", "r.yaml")
    assert isinstance(tree, Mapping)
    assert tree.entries[0][1] is tree.entries[1][1]


def test_aliases_of_aliases_do_not_grow():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 10) + "]" for i in range(1, 15)]
    assert isinstance(read_tree("\n".join(lines), "r.yaml"), Mapping)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "\ufeff"])
def test_nothing_is_none(text: str):
    assert read_tree(text, "r.yaml") is None


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: 1\nb: [1,\n", "r.yaml:3:", "close the bracket"),
        ("a: 1\n\tb: 2\n", "r.yaml:2:1:", "spaces"),
        ("a: b: c\n", "r.yaml:1:5:", "quotes"),
        ("a: @x\n", "r.yaml:1:4:", "quotes"),
        ('a: "C:\\models"\n', "r.yaml:1:", "single quotes"),
        ("a: 1\na: 2\n", "r.yaml:2:1: a is given twice; the first is on line 1", "remove one"),
        ("a: !!python/object/apply:os.system [x]\n", "r.yaml:1:4: tags are not read", "remove the tag"),
        ("a: !include x\n", "r.yaml:1:4: tags are not read", "remove the tag"),
        ("a: *x\n", "r.yaml:1:4: *x has no anchor", "add it"),
        ("a: &x [*x]\n", "r.yaml:1:8: *x has no anchor", "add it"),
        ("<<: {a: 1}\n", "r.yaml:1:1: merge keys", "write the fields out"),
        ("? [a]\n: 1\n", "r.yaml:1:3:", "NAME: VALUE"),
        ("a: 1\n---\nb: 2\n", "r.yaml:2:1: a second document", "---"),
        ("a: 1\nb: \x01\n", "r.yaml:2:", "remove it"),
        ('a: "\\U99999999"\n', "r.yaml:", "single quotes"),
        ("[" * 5000, "r.yaml:1:21:", "give the recipe, not the data"),
        ("a: [" + "x, " * 30_000 + "]", "r.yaml:1:", "give the recipe, not the data"),
    ],
)
def test_what_is_broken_is_refused_with_its_place(text: str, place: str, words: str):
    with pytest.raises(UsageError) as caught:
        read_tree(text, "r.yaml")
    assert caught.value.what.startswith(place)
    assert words in caught.value.do
    assert caught.value.expected


def test_bytes_are_utf_8_and_few():
    assert decode("\ufeffa: é".encode(), "r.yaml") == "a: é"
    with pytest.raises(UsageError, match=r"r\.yaml:2: .*UTF-8"):
        decode(b"a: 1\nb: \xff\n", "r.yaml")
    with pytest.raises(UsageError, match="too large"):
        decode(b"x" * (MAX_BYTES + 1), "r.yaml")
