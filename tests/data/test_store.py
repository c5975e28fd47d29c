"""The store: what is read is what was written, bit for bit, and arrays of all samples agree with the samples."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.data import store as store_module
from strop.data.conversations import Tally
from strop.data.records import Conversation, Example, Message, Place, Refusal, Span, ToolCall
from strop.data.samples import Samples, learned_counts, learned_of, lengths, taught, untaught
from strop.data.split import content_key
from strop.data.store import (
    ChunkBuilder,
    Sample,
    Store,
    StoreWriter,
    is_whole,
)
from strop.data.store_text import read_conversation_text, write_conversation

KEY = bytes(range(32))
FILES = ["one.jsonl", "two.jsonl"]

texts = st.text(max_size=20) | st.sampled_from(["\ud800", "日本\u2028", '"\\'])
messages = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant", "tool"]),
    texts,
    weight=st.none() | st.floats(0, 2),
    spans=st.lists(st.builds(Span, st.integers(0, 5), st.integers(6, 9), st.floats(0, 2)), max_size=2).map(tuple),
    thinking=st.none() | texts,
    calls=st.lists(st.builds(ToolCall, texts, texts, st.none() | texts), max_size=2).map(tuple),
    call_id=st.none() | texts,
    name=st.none() | texts,
)
places = st.builds(Place, st.sampled_from([*FILES, "hub:x"]), st.integers(1, 9)) | st.builds(
    Place, st.sampled_from(FILES), item=st.none() | st.integers(1, 9)
)
conversations = st.builds(
    Conversation,
    st.lists(messages, max_size=4).map(tuple),
    places,
    st.lists(texts, max_size=2).map(tuple),
    st.none() | texts,
)


@st.composite
def samples(draw: st.DrawFn, vocabulary: int) -> Sample:
    tokens = draw(st.lists(st.integers(0, vocabulary - 1), min_size=1, max_size=30))
    learned = draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens)))
    weights = draw(st.none() | st.lists(st.floats(0, 4, width=32), min_size=len(tokens), max_size=len(tokens)))
    return Sample(
        np.array(tokens, np.int32), np.array(learned), None if weights is None else np.array(weights, np.float32)
    )


Written = list[tuple[int, Conversation, list[Sample]] | tuple[int, Refusal]]


@st.composite
def records(draw: st.DrawFn, vocabulary: int) -> Written:
    made: Written = []
    for number in range(draw(st.integers(0, 6))):
        if draw(st.booleans()):
            made.append((number, draw(conversations), draw(st.lists(samples(vocabulary), min_size=1, max_size=3))))
        else:
            made.append((number, draw(st.builds(Refusal, places, texts, texts, texts, texts))))
    return made


def write(written: Written, vocabulary: int, chunk_size: int) -> io.BytesIO:
    file = io.BytesIO()
    writer = StoreWriter(file, KEY, vocabulary, FILES)
    for start in range(0, len(written), chunk_size):
        builder, part = ChunkBuilder(vocabulary), written[start : start + chunk_size]
        for number, *outcome in part:
            if isinstance(outcome[0], Refusal):
                builder.refuse(number, outcome[0])
            else:
                builder.add(number, *outcome)
        writer.add(builder.finish(len(part), Tally(Counter({"a shape": len(part)}))))
    writer.finish(available=99, bounds=[(7, 9)])
    return file


@given(data=st.data(), vocabulary=st.sampled_from([2, 1 << 16, (1 << 16) + 1]))
def test_what_is_read_is_what_was_written(data: st.DataObject, vocabulary: int) -> None:
    written = data.draw(records(vocabulary))
    files = [write(written, vocabulary, size).getvalue() for size in (1, 2, 100)]
    assert files[0] == files[1] == files[2]
    assert is_whole(io.BytesIO(files[0]), KEY, len(files[0]))
    store = Store(files[0], FILES)
    flat = [
        (number | which << 32, conversation, sample)
        for number, *rest in written
        if len(rest) == 2
        for conversation, many in [rest]
        for which, sample in enumerate(many)
    ]
    found = Samples(store, id_offset=1000)
    assert len(found) == len(flat)
    for example, (number, conversation, sample) in zip(found, flat, strict=True):
        assert (example.id, example.place, example.conversation) == (number + 1000, conversation.place, conversation)
        for name, dtype in (("tokens", np.int32), ("learned", np.bool_), ("weights", np.float32)):
            got, put = getattr(example, name), getattr(sample, name)
            if put is None:
                assert got is None
            else:
                assert (got.tolist(), got.dtype, got.flags.writeable) == (put.tolist(), dtype, False)
    assert store.refusals == [(number, rest[0]) for number, *rest in written if len(rest) == 1]
    assert (store.records, store.available) == (len(written), 99)
    assert store.tally.shapes == ({"a shape": len(written)} if written else {})
    assert store.bounds == [(7, 9)]
    for function in (lengths, taught, untaught, learned_counts):
        assert function(found).tolist() == function(list(found)).tolist()
    for at, example in enumerate(found):
        assert learned_of(found, at).tolist() == example.learned.tolist()
        assert found.with_id(example.id).id == example.id
    assert found.records_S.tolist() == [number & 0xFFFFFFFF for number, _, _ in flat]
    for seed in (0, 3):
        keys = [content_key(seed, sample.tokens) for _, _, sample in flat]
        assert found.contents_S2(seed).tobytes() == b"".join(keys)
    contents, wholes = found.contents_S2(0).tolist(), found.wholes_S2.tolist()
    for one, (_, _, a) in enumerate(flat):
        for other, (_, _, b) in enumerate(flat):
            same = a.tokens.tolist() == b.tokens.tolist()
            assert (contents[one] == contents[other]) == same
            weights = [None if part.weights is None else part.weights.tolist() for part in (a, b)]
            alike = same and a.learned.tolist() == b.learned.tolist() and weights[0] == weights[1]
            assert (wholes[one] == wholes[other]) == alike


@given(conversation=conversations)
def test_a_conversation_comes_back(conversation: Conversation) -> None:
    assert read_conversation_text(write_conversation(conversation), conversation.place) == conversation


def simple(count: int) -> bytes:
    rows: Written = [
        (
            n,
            Conversation((Message("user", "q"), Message("assistant", "a")), Place("one.jsonl", n + 1)),
            [Sample(np.arange(n % 7 + 2, dtype=np.int32), np.arange(n % 7 + 2) > 0)],
        )
        for n in range(count)
    ]
    return write(rows, 50, 10).getvalue()


def test_only_a_whole_file_of_its_key_is_whole() -> None:
    content = simple(5)

    def whole(content: bytes, key: bytes = KEY) -> bool:
        return is_whole(io.BytesIO(content), key, len(content))

    assert whole(content)
    assert not whole(content, bytes(32))
    for place in range(len(content)):
        assert not whole(content[:place])
        assert not whole(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert not whole(content + b"\0")


def test_samples_are_a_sequence() -> None:
    samples = Samples(Store(simple(20), FILES))
    everything = list(samples)
    assert all(isinstance(one, Example) for one in everything)
    assert samples[-1].id == 19
    assert [one.id for one in samples[3:17:4]] == [3, 7, 11, 15]
    assert [one.id for one in samples[::-1][:2]] == [19, 18]
    assert [one.id for one in samples.take(samples.lengths_S == 2)] == [0, 7, 14]
    assert samples.take(np.array([5, 1]))[0].id == 5
    assert samples.place(4) == Place("one.jsonl", 5)
    with pytest.raises(IndexError):
        samples[20]
    assert not samples[:0]


def test_pages_that_were_looked_at_are_let_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    import mmap

    (tmp_path / "store").write_bytes(simple(500))
    monkeypatch.setattr(store_module, "_MOST_TOUCHED", 10 * mmap.PAGESIZE)
    with (tmp_path / "store").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    store = Store(mapped, FILES)
    expected = [one.tokens.tolist() for one in Samples(Store(simple(500), FILES))]
    assert [one.tokens.tolist() for one in Samples(store)] == expected
    assert store.held_bytes == store.rows.nbytes + 10 * mmap.PAGESIZE
