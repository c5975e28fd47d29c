"""Side "unsloth": Unsloth's FastLanguageModel and its SFTTrainer, as its own notebooks set them.

Its gradient checkpointing, its fused kernels and its padding-free batches are on by its defaults. The adapter, the
samples, their order, samples a step and learning rates are the job's. It trains on GPUs alone.
"""

from __future__ import annotations

# Before transformers and TRL, whose classes it changes.
import unsloth  # isort: skip  # noqa: F401

import tempfile

from datasets import Dataset
from job import Course, Job, arguments
from stock import PACKAGES, Clock, common_arguments, rows
from trl import SFTConfig, SFTTrainer
from unsloth import FastLanguageModel


def run(job: Job, course: Course) -> None:
    """All steps of the job."""
    steps, longest = len(job.steps), max(len(tokens) for step in job.steps for tokens, _ in step)
    data = Dataset.from_list([{key: row[key] for key in ("input_ids", "labels")} for row in rows(job, steps)])
    base, tokenizer = FastLanguageModel.from_pretrained(
        job.model, max_seq_length=longest, load_in_4bit=True, use_exact_model_name=True
    )
    model = FastLanguageModel.get_peft_model(
        base,
        r=job.rank,
        target_modules=job.targets,
        lora_alpha=job.alpha,
        lora_dropout=job.dropout,
        bias="none",
        use_gradient_checkpointing="unsloth",
    )
    with tempfile.TemporaryDirectory() as place:
        default = SFTConfig.__dataclass_fields__["per_device_train_batch_size"].default
        micro_batch = min(default, len(job.steps[0]))
        settings = SFTConfig(
            output_dir=place,
            bf16=True,
            max_length=longest,
            train_sampling_strategy="sequential",
            **common_arguments(job, steps, micro_batch),
        )
        SFTTrainer(
            model=model,
            args=settings,
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[Clock(job, course, [*PACKAGES, "trl", "unsloth", "unsloth_zoo"])],
        ).train()


if __name__ == "__main__":
    run(*arguments()[:2])
