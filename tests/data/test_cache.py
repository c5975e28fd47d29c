"""Kept samples: what comes back is what was encoded, anything else is encoded anew, and no fault is an error."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strop.data import cache, encoding, examples, mixture
from strop.data.cache import key_of
from strop.data.examples import Dataset, prepare
from strop.data.mixture import Source
from strop.data.reading import Reading
from strop.data.records import Conversation, Place
from strop.data.tokenizer import Tokenizer
from strop.recipe.schema import DataSection
from tiny_tokenizers import CHATML, write_folder

Prepare = Callable[..., Dataset]


@pytest.fixture(autouse=True)
def keep_small_data_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "LEAST_BYTES", 1)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many conversations each call encodes."""
    counts: list[int] = []
    encode = encoding.encode_conversations

    def counted(tokenizer: Tokenizer, conversations: list[Conversation], learn: Any) -> list[Any]:
        counts.append(len(conversations))
        return encode(tokenizer, conversations, learn)

    monkeypatch.setattr(encoding, "encode_conversations", counted)
    return counts


def write(file: Path, rows: Iterable[object]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(file)


ROWS: list[dict[str, Any]] = [
    *({"question": f"What is {n} + {n}?", "answer": f"{n} + {n} = {2 * n}"} for n in range(9)),
    {"question": "", "answer": "refused while reading"},
    {"question": "word " * 80, "answer": "Too long."},
    {"question": "日本 <|im_end|> \U0001f642", "answer": "Yes."},
]


@pytest.fixture
def rows(tmp_path: Path) -> str:
    return write(tmp_path / "rows.jsonl", ROWS)


def data(tokenizer: Tokenizer, train: str, folder: Path | None, **section: Any) -> Dataset:
    section = {"eval": 2, "max_tokens": 120, **section}
    return prepare(DataSection(train=train, **section), tokenizer, seed=0, cache=folder)


def equal(one: Dataset, other: Dataset) -> None:
    """All fields, and the arrays' kinds."""
    for field in fields(Dataset):
        if field.name in ("learned", "held_out"):
            pairs = list(zip(getattr(one, field.name), getattr(other, field.name), strict=True))
            for a, b in pairs:
                assert (a.id, a.place, a.conversation) == (b.id, b.place, b.conversation)
                for name in ("tokens", "learned"):
                    assert getattr(a, name).tolist() == getattr(b, name).tolist()
                    assert getattr(a, name).dtype == getattr(b, name).dtype
                    assert not getattr(b, name).flags.writeable
        else:
            assert getattr(one, field.name) == getattr(other, field.name), field.name


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{cache.SUFFIX}"))


@pytest.mark.parametrize("in_memory", [0, 1 << 20])
@pytest.mark.parametrize("overlong", ["refuse", "cut_prompt", "cut_end"])
def test_what_is_kept_is_what_was_encoded(
    tmp_path: Path,
    rows: str,
    chatml: Tokenizer,
    encoded: list[int],
    monkeypatch: pytest.MonkeyPatch,
    overlong: str,
    in_memory: int,
) -> None:
    """Mapped as well as read."""
    monkeypatch.setattr(cache, "_IN_MEMORY", in_memory)
    other = write(tmp_path / "other.jsonl", [{"question": "new?", "answer": "y"}, {"question": "n", "answer": ""}])
    for section in ({}, {"eval": other, "system": "Add."}):
        anew = data(chatml, rows, None, overlong=overlong, **section)
        first = data(chatml, rows, tmp_path / "kept", overlong=overlong, **section)
        encoded.clear()
        again = data(chatml, rows, tmp_path / "kept", overlong=overlong, **section)
        assert encoded == []
        equal(anew, first)
        equal(anew, again)
    assert len(anew.refused) > 0
    # Two of the first file, with and without the system prompt, and one of the other; held out or not is no matter.
    assert len(kept(tmp_path / "kept")) == 3


def test_a_data_set_of_refusals_and_one_of_none(tmp_path: Path, rows: str, chatml: Tokenizer) -> None:
    for section in ({"max_tokens": 30, "rows": 3}, {"max_tokens": None}):
        try:
            first = data(chatml, rows, tmp_path, **section)
        except examples.DataError as error:
            with pytest.raises(examples.DataError) as caught:
                data(chatml, rows, tmp_path, **section)
            assert caught.value.found == error.found
        else:
            equal(first, data(chatml, rows, tmp_path, **section))
    assert len(kept(tmp_path)) == 2


def test_the_same_file_elsewhere_is_not_encoded_again(
    tmp_path: Path, rows: str, chatml: Tokenizer, encoded: list[int]
) -> None:
    """Places are those of the files that are read, not of those that were."""
    data(chatml, rows, tmp_path / "kept")
    moved = tmp_path / "moved" / "rows.jsonl"
    moved.parent.mkdir()
    moved.write_bytes(Path(rows).read_bytes())
    encoded.clear()
    dataset = data(chatml, str(moved), tmp_path / "kept")
    assert encoded == []
    equal(data(chatml, str(moved), None), dataset)
    assert dataset.refused[-1].place == Place(str(moved), line=11)
    assert dataset.learned[0].place.file == str(moved)


def test_a_change_that_keeps_size_and_times_is_seen(
    tmp_path: Path, rows: str, chatml: Tokenizer, encoded: list[int]
) -> None:
    file = Path(rows)
    before = data(chatml, rows, tmp_path / "kept")
    status = file.stat()
    file.write_bytes(file.read_bytes().replace(b"What is 3", b"What is 4"))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    after = data(chatml, rows, tmp_path / "kept")
    assert len(encoded) == 2
    assert after.fingerprint != before.fingerprint
    equal(data(chatml, rows, None), after)


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    tmp_path: Path, rows: str, chatml: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = mixture.read_records

    def changing(path: str) -> Any:
        for number, record in enumerate(read(path)):
            yield record
            if number == 5:
                with Path(rows).open("a") as file:
                    file.write('{"question": "late?", "answer": "yes"}\n')

    monkeypatch.setattr(mixture, "read_records", changing)
    data(chatml, rows, tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == []


def changed_tokenizers(folder: Path) -> Iterable[Tokenizer]:
    """Another template, another name of one, other named tokens, other stop tokens, another vocabulary."""
    yield Tokenizer.from_folder(write_folder(folder / "a", "chatml", template=CHATML.replace("kind", "good")))
    yield Tokenizer.from_folder(write_folder(folder / "b", "chatml"))
    yield Tokenizer.from_folder(write_folder(folder / "b", "chatml", mask_token="<mask>"))
    (folder / "b" / "config.json").write_text('{"eos_token_id": 0}')
    yield Tokenizer.from_folder(write_folder(folder / "b", "chatml"))
    file = folder / "b" / "tokenizer.json"
    written = json.loads(file.read_text("utf-8"))
    written["model"]["merges"] = written["model"]["merges"][:-1]
    file.write_text(json.dumps(written), "utf-8")
    yield Tokenizer.from_folder(folder / "b")


def test_whatever_decides_the_tokens_decides_the_key(
    tmp_path: Path, chatml: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = DataSection(train="t", eval=0.1).model_dump()

    def key(
        tokenizer: Tokenizer = chatml,
        longest: int | None = 9,
        seed: int | None = None,
        content: bytes = b"c",
        **fields: Any,
    ):
        return key_of({**section, **fields}, tokenizer, longest, seed, content)

    plain = key()
    keys = [plain, key(longest=10), key(longest=None), key(content=b"d")]
    keys += [key(**{name: "another"}) for name in sorted(set(section) - {"train", "eval", "max_tokens"})]
    keys += [key(a_field_to_come=1), key(rows=5), key(seed=0), key(seed=1), key(system="\ud800")]
    keys += [key(tokenizer) for tokenizer in changed_tokenizers(tmp_path)]
    for value in ("tokenizers.__version__", "jinja2.__version__", "np.__version__", "sys.version"):
        with monkeypatch.context() as patched:
            patched.setattr(f"strop.data.cache.{value}", "another")
            keys.append(key())
    with monkeypatch.context() as patched:
        patched.setattr(cache, "_code", lambda: b"another")
        keys.append(key())
    assert None not in keys
    assert len(set(keys)) == len(keys)
    # Where the files lie and what is held out decide no tokens; the limit counts as the longest sample.
    assert key(train="elsewhere", eval=5) == plain
    assert key(max_tokens=512, longest=9) == plain


def test_looking_at_data_and_training_on_it_share_what_was_encoded(tmp_path: Path, chatml: Tokenizer) -> None:
    """A run writes the model's context into its recipe, as the limit; who only looks leaves the limit out."""
    file = tmp_path / "a.jsonl"
    file.write_text('{"question": "What is it?", "answer": "It is this."}\n' * 8000, "utf-8")
    one = prepare(DataSection(train=str(file)), chatml, seed=0, context_tokens=512, cache=tmp_path / "kept")
    other = prepare(DataSection(train=str(file), max_tokens=512), chatml, seed=0, cache=tmp_path / "kept")
    assert one.fingerprint == other.fingerprint
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_content_is_bytes_names_below_the_source_and_amounts(tmp_path: Path) -> None:
    contents = []
    for folder, files in (
        ("a", {"x.json": "1", "y.json": "2"}),
        ("b", {"x.json": "1", "y.json": "2"}),
        ("c", {"x.json": "1", "z.json": "2"}),
        ("d", {"x.json": "1", "y.json": "3"}),
        ("e", {"x.json": "1", "sub/y.json": "2"}),
    ):
        for name, text in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        contents.append(Reading(str(tmp_path / folder), None, 0).content())
    assert contents[0] == contents[1]
    assert len(set(contents)) == 4
    folder = str(tmp_path / "a")
    amounts = [Reading(train, None, 0) for train in (folder + "*2", folder + "*0.5", folder + "#1", (folder, folder))]
    assert len({contents[0], *(reading.content() for reading in amounts)}) == 5
    assert [reading.is_chosen_from for reading in amounts] == [False, True, True, False]
    assert Reading(folder, 1, 0).is_chosen_from
    as_it_stands = Reading(Source(folder), None, 0)
    (tmp_path / "a" / "y.json").unlink()
    assert as_it_stands.content() is None


def test_a_tokenizer_that_is_read_again_is_the_same(
    tmp_path: Path, rows: str, folder_of: Callable[[str], Path], encoded: list[int]
) -> None:
    for _ in range(3):
        data(Tokenizer.from_folder(folder_of("chatml")), rows, tmp_path)
    assert len(encoded) == 1


def test_little_data_is_not_kept(tmp_path: Path, rows: str, chatml: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    size = Path(rows).stat().st_size
    for least, is_kept in ((size + 1, False), (size, True)):
        monkeypatch.setattr(examples, "LEAST_BYTES", least)
        data(chatml, rows, tmp_path / "kept")
        assert (tmp_path / "kept").exists() == is_kept


def test_without_its_source_nothing_is_kept(
    tmp_path: Path, rows: str, chatml: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "nowhere" / "cache.py"))
    data(chatml, rows, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:40],
        lambda content: content[:-1],
        lambda content: content + b" ",
        lambda content: content[:40] + bytes([content[40] ^ 1]) + content[41:],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: bytes(len(content)),
    ],
)
def test_a_damaged_file_is_encoded_and_written_anew(
    tmp_path: Path, rows: str, chatml: Tokenizer, encoded: list[int], damage: Callable[[bytes], bytes]
) -> None:
    anew = data(chatml, rows, tmp_path)
    (file,) = kept(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    equal(anew, data(chatml, rows, tmp_path))
    assert len(encoded) == 2
    assert file.read_bytes() == whole


def test_a_file_under_the_name_of_another_counts_as_none(
    tmp_path: Path, rows: str, chatml: Tokenizer, encoded: list[int]
) -> None:
    data(chatml, rows, tmp_path)
    (file,) = kept(tmp_path)
    anew = data(chatml, rows, None, system="Add.")
    data(chatml, rows, tmp_path, system="Add.")
    (other,) = set(kept(tmp_path)) - {file}
    other.write_bytes(file.read_bytes())
    equal(anew, data(chatml, rows, tmp_path, system="Add."))
    assert len(encoded) == 4


def test_a_folder_that_cannot_be_made_or_written_is_no_error(
    tmp_path: Path, rows: str, chatml: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    anew = data(chatml, rows, None)
    (tmp_path / "file").write_text("in the way")
    equal(anew, data(chatml, rows, tmp_path / "file" / "kept"))
    equal(anew, data(chatml, rows, tmp_path / "file"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for function in ("tempfile.mkstemp", "os.utime", "os.fsync", "Path.replace", "Path.unlink", "Path.iterdir"):
        with monkeypatch.context() as patched:
            patched.setattr(f"strop.data.cache.{function}", full)
            for _ in range(2):
                equal(anew, data(chatml, rows, tmp_path / function))


def test_a_write_that_fails_leaves_nothing(
    tmp_path: Path, rows: str, chatml: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("strop.data.cache.Path.replace", full)
    data(chatml, rows, tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == []


@pytest.mark.parametrize("room", [0, 1, 300, 1000])
def test_a_folder_that_fills_up_costs_the_keeping_and_nothing_else(
    tmp_path: Path, rows: str, chatml: Tokenizer, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    anew = data(chatml, rows, None)
    monkeypatch.setattr(encoding, "RECORDS", 2)
    monkeypatch.setattr(examples.batches, "__defaults__", (2,))
    real = os.fdopen

    class Full:
        """A file on a disk with so much room: it takes a part of what is written, then nothing."""

        def __init__(self, file: Any) -> None:
            self._file, self._left = file, room

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def write(self, content: bytes) -> int:
            if not self._left:
                raise OSError(28, "No space left on device")
            taken = self._file.write(content[: self._left])
            self._left -= taken
            return int(taken)

    monkeypatch.setattr("strop.data.cache.os.fdopen", lambda *given, **named: Full(real(*given, **named)))
    equal(anew, data(chatml, rows, tmp_path / "kept"))
    assert list((tmp_path / "kept").iterdir()) == []


def test_only_so_many_files_and_bytes_are_kept(
    tmp_path: Path, rows: str, chatml: Tokenizer, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not used for longest goes first; other files are nobody's business."""
    monkeypatch.setattr(cache, "MOST_FILES", 3)
    (tmp_path / "notes.txt").write_text("mine")

    def use(name: str) -> Path:
        before = set(kept(tmp_path))
        data(chatml, rows, tmp_path, system=name)
        now = time.time()
        for file in kept(tmp_path):  # a second passes
            os.utime(file, (now - 9, file.stat().st_mtime - 1))
        return next(iter(set(kept(tmp_path)) - before), Path())

    one, two, three = (use(name) for name in "123")
    use("1")
    four = use("4")
    assert set(kept(tmp_path)) == {one, three, four}
    assert two not in kept(tmp_path)
    encoded.clear()
    use("1")
    assert encoded == []
    monkeypatch.setattr(cache, "MOST_BYTES", 2 * four.stat().st_size + 50)
    five = use("5")
    assert set(kept(tmp_path)) == {one, five}
    monkeypatch.setattr(cache, "MOST_BYTES", 10)
    use("6")
    assert set(kept(tmp_path)) == {one, five}
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_a_killed_writer_left_is_swept(tmp_path: Path, rows: str, chatml: Tokenizer) -> None:
    old, young = tmp_path / ".abc-1.part", tmp_path / ".abc-2.part"
    for file in (old, young):
        file.write_bytes(b"half")
    os.utime(old, (0, time.time() - 2 * 24 * 60 * 60))
    data(chatml, rows, tmp_path)
    assert (old.exists(), young.exists()) == (False, True)


def test_progress_counts_what_is_kept(tmp_path: Path, rows: str, chatml: Tokenizer) -> None:
    section = DataSection(train=rows, eval=2, max_tokens=120)
    for _ in range(2):
        seen: list[tuple[int, int]] = []
        prepare(section, chatml, seed=0, cache=tmp_path, progress=lambda *report, seen=seen: seen.append(report))
        assert [done for done, _ in seen] == [12, 12]
        assert seen[0][1] > 12
        assert seen[-1] == (12, 12)


def test_lengths(rows: str, chatml: Tokenizer) -> None:
    dataset = data(chatml, rows, None)
    assert dataset.lengths_S.tolist() == [len(one.tokens) for one in dataset.learned]
    assert dataset.lengths_S.dtype == np.int64
