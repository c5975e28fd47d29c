"""A checkpoint is whole or not there: every byte is held, an older one goes only after a newer one verified."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from strop.errors import InputError
from strop.run.checkpoint import Checkpoint, newest_checkpoint, verify, write_checkpoint

FILES = {"weights.bin": bytes(range(256)) * 9, "moments.bin": b"\0" * 100, "empty.bin": b""}


def write_files(folder: Path) -> None:
    for name, content in FILES.items():
        (folder / name).write_bytes(content)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_there_and_verifies(tmp_path: Path):
    folder = tmp_path / "deep" / "checkpoints"
    written = write_checkpoint(folder, 100, write_files)
    assert written == Checkpoint(folder / "step-000100", 100)
    assert names(folder) == ["step-000100"]
    assert names(written.path) == sorted([*FILES, "manifest.json"])
    assert {name: (written.path / name).read_bytes() for name in FILES} == FILES
    assert verify(written.path) == written
    assert newest_checkpoint(folder) == (written, [])


def test_without_checkpoints_there_is_none(tmp_path: Path):
    assert newest_checkpoint(tmp_path / "nowhere") == (None, [])
    (tmp_path / "step-now").mkdir()
    (tmp_path / ".staging-000003-1").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert newest_checkpoint(tmp_path) == (None, [])


def test_two_are_kept(tmp_path: Path):
    for step in (2, 4, 6, 7):
        write_checkpoint(tmp_path, step, write_files)
    assert names(tmp_path) == ["step-000006", "step-000007"]


def test_steps_are_ordered_as_numbers(tmp_path: Path):
    for step in (999_998, 999_999, 1_000_000, 1_000_001):
        assert write_checkpoint(tmp_path, step, write_files).step == step
        newest, _ = newest_checkpoint(tmp_path)
        assert newest is not None
        assert newest.step == step
    assert names(tmp_path) == ["step-1000000", "step-1000001"]


def test_the_same_step_is_replaced(tmp_path: Path):
    write_checkpoint(tmp_path, 3, write_files)

    def write_other(folder: Path) -> None:
        (folder / "new.bin").write_bytes(b"new")

    write_checkpoint(tmp_path, 3, write_other)
    assert names(tmp_path / "step-000003") == ["manifest.json", "new.bin"]


# ── damage ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_flipped_bit_is_found_or_changes_nothing(tmp_path: Path):
    """Of the manifest each byte, of the files some; what still verifies is the checkpoint that was written."""
    written = write_checkpoint(tmp_path, 100, write_files)
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
    assert found > 1000


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("damage", [cut, lengthen, Path.unlink])
@pytest.mark.parametrize("name", ["weights.bin", "manifest.json"])
def test_damage_is_named(damage: Callable[[Path], None], name: str, tmp_path: Path):
    written = write_checkpoint(tmp_path, 100, write_files)
    damage(written.path / name)
    if (name, damage) == ("manifest.json", cut):  # its last byte is a line break
        assert verify(written.path) == written
        return
    with pytest.raises(InputError) as caught:
        verify(written.path)
    assert caught.value.what == f"checkpoint {written.path} is damaged"
    assert (name in caught.value.found) == (name == "weights.bin" or damage is Path.unlink)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '{"schema": 1}',
        '{"schema": 2, "step": 100, "files": {}}',
        '{"schema": 1, "step": 99, "files": {}}',
        '{"schema": 1, "step": "100", "files": {}}',
        '{"schema": 1, "step": null, "files": {}}',
        '{"schema": 1, "step": 100, "files": []}',
        '{"schema": 1, "step": 100, "files": {"weights.bin": null}}',
        '{"schema": 1, "step": 100, "files": {"../step-000100/weights.bin": {"sha256": ""}}}',
        '{"schema": 1, "step": 100, "files": {"sub": {"sha256": ""}}}',
    ],
)
def test_a_strange_manifest_is_damage(text: str, tmp_path: Path):
    written = write_checkpoint(tmp_path, 100, write_files)
    (written.path / "sub").mkdir()
    (written.path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="is damaged"):
        verify(written.path)


def test_a_renamed_checkpoint_is_not_one_of_another_step(tmp_path: Path):
    write_checkpoint(tmp_path, 100, write_files).path.rename(tmp_path / "step-000200")
    checkpoint, skipped = newest_checkpoint(tmp_path)
    assert checkpoint is None
    assert "manifest.json is that of step 100" in skipped[0]


def test_the_newest_whole_one_is_taken_and_the_others_are_named(tmp_path: Path):
    older = write_checkpoint(tmp_path, 2, write_files)
    newer = write_checkpoint(tmp_path, 4, write_files)
    (newer.path / "moments.bin").write_bytes(b"\1" * 100)
    checkpoint, skipped = newest_checkpoint(tmp_path)
    assert checkpoint == older
    assert len(skipped) == 1
    assert "step-000004 is damaged" in skipped[0]
    assert "moments.bin is not what was written" in skipped[0]


def test_damaged_ones_do_not_push_out_a_whole_one(tmp_path: Path):
    for step in (4, 6):
        (write_checkpoint(tmp_path, step, write_files).path / "weights.bin").unlink()
    assert newest_checkpoint(tmp_path)[0] is None
    write_checkpoint(tmp_path, 2, write_files)
    assert names(tmp_path) == ["step-000002"]
    write_checkpoint(tmp_path, 4, write_files)
    assert names(tmp_path) == ["step-000002", "step-000004"]


# ── a writer that fails ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_writer_that_raises_leaves_nothing_under_the_final_name(tmp_path: Path):
    older = write_checkpoint(tmp_path, 2, write_files)

    def fail(folder: Path) -> None:
        write_files(folder)
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_checkpoint(tmp_path, 4, fail)
    assert not (tmp_path / "step-000004").exists()
    assert newest_checkpoint(tmp_path) == (older, [])
    write_checkpoint(tmp_path, 6, write_files)
    assert names(tmp_path) == ["step-000002", "step-000006"], "what was left is swept"


def test_the_manifest_comes_last_and_the_name_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever looks at any moment sees no checkpoint, or a whole one; and all is on the disk before it has its name."""
    synced: list[str] = []
    seen: list[list[str]] = []
    fsync = os.fsync

    def watch(handle: int) -> None:
        synced.append("sync")
        seen.append([path.name for path in tmp_path.glob("step-*")])
        fsync(handle)

    rename = Path.rename

    def rename_last(path: Path, target: Path) -> Path:
        assert len(synced) >= len(FILES) + 1
        assert json.loads((path / "manifest.json").read_text())["files"].keys() == FILES.keys()
        return rename(path, target)

    monkeypatch.setattr("os.fsync", watch)
    monkeypatch.setattr(Path, "rename", rename_last)
    write_checkpoint(tmp_path, 1, write_files)
    assert not any(seen[: len(FILES) + 1])


def test_a_new_one_that_does_not_verify_costs_no_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for step in (2, 4):
        write_checkpoint(tmp_path, step, write_files)
    rename = Path.rename

    def lose(path: Path, target: Path) -> Path:
        (path / "weights.bin").write_bytes(b"lost")  # a disk that did not keep what it was given
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", lose)
    with pytest.raises(InputError, match="is damaged"):
        write_checkpoint(tmp_path, 6, write_files)
    assert newest_checkpoint(tmp_path)[0] == Checkpoint(tmp_path / "step-000004", 4)
    assert (tmp_path / "step-000002").is_dir()
