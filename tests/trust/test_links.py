"""Links in model folders: those of the hubs' caches are followed, to the blobs beside them, and no others."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile import USES

from strop.errors import StropError
from tiny_run import Tiny

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links need an account that may make them")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def in_blobs(model: Path, repository: Path, folder: Path, *, relative: bool) -> Path:
    """A model whose files lie in a repository's blobs and are links in a folder, as the hubs' caches keep them."""
    (repository / "blobs").mkdir(parents=True)
    folder.mkdir(parents=True)
    for number, file in enumerate(sorted(model.iterdir())):
        blob = repository / "blobs" / f"{number:040x}"
        shutil.copy(file, blob)
        (folder / file.name).symlink_to(os.path.relpath(blob, folder) if relative else blob)
    return folder


@pytest.fixture
def cached(tiny: Tiny, tmp_path: Path) -> Path:
    """A snapshot in the cache of Hugging Face's library."""
    repository = tmp_path / "hub" / "models--owner--name"
    return in_blobs(tiny.model, repository, repository / "snapshots" / COMMIT, relative=True)


def refused(folder: Path) -> None:
    with pytest.raises(StropError) as caught:
        USES["model"](folder)
    assert caught.value.exit_code == 3
    assert "a link that leads out of its folder; put a copy in its place" in str(caught.value)


def test_a_snapshot_of_the_librarys_cache_is_opened(cached: Path):
    assert (cached / "config.json").readlink().parts[:3] == ("..", "..", "blobs")
    USES["model"](cached)


def test_a_cache_that_is_reached_through_a_link_is_opened(cached: Path, tmp_path: Path):
    (tmp_path / "short").symlink_to(cached.parents[2])
    USES["model"](tmp_path / "short" / "models--owner--name" / "snapshots" / COMMIT)
    (tmp_path / "model").symlink_to(cached)
    USES["model"](tmp_path / "model")


def test_strops_own_cache_links_to_the_blobs_of_the_same_repository(tiny: Tiny, tmp_path: Path):
    own = tmp_path / "strop" / "hub" / "hf" / "models--owner--name" / COMMIT
    USES["model"](in_blobs(tiny.model, tmp_path / "hub" / "models--owner--name", own, relative=False))


def elsewhere(folder: Path) -> Path:
    return folder.parents[2] / "elsewhere.json"


def other_repository(folder: Path) -> Path:
    return folder.parents[2] / "models--owner--other" / "blobs" / "x"


def beside_blobs(folder: Path) -> Path:
    return folder.parents[1] / "blobs-of-mine" / "x"


def other_snapshot(folder: Path) -> Path:
    return folder.parent / "other" / "config.json"


def through_blobs(folder: Path) -> Path:
    return folder.parents[1] / "blobs" / ".." / ".." / "x"


@pytest.mark.parametrize("place", [elsewhere, other_repository, beside_blobs, other_snapshot, through_blobs])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_snapshot_with_a_link_to_anywhere_else_is_refused(name: str, place: Callable[[Path], Path], cached: Path):
    target = place(cached)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(cached / name, target)
    (cached / name).unlink()
    (cached / name).symlink_to(os.path.relpath(target, cached) if ".." not in target.parts else target)
    refused(cached)


def test_blobs_that_are_a_link_themselves_are_refused(cached: Path, tmp_path: Path):
    blobs = cached.parents[1] / "blobs"
    blobs.rename(tmp_path / "secrets")
    blobs.symlink_to(tmp_path / "secrets")
    refused(cached)


def test_blobs_beside_a_folder_that_is_no_cache_are_refused(tiny: Tiny, tmp_path: Path):
    refused(in_blobs(tiny.model, tmp_path, tmp_path / "models" / "mine", relative=True))
    refused(in_blobs(tiny.model, tmp_path / "b", tmp_path / "b" / "mine", relative=True))


def test_a_blob_that_is_no_file_is_refused(cached: Path):
    blob = (cached / "config.json").resolve()
    blob.unlink()
    os.mkfifo(blob)
    with pytest.raises(StropError):
        USES["model"](cached)
