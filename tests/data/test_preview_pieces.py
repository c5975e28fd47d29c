"""Token by token: pieces of text, runs of one kind and weight, documents of packs, the place of a cut."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.data.overlong import fit
from strop.data.packing import pack
from strop.data.preview import cut_place, documents, pieces, runs, sample_runs
from strop.data.records import Conversation, Example, Message, Place
from strop.data.tokenizer import Tokenizer
from strop.data.tokens import Encoded, encode_conversation
from tiny_tokenizers import KINDS

PLACE = Place("f", 1)
TURNS = [
    [("user", "日本 how"), ("assistant", "🙂 done"), ("user", "And"), ("assistant", "é <|im_end|> ")],
    [("user", "  two  spaces\n"), ("assistant", "Größe 👨‍👩‍👧 \ufffd end")],
    [("user", "x"), ("assistant", "苹果三个")],
]


def conversation(turns: list[tuple[str, str]]) -> Conversation:
    return Conversation(tuple(Message(role, text) for role, text in turns), PLACE)  # type: ignore[arg-type]


def example_of(tokenizer: Tokenizer, turns: list[tuple[str, str]], number: int = 0) -> Example:
    said = conversation(turns)
    tokens, learned = encode_conversation(tokenizer, said)[:2]
    return Example(tokens, learned, number, PLACE, said)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("turns", TURNS, ids=["turns", "spaces", "chinese"])
def test_pieces_are_the_whole_text_and_all_tokens(
    tokenizer_of: Callable[[str], Tokenizer], kind: str, turns: list[tuple[str, str]]
) -> None:
    tokenizer = tokenizer_of(kind)
    example = example_of(tokenizer, turns)
    found = pieces(tokenizer, example.tokens, example.learned)
    assert [token for piece in found for token in piece.ids] == example.tokens.tolist()
    assert "".join(piece.text for piece in found) == tokenizer.decode(example.tokens.tolist())
    assert all(len(piece.ids) <= 4 for piece in found)
    shares = [piece.weight for piece in found for _ in piece.ids]
    assert shares == example.learned.astype(float).tolist()
    assert ["".join(piece.text for piece in run.pieces) for run in runs(found)] == [run.text for run in runs(found)]


def test_a_character_over_several_tokens_is_one_piece(chatml: Tokenizer) -> None:
    example = example_of(chatml, [("user", "q"), ("assistant", "果🙂")])
    found = [piece for piece in pieces(chatml, example.tokens, example.learned) if piece.kind == "learned"]
    assert [piece.text for piece in found] == ["果", "🙂"]
    assert sum(len(piece.ids) for piece in found) > 2


@given(st.lists(st.integers(0, 400), min_size=1, max_size=40), st.data())
def test_any_tokens_are_shown_once_each(chatml: Tokenizer, ids: list[int], data: st.DataObject) -> None:
    learned = data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    found = pieces(chatml, np.array(ids, np.int32), np.array(learned))
    assert [token for piece in found for token in piece.ids] == ids
    assert [piece.kind != "context" for piece in found for _ in piece.ids] == learned


def test_runs_are_cut_where_the_weight_changes(chatml: Tokenizer) -> None:
    plain = example_of(chatml, [("user", "q"), ("assistant", "one two")])
    weights = plain.learned.astype(np.float32)
    first = int(plain.learned.argmax())
    weights[first] = 0.5
    example = Example(plain.tokens, plain.learned, 0, PLACE, weights=weights)
    found = sample_runs(example, chatml)
    assert [(run.kind, run.weight) for run in found][1:3] == [("learned", 0.5), ("learned", 1.0)]
    assert "".join(run.text for run in found) == chatml.decode(example.tokens.tolist())
    assert sum(run.tokens for run in found) == len(example)


@pytest.mark.parametrize("share", [False, True])
def test_documents_of_a_pack_are_its_samples(chatml: Tokenizer, share: bool) -> None:
    system = ("system", "Be exact, and say what each step of the calculation does.")
    examples = [
        example_of(chatml, [system, ("user", f"What is {n}?"), ("assistant", f"It is {n}.")], n) for n in range(6)
    ]
    packs = pack(examples, 1000, share)
    assert len(packs) == 1
    found = documents(packs[0], chatml)
    assert [one.start for one in found] == packs[0].starts_D1[:-1].tolist()
    assert [one.end for one in found] == packs[0].starts_D1[1:].tolist()
    assert any(one.continues is not None for one in found) == share
    for one in found:
        if share and one.continues is None:
            continue  # the beginning that the others go on from
        before = found[one.continues].runs if one.continues is not None else ()
        text = "".join(run.text for run in (*before, *one.runs))
        example = examples[one.sample_id]
        assert text == chatml.decode(example.tokens.tolist())
        learned = "".join(run.text for run in one.runs if run.kind != "context")
        assert learned == chatml.decode(example.tokens[example.learned].tolist())


@pytest.mark.parametrize("way", ["cut_end", "cut_prompt"])
def test_the_place_of_a_cut(chatml: Tokenizer, way: str) -> None:
    said = conversation([("user", "How many apples are left? " * 6), ("assistant", "72 " * 8)])
    whole = encode_conversation(chatml, said)
    limit = len(whole.tokens) - 7
    cut = fit(chatml, said, whole, limit, way)  # type: ignore[arg-type]
    assert isinstance(cut, Encoded)
    both = [Example(one.tokens, one.learned, 0, PLACE) for one in (cut, whole)]
    place = cut_place(*both)
    assert place is not None
    assert cut.tokens[:place].tolist() == whole.tokens[:place].tolist()
    if way == "cut_end":
        assert place == limit
    else:
        assert place < len(cut.tokens)
        assert cut.tokens[place] != whole.tokens[place]
    assert cut_place(both[1], both[1]) is None
