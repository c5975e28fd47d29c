"""Did you mean: other sections, other tools' names, misspellings, and things that a recipe does not decide."""

import pytest

from strop.recipe.fields import FIELD, SECTIONS
from strop.recipe.names import ELSEWHERE, OTHER_NAMES, SECTION_NAMES, nearest_of, suggest, suggest_section


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("lr", "train.lr"),
        ("--lr", "train.lr"),
        ("train.rank", "adapter.rank"),
        ("trian.lr", "train.lr"),
        ("train.learning_rate", "train.lr"),
        ("learning-rate", "train.lr"),
        ("r", "adapter.rank"),
        ("lora_r", "adapter.rank"),
        ("adapter.r", "adapter.rank"),
        ("lora_alpha", "adapter.alpha"),
        ("num_train_epochs", "train.epochs"),
        ("max_length", "data.max_tokens"),
        ("max_seq_length", "data.max_tokens"),
        ("cutoff_len", "data.max_tokens"),
        ("per_device_train_batch_size", "train.samples_per_step"),
        ("target_modules", "adapter.targets"),
        ("warmup_ratio", "train.warmup"),
        ("seed", "train.seed"),
        ("train.epoch", "train.epochs"),
        ("data.max_tokenz", "data.max_tokens"),
        ("num_train_epoch", "train.epochs"),
        ("modle", "model"),
        ("Train.LR", "train.lr"),
    ],
)
def test_the_nearest_comes_first(written: str, meant: str):
    assert suggest(written).paths[0] == meant


def test_a_name_of_another_tool_is_no_guess():
    assert suggest("eval_steps").paths == ("watch.every",)  # and not train.steps, which is near it too
    assert suggest("num_epochs").paths == ("train.epochs",)


def test_what_is_decided_elsewhere_has_a_note():
    assert "--memory 8GB" in suggest("gradient_checkpointing").note
    assert "--plan.recompute_layers 30" in suggest("gradient_checkpointing").note
    assert "--memory 8GB" in suggest("memory").note
    assert "--run" in suggest("output_dir").note
    assert suggest("gradient_checkpointin").note == suggest("gradient_checkpointing").note


def test_nothing_near_is_nothing():
    suggestion = suggest("train.zzzzqq")
    assert suggestion.paths == ()
    assert suggestion.note == ""


def test_the_tables_lead_to_fields_and_contradict_nothing():
    assert set(OTHER_NAMES.values()) <= FIELD.keys()
    assert set(SECTION_NAMES.values()) <= set(SECTIONS)
    assert not OTHER_NAMES.keys() & ELSEWHERE.keys()
    assert not (OTHER_NAMES.keys() | ELSEWHERE.keys()) & {field.name for field in FIELD.values()}


def test_sections():
    assert suggest_section("lora") == "adapter"
    assert suggest_section("adaptr") == "adapter"
    assert suggest_section("zzz") == ""


def test_nearest_of_words():
    assert nearest_of("Cosin", ["cosine", "linear", "constant"]) == "cosine"
    assert nearest_of("zzz", ["cosine"]) == ""
    assert nearest_of("x", []) == ""
