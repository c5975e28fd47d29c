"""Files that would cost memory or hide rows are read lazily and within limits; globs, splits, the tutorial's step."""

from __future__ import annotations

import gzip
import json
import os
import sys
from itertools import islice
from pathlib import Path

import pytest

from strop.data import sources_stream
from strop.data.conversations import RowReader
from strop.data.sources import read_records
from strop.data.sources_tables import read_cells
from strop.errors import DataError

ROW = '{"question": "a", "answer": "b"}\n'


def fault(path: Path | str) -> DataError:
    with pytest.raises(DataError) as caught:
        list(read_records(path))
    assert caught.value.do
    return caught.value


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst", "csv"])
def test_an_endless_line_is_refused_before_it_is_read_whole(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_stream, "MOST_LINE_BYTES", 1000)
    raw = (ROW if ending != "csv" else "question,answer\n").encode() + b"x" * 5000
    file = tmp_path / f"a.{ending}"
    if ending.endswith("gz"):
        raw = gzip.compress(raw)
    elif ending.endswith("zst"):
        raw = pytest.importorskip("zstandard").ZstdCompressor().compress(raw)
    file.write_bytes(raw)
    error = fault(file)
    assert error.what == f"{file}:2 is too long a line"


def test_a_zstandard_bomb_costs_little_memory(tmp_path: Path) -> None:
    """1 GiB of one line in 34 kB: refused beyond 64 MiB."""
    zstandard = pytest.importorskip("zstandard")
    import tracemalloc

    packer = zstandard.ZstdCompressor().compressobj()
    piece = bytes(1 << 20)
    packed = b"".join([*(packer.compress(piece) for _ in range(1024)), packer.flush()])
    assert len(packed) < 1 << 20
    (tmp_path / "a.jsonl.zst").write_bytes(packed)
    tracemalloc.start()
    try:
        assert "more than 150 times its size" in fault(tmp_path / "a.jsonl.zst").what
        assert tracemalloc.get_traced_memory()[1] < 400 << 20
    finally:
        tracemalloc.stop()


def test_a_compressed_file_that_is_read_whole_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_stream, "MOST_UNPACKED_BYTES", 1 << 10)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b"[" + b" " * 5000 + b"]"))
    assert ".jsonl" in fault(tmp_path / "a.json.gz").do


def test_several_zstandard_frames_are_one_file(tmp_path: Path) -> None:
    packer = pytest.importorskip("zstandard").ZstdCompressor()
    (tmp_path / "a.jsonl.zst").write_bytes(packer.compress(ROW.encode()) + packer.compress(ROW.encode()))
    assert [record.place.line for record in read_records(tmp_path / "a.jsonl.zst")] == [1, 2]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv"])
def test_rows_before_a_fault_come_out_first(tmp_path: Path, name: str) -> None:
    text = {"a.json": f"[{ROW}, {ROW}, oops", "a.jsonl": ROW * 2 + "oops", "a.csv": "question,answer\na,b\na,b\na\n"}
    (tmp_path / name).write_text(text[name], encoding="utf-8")
    records = read_records(tmp_path / name)
    assert [record.values for record in islice(records, 2)] == [{"question": "a", "answer": "b"}] * 2
    with pytest.raises(DataError):
        next(records)


def test_tables_are_read_in_batches(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = 5000
    table = arrow.table({"question": [f"q{n}" for n in range(rows)], "answer": list(range(rows))})
    parquet.write_table(table, tmp_path / "a.parquet")
    records = read_records(tmp_path / "a.parquet")
    first = next(records)
    assert (first.values, first.place.item) == ({"question": "q0", "answer": 0}, 1)
    last = list(records)[-1]
    assert (last.values["question"], last.place.item) == ("q4999", 5000)


def test_dates_decimals_and_bytes_of_a_table_become_texts(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    import datetime
    import decimal

    from pyarrow import parquet

    values = {"d": [datetime.date(2024, 5, 1)], "n": [decimal.Decimal("7.50")], "b": [b"\xff"], "x": [float("nan")]}
    parquet.write_table(arrow.table(values), tmp_path / "a.parquet")
    record = next(read_records(tmp_path / "a.parquet"))
    assert (record.values["d"], record.values["n"]) == ("2024-05-01", "7.50")
    assert json.dumps(record.values["b"]).startswith('"1 bytes')
    refusal = RowReader("d:x").read(record)
    assert getattr(refusal, "found", "") == "a number that is not finite"


@pytest.mark.parametrize(
    ("module", "ending"), [("pyarrow", "parquet"), ("pyarrow", "arrow"), ("zstandard", "jsonl.zst")]
)
def test_what_is_not_installed_is_named_with_the_cure(
    tmp_path: Path, module: str, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / f"a.{ending}").write_bytes(b"x")
    error = fault(tmp_path / f"a.{ending}")
    assert f"the package {module}" in error.expected
    assert "pip install 'strop[tables]'" in error.do


def test_a_cell_may_be_longer_than_the_library_allows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer\nq," + "x" * 200_000 + "\n", encoding="utf-8")
    assert len(next(read_cells(tmp_path / "a.csv", "a")).values["answer"]) == 200_000


def test_globs_name_files_and_folders_in_natural_order(tmp_path: Path) -> None:
    for name in ("part-10.jsonl", "part-9.jsonl", "other.jsonl", "sub/part-1.json", "part-2.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(ROW, encoding="utf-8")

    def names(pattern: str) -> list[str]:
        return [Path(record.place.file).relative_to(tmp_path).as_posix() for record in read_records(tmp_path / pattern)]

    assert names("part-*") == ["part-9.jsonl", "part-10.jsonl"]
    assert names("s*b") == ["sub/part-1.json"]
    assert names("**/part-?.json*") == ["part-9.jsonl", "sub/part-1.json"]
    assert "no match" in fault(tmp_path / "none-*.jsonl").found
    assert "of other kinds" in fault(tmp_path / "*.md").found


def test_files_of_several_splits_are_refused_with_what_to_write(tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(ROW, encoding="utf-8")
    error = fault(tmp_path)
    assert error.found == "train.jsonl, test.jsonl"
    assert error.do == f"learn {tmp_path / 'train.jsonl'} and hold out the other: --data.eval {tmp_path / 'test.jsonl'}"


def test_the_tutorial_s_step_is_one_argument(tmp_path: Path) -> None:
    """The tutorial walks MATH and writes one file of inputs and outputs; here the folder is enough."""
    for subject in ("algebra", "geometry"):
        for number in (1, 2, 11):
            file = tmp_path / "MATH" / "train" / subject / f"{number}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            fields = {"problem": f"{subject} {number}?", "level": "Level 5", "type": subject, "solution": f"${number}$"}
            file.write_text(json.dumps(fields), encoding="utf-8")
    walked = []
    for folder, _, files in os.walk(tmp_path / "MATH"):
        for name in files:
            values = json.loads((Path(folder) / name).read_text("utf-8"))
            walked.append({"input": values["problem"], "output": values["solution"]})
    reader, theirs = RowReader(), RowReader()
    ours = {reader.read(record).messages for record in read_records(tmp_path / "MATH")}
    (tmp_path / "math.json").write_text(json.dumps(walked, indent=4), encoding="utf-8")
    assert ours == {theirs.read(record).messages for record in read_records(tmp_path / "math.json")}
    assert reader.shapes == {"problem + solution": 6}
    assert theirs.shapes == {"input + output": 6}
