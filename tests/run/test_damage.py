"""A real checkpoint, damaged in every way: all of it is found, and the one before it is taken."""

import shutil
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from random import Random, SystemRandom

import pytest

from strop.run.checkpoint import Checkpoint, newest_checkpoint, verify
from strop.run.folder import RunFolder

BLOCK = 4096


@pytest.fixture(scope="module")
def folder(finished: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a run, to be damaged and mended."""
    return Path(shutil.copytree(finished.checkpoints, tmp_path_factory.mktemp("damage") / "checkpoints"))


@pytest.fixture
def two(folder: Path) -> tuple[Checkpoint, Checkpoint]:
    """Both, the newer one first; whole before a test and after it."""
    newer, older = (verify(path) for path in sorted(folder.iterdir(), reverse=True))
    return newer, older


def files(checkpoint: Checkpoint) -> list[Path]:
    found = sorted(checkpoint.path.iterdir())
    assert [path.name for path in found] == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
        "optimizer.safetensors",
    ]
    return found


def assert_found(folder: Path, older: Checkpoint, name: str = "") -> None:
    """The newer one is passed over, for a reason that is given, and the older one is taken."""
    taken, skipped = newest_checkpoint(folder)
    assert taken == older
    assert len(skipped) == 1
    assert name in skipped[0]


def flips(content: bytes, random: Random) -> Iterator[bytes]:
    """The content with one bit flipped, a random one in each block."""
    for start in range(0, len(content), BLOCK):
        place = start + random.randrange(min(BLOCK, len(content) - start))
        yield content[:place] + bytes([content[place] ^ 1 << random.randrange(8)]) + content[place + 1 :]


def test_a_bit_flipped_in_each_block_of_every_file(folder: Path, two: tuple[Checkpoint, Checkpoint]):
    seed = SystemRandom().randrange(10**9)
    print(f"seed {seed}")
    random, blocks = Random(seed), 0
    for path in files(two[0]):
        content = path.read_bytes()
        for damaged in flips(content, random):
            blocks += 1
            path.write_bytes(damaged)
            # In the manifest the flip of a bit may change a blank, and so no fact.
            if path.name != "manifest.json" or damaged.split() != content.split():
                assert_found(folder, two[1], path.name if path.name != "manifest.json" else "")
        path.write_bytes(content)
    assert blocks > 20
    assert newest_checkpoint(folder) == (two[0], [])


def test_cut_at_each_block_of_every_file(folder: Path, two: tuple[Checkpoint, Checkpoint]):
    for path in files(two[0]):
        content = path.read_bytes()
        for length in (*range(0, len(content) - 1, BLOCK), len(content) - 2):
            path.write_bytes(content[:length])
            assert_found(folder, two[1])
        path.write_bytes(content)
    assert newest_checkpoint(folder) == (two[0], [])


def test_files_swapped_with_each_other_and_with_the_older_ones(folder: Path, two: tuple[Checkpoint, Checkpoint]):
    swaps = [*combinations(files(two[0]), 2), *zip(files(two[0]), files(two[1]), strict=True)]
    for one, other in swaps:
        contents = one.read_bytes(), other.read_bytes()
        one.write_bytes(contents[1])
        other.write_bytes(contents[0])
        taken, skipped = newest_checkpoint(folder)
        if contents[0] == contents[1]:  # the adapter's options are those of every step
            assert taken == two[0]
        elif other.parent == one.parent:
            assert_found(folder, two[1])
        else:
            assert (taken, len(skipped)) == (None, 2)
        one.write_bytes(contents[0])
        other.write_bytes(contents[1])
    assert newest_checkpoint(folder) == (two[0], [])


def test_each_file_missing(folder: Path, two: tuple[Checkpoint, Checkpoint], tmp_path: Path):
    for path in files(two[0]):
        path.rename(tmp_path / path.name)
        assert_found(folder, two[1], path.name)
        path.mkdir()
        assert_found(folder, two[1], path.name)
        path.rmdir()
        (tmp_path / path.name).rename(path)
    assert newest_checkpoint(folder) == (two[0], [])


def test_the_older_one_under_the_name_of_the_newer(folder: Path, two: tuple[Checkpoint, Checkpoint], tmp_path: Path):
    two[0].path.rename(tmp_path / "newer")
    shutil.copytree(two[1].path, two[0].path)
    assert_found(folder, two[1], f"that of step {two[1].step}")
    shutil.rmtree(two[0].path)
    (tmp_path / "newer").rename(two[0].path)
