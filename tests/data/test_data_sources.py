"""Files and folders to records: every row with its line, every fault with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from strop.data.sources import read_records
from strop.errors import DataError


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def fault(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        list(read_records(path))
    assert caught.value.do
    return caught.value


def test_jsonl_is_read_line_by_line(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"q": 1}\r\n\n  \n{"q": "é\u2028x"}')
    records = list(read_records(file))
    assert [record.values for record in records] == [{"q": 1}, {"q": "é\u2028x"}]
    assert [str(record.place) for record in records] == [f"{file}:1", f"{file}:4"]


def test_all_broken_lines_are_named_at_once(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"q": 1}\n{"q": }\n{"q": 2}\n[3]\nno\n')
    error = fault(file)
    assert error.what == f"{file}:2, column 7: broken JSON"
    assert error.found.endswith("3 such lines in all: 2, 4, 5")
    many = fault(write(tmp_path / "b.jsonl", '{"q": 1}\n' + "no\n" * 40)).found
    assert many.endswith("40 such lines in all: " + ", ".join(map(str, range(2, 22))) + ", …")
    assert "such lines" not in fault(write(tmp_path / "c.jsonl", "no\n" * 3)).found


def test_json_is_an_array_or_one_object(tmp_path: Path) -> None:
    array = write(tmp_path / "a.json", '[{"q": 1},\n {"q": 2}]')
    assert [(record.values["q"], str(record.place)) for record in read_records(array)] == [
        (1, f"{array}, item 1"),
        (2, f"{array}, item 2"),
    ]
    one = write(tmp_path / "b.json", '{"q": 3}')
    assert [(record.values["q"], str(record.place)) for record in read_records(str(one))] == [(3, str(one))]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path, name: str) -> None:
    assert next(read_records(write(tmp_path / name, b'\xef\xbb\xbf{"q": 1}'))).values == {"q": 1}


def test_a_math_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    for subject, number in [("geometry", 1), ("algebra", 10), ("algebra", 2), ("algebra", 1)]:
        row = {"problem": f"{subject} {number}", "level": "Level 1", "type": subject, "solution": "s"}
        write(tmp_path / "train" / subject / f"{number}.json", json.dumps(row))
    write(tmp_path / "README.txt", "not data")
    write(tmp_path / ".cache" / "9.json", "not JSON")
    problems = [record.values["problem"] for record in read_records(tmp_path)]
    assert problems == ["algebra 1", "algebra 2", "algebra 10", "geometry 1"]


def test_a_folder_may_mix_json_and_jsonl(tmp_path: Path) -> None:
    write(tmp_path / "b.JSONL", '{"q": 2}\n{"q": 3}\n')
    write(tmp_path / "a.json", '[{"q": 1}]')
    assert [record.values["q"] for record in read_records(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"q": 1}\n{"q": }\n', ["a.jsonl:2, column 7", "broken JSON"]),
        ("a.jsonl", '{"q": 1}\n{"q": "x\n', ["a.jsonl:2, column 7"]),
        ("a.jsonl", "[\n{}\n]", ["a.jsonl:1", "rename the file to .json "]),
        ("a.json", '[{"q": 1},\n {"q": 2,}]', ["a.json:2, column"]),
        ("a.json", '{"q": 1}\n{"q": 2}\n', ["a.json:2, column 1", "rename the file to .jsonl"]),
        ("a.json", '{"q": NaN}', ["a.json:1", "NaN"]),
        ("a.jsonl", '{"q": 1}\n{"q": -Infinity}', ["a.jsonl:2", "Infinity"]),
        ("a.json", "[" * 100_000, ["a.json"]),
        ("a.jsonl", '{"q": 1}\n[1, 2]\n', ["a.jsonl:2 is not a row", "a list"]),
        ("a.json", '[{"q": 1}, "text"]', ["a.json, item 2 is not a row", "a text"]),
        ("a.json", "null", ["a.json is not a row", "null"]),
        ("a.jsonl", b'{"q": 1}\n{"q": "\xff"}', ["a.jsonl:2 is not UTF-8", "0xff"]),
        ("a.json", b'[\n{"q":\n"\xe9"}]', ["a.json:3 is not UTF-8", "0xe9"]),
        ("a.json", '{"q": 1}'.encode("utf-16"), ["a.json:1 is not UTF-8"]),
        ("a.json", "", ["a.json is empty"]),
        ("a.json", " \n", ["a.json is empty"]),
        ("a.json", "[]", ["holds no rows"]),
        ("a.jsonl", "", ["holds no rows"]),
        ("a.jsonl", "\n\n", ["holds no rows"]),
        ("a.csv", "q,a\n", ["a.csv holds no rows"]),
        ("a.xlsx", "PK", ["a .xlsx file", "a .json, .jsonl, .csv"]),
        ("data", "{}", ["without an ending"]),
    ],
)
def test_a_file_that_cannot_be_read_says_where_and_why(
    tmp_path: Path, name: str, content: str | bytes, words: list[str]
) -> None:
    message = str(fault(write(tmp_path / name, content)))
    for word in words:
        assert word in message


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    assert "does not exist" in str(fault(tmp_path / "none.jsonl"))
    assert "an empty folder" in str(fault(tmp_path))
    write(tmp_path / "table.xlsx", "")
    assert "only .xlsx" in str(fault(tmp_path))


def test_rows_before_a_broken_line_are_not_swallowed(tmp_path: Path) -> None:
    records = read_records(write(tmp_path / "a.jsonl", '{"q": 1}\n{broken\n'))
    assert next(records).values == {"q": 1}
    with pytest.raises(DataError):
        next(records)


def test_a_folder_of_several_splits_is_refused(tmp_path):
    """Learning a MATH folder whole would be learning its test split too."""
    for split in ("train", "test"):
        (tmp_path / split / "algebra").mkdir(parents=True)
        (tmp_path / split / "algebra" / "1.json").write_text('{"problem": "a", "solution": "b"}')
    with pytest.raises(DataError, match="several splits") as caught:
        list(read_records(tmp_path))
    assert caught.value.found == "train/, test/"
    assert str(tmp_path / "train") in caught.value.do
    assert f"--data.eval {tmp_path / 'test'}" in caught.value.do
    assert len(list(read_records(tmp_path / "train"))) == 1
