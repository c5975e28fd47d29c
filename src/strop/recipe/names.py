"""Did you mean: from a name that is no field of the recipe to the fields that were meant.

Four kinds of slips, tried in this order, each one more guess than the one before:

1. the right name in the wrong section, or in none:      `--lr`, `train.rank`          → train.lr, adapter.rank
2. the name that other tools give to the same thing:     `learning_rate`, `lora_r`     → train.lr, adapter.rank
3. a name for something that a recipe does not decide:   `gradient_checkpointing`      → no field; a note says who does
4. a misspelling of any of these:                        `train.epoch`, `max_tokenz`   → train.epochs, data.max_tokens
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from strop.recipe.fields import FIELDS, SECTIONS

OTHER_NAMES: Final[dict[str, str]] = {
    "model_name": "model",
    "model_name_or_path": "model",
    "model_path": "model",
    "base_model": "model",
    "pretrained_model_name_or_path": "model",
    "dataset": "data.train",
    "datasets": "data.train",
    "dataset_path": "data.train",
    "data_path": "data.train",
    "train_file": "data.train",
    "train_data": "data.train",
    "eval_data": "data.eval",
    "eval_dataset": "data.eval",
    "eval_file": "data.eval",
    "test_size": "data.eval",
    "validation_file": "data.eval",
    "val_size": "data.eval",
    "val_set_size": "data.eval",
    "columns": "data.map",
    "dataset_map_fn": "data.map",
    "system_prompt": "data.system",
    "default_system": "data.system",
    "max_samples": "data.rows",
    "max_train_samples": "data.rows",
    "cutoff_len": "data.max_tokens",
    "max_length": "data.max_tokens",
    "max_len": "data.max_tokens",
    "max_seq_len": "data.max_tokens",
    "max_seq_length": "data.max_tokens",
    "model_max_length": "data.max_tokens",
    "sequence_len": "data.max_tokens",
    "truncation": "data.overlong",
    "r": "adapter.rank",
    "lora_r": "adapter.rank",
    "lora_rank": "adapter.rank",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "lora_target": "adapter.targets",
    "lora_target_modules": "adapter.targets",
    "target_modules": "adapter.targets",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "max_epochs": "train.epochs",
    "iters": "train.steps",
    "max_steps": "train.steps",
    "num_steps": "train.steps",
    "batch_size": "train.samples_per_step",
    "global_batch_size": "train.samples_per_step",
    "gradient_accumulation_steps": "train.samples_per_step",
    "accumulative_counts": "train.samples_per_step",
    "micro_batch_size": "train.samples_per_step",
    "per_device_train_batch_size": "train.samples_per_step",
    "learning_rate": "train.lr",
    "lr_scheduler": "train.schedule",
    "lr_scheduler_type": "train.schedule",
    "lr_schedule": "train.schedule",
    "warmup_ratio": "train.warmup",
    "warmup_steps": "train.warmup",
    "clip_grad": "train.clip",
    "grad_clip": "train.clip",
    "gradient_clipping": "train.clip",
    "max_grad_norm": "train.clip",
    "max_norm": "train.clip",
    "save_steps": "train.save_every",
    "save_interval": "train.save_every",
    "random_seed": "train.seed",
    "random_state": "train.seed",
    "data_seed": "train.seed",
    "eval_steps": "watch.every",
    "eval_every": "watch.every",
    "evaluation_inputs": "watch.ask",
    "prompts": "watch.ask",
    "questions": "watch.ask",
    "max_new_tokens": "watch.answer_tokens",
}
"""Names that other fine-tuning tools use, and the field that means the same here."""

_BY_PLAN: Final = (
    "memory and speed are planned, not written into a recipe: give --memory 8GB, or set a lever of the plan, such as "
    "--plan.recompute_layers 30"
)

ELSEWHERE: Final[dict[str, str]] = {
    **dict.fromkeys(
        (
            "bf16",
            "fp16",
            "torch_dtype",
            "gradient_checkpointing",
            "packing",
            "sample_packing",
            "flash_attn",
            "attn_implementation",
            "per_device_eval_batch_size",
            "device_map",
            "memory",
            "max_memory",
            "deepspeed",
            "ddp_timeout",
        ),
        _BY_PLAN,
    ),
    **dict.fromkeys(
        ("load_in_4bit", "load_in_8bit", "quantization_bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant"),
        "the model is always held in 4 bits (NF4, doubly quantised); leave this out",
    ),
    **dict.fromkeys(
        ("output_dir", "work_dir", "save_dir"), "the run's folder is given on the command line: --run FOLDER"
    ),
    **dict.fromkeys(("template", "chat_template"), "the chat template is the model's own; leave this out"),
    **dict.fromkeys(("optim", "optimizer", "optim_type"), "the optimiser is AdamW; leave this out"),
    "trust_remote_code": "code that comes with a model is never run; leave this out",
    "report_to": "every run writes events.jsonl and a report; leave this out",
}
"""Names of things that other tools ask for and a recipe does not decide, with what to do instead."""

SECTION_NAMES: Final[dict[str, str]] = {
    "lora": "adapter",
    "peft": "adapter",
    "training": "train",
    "trainer": "train",
    "optimizer": "train",
    "dataset": "data",
    "eval": "watch",
    "evaluation": "watch",
}
"""What other tools call the sections."""

_CUTOFF: Final = 72
"""Least similarity (0 to 100) at which two names count as a misspelling of each other; "lrr" and "lr" have 80."""


@dataclass(frozen=True)
class Suggestion:
    """What may have been meant: fields, best first (none when nothing is near), or a note on who decides it."""

    paths: tuple[str, ...] = ()
    note: str = ""


def normal(path: str) -> str:
    """Spell a name as the recipe does: lower case, underscores, no leading dashes."""
    return path.lstrip("-").strip().replace("-", "_").lower()


def suggest(path: str) -> Suggestion:
    """Find the fields that an unknown path may have meant.

    Args:
        path: what was written, with or without its section: ``train.epoch``, ``learning_rate``, ``--lora-r``.

    Returns:
        At most three fields, best first, or a note; both empty when nothing is near.
    """
    name = normal(path).rpartition(".")[2]
    same_name = tuple(field.path for field in FIELDS if field.name == name)
    if same_name:
        return Suggestion(same_name)
    if name in OTHER_NAMES:
        return Suggestion((OTHER_NAMES[name],))
    if name in ELSEWHERE:
        return Suggestion(note=ELSEWHERE[name])
    return _misspelled(name)


def _misspelled(name: str) -> Suggestion:
    from rapidfuzz import fuzz

    scores: dict[str, float] = {}
    candidates = [(field.name, field.path) for field in FIELDS] + list(OTHER_NAMES.items())
    for candidate, path in candidates:
        score = fuzz.ratio(name, candidate)
        if score >= _CUTOFF:
            scores[path] = max(scores.get(path, 0.0), score)
    best = sorted(scores, key=lambda path: -scores[path])[:3]
    if best:
        return Suggestion(tuple(best))
    note = next((ELSEWHERE[key] for key in ELSEWHERE if fuzz.ratio(name, key) >= 90), "")
    return Suggestion(note=note)


def suggest_section(name: str) -> str:
    """The section that an unknown name may have meant; empty when none is near."""
    from rapidfuzz import fuzz

    name = normal(name)
    if name in SECTION_NAMES:
        return SECTION_NAMES[name]
    nearest = max(SECTIONS, key=lambda section: fuzz.ratio(name, section))
    return nearest if fuzz.ratio(name, nearest) >= _CUTOFF else ""


def nearest_of(word: str, choices: tuple[str, ...] | list[str]) -> str:
    """The choice that a misspelled word is nearest to; empty when none is near. Case does not count."""
    from rapidfuzz import fuzz

    if not choices:
        return ""
    nearest = max(choices, key=lambda choice: fuzz.ratio(word.lower(), choice.lower()))
    return nearest if fuzz.ratio(word.lower(), nearest.lower()) >= 60 else ""
