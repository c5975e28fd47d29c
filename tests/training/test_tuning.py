"""What a run's kernels were compiled with stays with its checkpoints, and older readers pass it by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from strop.errors import InputError, Stopped
from strop.kernels.triton import tuning
from strop.run.checkpoint import SCHEMA, newest_checkpoint, verify
from strop.training import loop
from strop.training.session import resume_run
from strop.training.tuning import TUNING_FILE, take_up_tuning, tuning_files
from tiny_run import Tiny, course

CHOICES = {"attention.forward 128 torch.bfloat16 NVIDIA H200": 2, "nf4 A card": 1}


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = tuning.choices()
    yield
    tuning.load(before)


def test_a_resumed_run_computes_with_the_choices_that_it_began_with(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tuning.load(CHOICES)
    whole = tiny.train(tmp_path / "whole")
    save = loop._save

    def save_and_stop(training, step: int, needed: bool = False) -> bool:
        saved = save(training, step, needed)
        if step == 4:
            raise Stopped("cut here")
        return saved

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_save", save_and_stop)
        with pytest.raises(Stopped):
            tiny.train(tmp_path / "cut")
    tuning.load({"nf4 A card": 3})  # what another process measured
    resume_run(tmp_path / "cut")
    assert tuning.choices() == CHOICES
    assert course(type(whole)(tmp_path / "cut")) == course(whole)
    checkpoint, skipped = newest_checkpoint(whole.checkpoints)
    assert checkpoint is not None
    assert not skipped
    assert json.loads((checkpoint.path / TUNING_FILE).read_text()) == CHOICES


def test_default_choices_leave_checkpoints_as_they_were(tiny: Tiny, tmp_path: Path):
    tuning.load({})
    assert tuning_files() == {}
    run = tiny.train(tmp_path / "run")
    checkpoint, _ = newest_checkpoint(run.checkpoints)
    assert checkpoint is not None
    assert not (checkpoint.path / TUNING_FILE).exists()
    tuning.load(CHOICES)
    take_up_tuning(checkpoint.path)
    assert tuning.choices() == {}, "what it was computed with was the default"


def test_an_optional_file_changes_no_schema(tiny: Tiny, tmp_path: Path):
    """A reader that does not know the file verifies it like any other."""
    tuning.load(CHOICES)
    run = tiny.train(tmp_path / "run", {"train.steps": 2})
    checkpoint, _ = newest_checkpoint(run.checkpoints)
    assert checkpoint is not None
    manifest = json.loads((checkpoint.path / "manifest.json").read_text())
    assert manifest["schema"] == SCHEMA == 2
    assert TUNING_FILE in manifest["files"]
    assert verify(checkpoint.path).step == 2


@pytest.mark.parametrize("text", ["[]", '{"a": "b"}', '{"a": -1}', '{"a": true}', "{", '{"a": 1.5}'])
def test_a_file_that_holds_something_else_is_refused(text: str, tmp_path: Path):
    (tmp_path / TUNING_FILE).write_text(text)
    with pytest.raises(InputError) as caught:
        take_up_tuning(tmp_path)
    assert str(tmp_path / TUNING_FILE) in caught.value.what
