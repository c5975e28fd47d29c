"""Small data files in all shapes, right and wrong, each with the reading that is expected of it beside it.

    corpus/alpaca.jsonl           a file as a user may have it
    corpus/alpaca.expected.json   what has to come out: conversations, refusals, shapes; or the error
    corpus/rows.parquet.from      what a binary file is made of: rows, or the text to compress

``python tests/data/test_corpus.py NAME …`` writes a first expectation, to be read and put right by hand.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from strop.data.conversations import RowReader
from strop.data.records import Conversation, Message, Place
from strop.data.sources import read_records
from strop.errors import StropError

CORPUS = Path(__file__).parent / "corpus"
NAMES = sorted(path.name for path in CORPUS.iterdir() if not path.name.endswith((".expected.json", ".gitattributes")))


def made(name: str, folder: Path) -> Path:
    """The data under its own name in a folder; what is made of a text is made."""
    source, target = CORPUS / name, folder / name.removesuffix(".from")
    if source.is_dir():
        shutil.copytree(source, target)
    elif not name.endswith(".from"):
        if target.suffix == ".parquet":
            pytest.importorskip("pyarrow")
        shutil.copyfile(source, target)
    elif target.suffix == ".gz":
        packed = gzip.compress(source.read_bytes(), mtime=0)
        target.write_bytes(packed[:-8] if "cut" in name else packed)
    elif target.suffix == ".zst":
        packed = pytest.importorskip("zstandard").ZstdCompressor().compress(source.read_bytes())
        target.write_bytes(packed[: len(packed) // 2] if "cut" in name else packed)
    else:
        write_table(json.loads(source.read_text(encoding="utf-8")), target)
    return target


def write_table(rows: list[dict[str, Any]], target: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    table = arrow.Table.from_pylist(rows)
    if target.suffix == ".parquet":
        from pyarrow import parquet

        parquet.write_table(table, target, row_group_size=2)
    elif target.suffix == ".feather":
        from pyarrow import feather

        feather.write_feather(table, target)
    else:
        writer = arrow.ipc.new_stream if "stream" in target.name else arrow.ipc.new_file
        with arrow.OSFile(str(target), "wb") as file, writer(file, table.schema) as out:
            out.write_table(table)


def place_of(place: Place, target: Path) -> str:
    """A place without what differs from machine to machine."""
    return str(place).replace(str(target), "@").replace("\\", "/")


def turn_of(message: Message) -> list[Any]:
    """A turn as [role, content], with what else it has in a third part."""
    more: dict[str, Any] = {
        "weight": message.weight,
        "spans": [[span.start, span.end, span.weight] for span in message.spans] or None,
        "thinking": message.thinking,
        "calls": [[call.name, call.arguments, call.id] for call in message.calls] or None,
        "call_id": message.call_id,
        "name": message.name,
    }
    more = {key: value for key, value in more.items() if value is not None}
    return [message.role, message.content, *([more] if more else [])]


def conversation_of(conversation: Conversation, target: Path) -> dict[str, Any]:
    said = {"text": conversation.text} if conversation.text is not None else {}
    turns = {"turns": [turn_of(message) for message in conversation.messages]} if conversation.text is None else {}
    tools = {"tools": [json.loads(tool) for tool in conversation.tools]} if conversation.tools else {}
    return {"place": place_of(conversation.place, target), **turns, **said, **tools}


def reading_of(target: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What Strop reads out of a file or folder."""
    try:
        reader = RowReader(settings.get("map"), settings.get("system"))
        readings = [reader.read(record) for record in read_records(target)]
        reader.check()
    except StropError as error:
        return {
            "error": {
                part: text.replace(str(target), "@").replace("\\", "/") if part != "found" else text
                for part, text in (("what", error.what), ("found", error.found), ("do", error.do))
            }
        }
    result: dict[str, Any] = {"conversations": [], "refusals": []}
    for reading in readings:
        if isinstance(reading, Conversation):
            result["conversations"].append(conversation_of(reading, target))
        else:
            result["refusals"].append(
                {
                    "place": place_of(reading.place, target),
                    "reason": reading.reason,
                    "found": reading.found,
                    "cure": reading.cure,
                }
            )
    counts = {"shapes": reader.shapes, "ambiguous": reader.tally.ambiguous, "unread": reader.tally.unread}
    return {**result, **{name: dict(count) for name, count in counts.items() if count}}


def expected_file(name: str) -> Path:
    return CORPUS / f"{name.removesuffix('.from').split('.', maxsplit=1)[0]}.expected.json"


def test_the_corpus_is_large_and_every_expectation_has_its_file() -> None:
    assert len(NAMES) >= 60
    expectations = {path.name for path in CORPUS.glob("*.expected.json")}
    assert expectations == {expected_file(name).name for name in NAMES}
    assert len(expectations) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_read_as_expected(name: str, tmp_path: Path) -> None:
    expected = json.loads(expected_file(name).read_text(encoding="utf-8"))
    settings = expected.pop("settings", {})
    reading = reading_of(made(name, tmp_path), settings)
    if "error" in expected and "error" in reading and "found" not in expected["error"]:
        del reading["error"]["found"]  # a library's own words
    assert reading == expected


if __name__ == "__main__":
    import tempfile

    for given in sys.argv[1:]:
        file = expected_file(given)
        kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        chosen = {"settings": kept["settings"]} if "settings" in kept else {}
        with tempfile.TemporaryDirectory() as scratch:
            reading = reading_of(made(given, Path(scratch)), chosen.get("settings", {}))
        text = json.dumps({**chosen, **reading}, ensure_ascii=True, indent=1)
        file.write_text(text + "\n", encoding="utf-8", newline="\n")
