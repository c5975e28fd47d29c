"""What a run keeps of its data: sources, shapes and refusals; and when it does not start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from strop.errors import DataError
from strop.recipe import from_yaml, resolve
from strop.training.session import plan_run, train_run
from tiny_run import PLAN, RECIPE, Tiny, rows, write_rows


def test_a_run_with_too_many_refusals_does_not_start(own_tiny: Tiny, tmp_path: Path) -> None:
    write_rows(own_tiny.data, [*rows(18), {"question": "q", "answer": ""}, {"question": "q"}])
    with pytest.raises(DataError, match="2 of 20 records of the data are refused") as caught:
        own_tiny.train(tmp_path / "run")
    assert f"1 × the answer is empty ({own_tiny.data}:19)" in caught.value.found
    assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match="2 of 20"):
        plan_run(own_tiny.recipe())


def test_a_run_records_sources_shapes_and_refusals(
    own_tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(own_tiny.data, [*rows(18), {"question": "q", "answer": ""}])
    other = [{"prompt": row["question"], "completion": row["answer"] + "!"} for row in rows(30)]
    (tmp_path / "other.json").write_text(json.dumps([*other, {"prompt": "p", "completion": None}]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    values = {**RECIPE, "train.steps": 2, "data.refuse_limit": 0.2, "data.train": f"{own_tiny.data},other.json*0.5"}
    resolved = resolve(model=str(own_tiny.model), overrides=[(name, str(value)) for name, value in values.items()])
    train_run(resolved, folder=tmp_path / "run", plan_overrides={name: str(value) for name, value in PLAN.items()})
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))["data"]
    sources = manifest["sources"]
    assert [source["available"] for source in sources] == [19, 31]
    assert manifest["read"] == sum(source["read"] for source in sources) == 19 + 16
    for count in ("learned", "held_out", "refused"):
        assert manifest[count] == sum(source[count] for source in sources)
    assert manifest["read"] == manifest["learned"] + manifest["held_out"] + manifest["refused"]
    assert manifest["shapes"].keys() == {"question + answer", "prompt + completion"}
    kept = from_yaml((tmp_path / "run" / "recipe.yaml").read_text(encoding="utf-8")).recipe
    assert kept.data.train == (str(own_tiny.data.resolve()), f"{tmp_path / 'other.json'}*0.5")
    refused = [json.loads(line) for line in (tmp_path / "run" / "refused.jsonl").read_text("utf-8").splitlines()]
    assert len(refused) == manifest["refused"]
    assert refused[0] == {
        "file": str(own_tiny.data.resolve()),
        "line": 19,
        "reason": "the answer is empty",
        "found": "",
        "cure": "fill it, or drop the row",
        "excerpt": "question: q · answer: ",
    }
    assert "other.json" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
