"""A checkpoint is whole or not there: every byte is held, an older one goes only after a newer one verified."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from strop.errors import InputError, SaveError
from strop.run import disk
from strop.run.checkpoint import SCHEMA, Checkpoint, _signed, newest_checkpoint, verify, write_checkpoint
from strop.run.disk import File
from strop.run.log import Mark

FILES = {"weights.bin": bytes(range(256)) * 9, "moments.bin": b"\0" * 100, "empty.bin": b""}


def files(contents: Mapping[str, bytes] = FILES) -> dict[str, File]:
    return {name: File(len(content), [content]) for name, content in contents.items()}


def write(folder: Path, step: int, contents: Mapping[str, bytes] = FILES) -> Checkpoint:
    return write_checkpoint(folder, step, files(contents), {"model": {"sha256": "0f"}}, {"events.jsonl": Mark(3, "a1")})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_there_and_verifies(tmp_path: Path):
    folder = tmp_path / "deep" / "checkpoints"
    written = write(folder, 100)
    assert written == Checkpoint(
        folder / "step-000100", 100, {"model": {"sha256": "0f"}}, {"events.jsonl": Mark(3, "a1")}
    )
    assert names(folder) == ["step-000100"]
    assert names(written.path) == sorted([*FILES, "manifest.json"])
    assert {name: (written.path / name).read_bytes() for name in FILES} == FILES
    assert verify(written.path) == written
    assert newest_checkpoint(folder) == (written, [])


def test_without_checkpoints_there_is_none(tmp_path: Path):
    assert newest_checkpoint(tmp_path / "nowhere") == (None, [])
    (tmp_path / "step-now").mkdir()
    (tmp_path / ".staging-step-000003-1f2e3d4c").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert newest_checkpoint(tmp_path) == (None, [])


def test_two_are_kept(tmp_path: Path):
    for step in (2, 4, 6, 7):
        write(tmp_path, step)
    assert names(tmp_path) == ["step-000006", "step-000007"]


def test_steps_are_ordered_as_numbers(tmp_path: Path):
    for step in (999_998, 999_999, 1_000_000, 1_000_001):
        assert write(tmp_path, step).step == step
        newest, _ = newest_checkpoint(tmp_path)
        assert newest is not None
        assert newest.step == step
    assert names(tmp_path) == ["step-1000000", "step-1000001"]


def test_the_same_step_is_replaced(tmp_path: Path):
    write(tmp_path, 3)
    write(tmp_path, 3, {"new.bin": b"new"})
    assert names(tmp_path / "step-000003") == ["manifest.json", "new.bin"]


# ── damage ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_flipped_bit_is_found_or_changes_nothing(tmp_path: Path):
    """Of the manifest each byte, of the files some; what still verifies is the checkpoint that was written."""
    written = write(tmp_path, 100)
    found = 0
    for name in (*FILES, "manifest.json"):
        path = written.path / name
        content = path.read_bytes()
        for place in range(0, len(content), 1 if name == "manifest.json" else 97):
            for bit in (1, 2, 64):
                path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
                try:
                    assert verify(written.path) == written
                    assert name == "manifest.json"
                except InputError:
                    found += 1
        path.write_bytes(content)
    assert verify(written.path) == written
    assert found > 2000


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("damage", [cut, lengthen, Path.unlink])
@pytest.mark.parametrize("name", ["weights.bin", "manifest.json"])
def test_damage_is_named(damage: Callable[[Path], None], name: str, tmp_path: Path):
    written = write(tmp_path, 100)
    damage(written.path / name)
    if (name, damage) == ("manifest.json", cut):  # its last byte is a line break
        assert verify(written.path) == written
        return
    with pytest.raises(InputError) as caught:
        verify(written.path)
    assert caught.value.what == f"checkpoint {written.path} is damaged"
    assert (name in caught.value.found) == (name == "weights.bin" or damage is Path.unlink)


WHOLE = {"schema": SCHEMA, "step": 100, "identity": {}, "logs": {}, "files": {}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "[" * 100_000,
        '{"schema": 1}',
        *(
            json.dumps(_signed({**WHOLE, **change}))
            for change in (
                {"schema": SCHEMA + 1},
                {"schema": True},
                {"step": 99},
                {"step": "100"},
                {"step": 100.0},
                {"step": None},
                {"logs": {"events.jsonl": {}}},
                {"logs": []},
                {"identity": 3},
                {"files": []},
                {"files": {"weights.bin": None}},
                {"files": {"../step-000100/weights.bin": {"bytes": 2304, "sha256": ""}}},
                {"files": {"sub": {"bytes": 4096, "sha256": ""}}},
                {"files": {"": {"bytes": 4096, "sha256": ""}}},
                {"files": {"weights.bin\0": {"bytes": 2304, "sha256": ""}}},
                {"files": {"weights.bin": {"bytes": 2304, "sha256": "00"}}},
            )
        ),
        json.dumps({**WHOLE, "sha256": "00"}),
        json.dumps(WHOLE),
        json.dumps(_signed(WHOLE)) + " " * (1 << 20),
    ],
)
def test_a_strange_manifest_is_damage(text: str, tmp_path: Path):
    written = write(tmp_path, 100)
    (written.path / "sub").mkdir()
    (written.path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="is damaged"):
        verify(written.path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither pipes nor links for everybody")
@pytest.mark.parametrize("name", ["weights.bin", "manifest.json"])
def test_what_has_no_end_is_not_read(name: str, tmp_path: Path):
    written = write(tmp_path, 100)
    path = written.path / name
    content = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match="is damaged"):
        verify(written.path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(InputError, match="is damaged"):
        verify(written.path)
    path.unlink()
    path.write_bytes(content)
    assert verify(written.path) == written


def test_a_renamed_checkpoint_is_not_one_of_another_step(tmp_path: Path):
    write(tmp_path, 100).path.rename(tmp_path / "step-000200")
    checkpoint, skipped = newest_checkpoint(tmp_path)
    assert checkpoint is None
    assert "manifest.json is that of step 100" in skipped[0]


def test_the_newest_whole_one_is_taken_and_the_others_are_named(tmp_path: Path):
    older = write(tmp_path, 2)
    newer = write(tmp_path, 4)
    (newer.path / "moments.bin").write_bytes(b"\1" * 100)
    checkpoint, skipped = newest_checkpoint(tmp_path)
    assert checkpoint == older
    assert len(skipped) == 1
    assert "step-000004 is damaged" in skipped[0]
    assert "moments.bin is not what was written" in skipped[0]


def test_damaged_ones_do_not_push_out_a_whole_one(tmp_path: Path):
    for step in (4, 6):
        (write(tmp_path, step).path / "weights.bin").unlink()
    assert newest_checkpoint(tmp_path)[0] is None
    write(tmp_path, 2)
    assert names(tmp_path) == ["step-000002"]
    write(tmp_path, 4)
    assert names(tmp_path) == ["step-000002", "step-000004"]


def test_what_is_damaged_stays_until_two_are_whole(tmp_path: Path):
    """What cannot be read today may be readable tomorrow."""
    for step in (2, 4):
        (write(tmp_path, step).path / "weights.bin").unlink()
    write(tmp_path, 6)
    assert names(tmp_path) == ["step-000002", "step-000004", "step-000006"]
    write(tmp_path, 8)
    assert names(tmp_path) == ["step-000006", "step-000008"]


# ── a disk that fails ────────────────────────────────────────────────────────────────────────────────────────────────


def test_room_is_looked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    older = write(tmp_path / "checkpoints", 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=60_000))
    with pytest.raises(SaveError) as caught:
        write(tmp_path / "checkpoints", 4)
    error = caught.value
    need = sum(map(len, FILES.values())) + (1 << 16)
    assert error.what == "the checkpoint of step 4 could not be saved"
    assert error.expected == f"room for {need:,} bytes in {tmp_path / 'checkpoints'}"
    assert error.found == "No space left on device; 60,000 bytes free"
    assert error.do.endswith(f"strop resume {tmp_path}")
    assert (error.path, error.need_bytes) == (str(tmp_path / "checkpoints" / "step-000004"), need)
    assert (error.free_bytes, error.exit_code) == (60_000, 5)
    assert names(tmp_path / "checkpoints") == ["step-000002"]
    assert newest_checkpoint(tmp_path / "checkpoints") == (older, [])


def test_what_could_not_be_written_gives_its_room_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    older = write(tmp_path, 2)

    def fail(_handle: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(disk, "sync_handle", fail)
    with pytest.raises(SaveError, match="could not be saved"):
        write(tmp_path, 4)
    assert names(tmp_path) == ["step-000002"]
    assert newest_checkpoint(tmp_path) == (older, [])


def test_the_manifest_comes_last_and_the_name_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever looks at any moment sees no checkpoint, or a whole one; and all is on the disk before it has its name."""
    synced: list[str] = []
    seen: list[list[str]] = []
    sync, rename = disk.sync_handle, disk.rename

    def watch(handle: int) -> None:
        synced.append("sync")
        seen.append([path.name for path in tmp_path.glob("step-*")])
        sync(handle)

    def rename_last(path: Path, target: Path) -> None:
        assert len(synced) >= len(FILES) + 2
        assert json.loads((path / "manifest.json").read_text())["files"].keys() == FILES.keys()
        rename(path, target)

    monkeypatch.setattr(disk, "sync_handle", watch)
    monkeypatch.setattr(disk, "rename", rename_last)
    write(tmp_path, 1)
    assert not any(seen[: len(FILES) + 2])


def test_a_new_one_that_does_not_verify_costs_no_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for step in (2, 4):
        write(tmp_path, step)
    rename = disk.rename

    def lose(path: Path, target: Path) -> None:
        (path / "weights.bin").write_bytes(b"lost")  # a disk that did not keep what it was given
        rename(path, target)

    monkeypatch.setattr(disk, "rename", lose)
    with pytest.raises(SaveError, match="could not be saved") as caught:
        write(tmp_path, 6)
    assert "weights.bin is not what was written" in caught.value.found
    checkpoint, skipped = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert (checkpoint.step, skipped) == (4, [])
    assert (tmp_path / "step-000002").is_dir()
