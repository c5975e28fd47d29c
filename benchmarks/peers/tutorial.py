"""Side "tutorial": the PEFT script of the tutorial that Strop started from, on today's versions.

Kept: transformers' Trainer, NF4 with double quantisation, the job's LoRA (q, k and v with rank 8), gradient
checkpointing, micro-batches of four in the data's order, padded to their longest, the model's own loss. On a GPU its
float16 throughout (no autocast, no scaler), its paged AdamW and its dropout are kept as well. Changed on a CPU, which
asks for it, or so that losses can be compared, and never to its disadvantage: float32 where it has float16, torch's
AdamW where it has the paged one (there is no device to page from), no dropout. The job's samples a step and learning
rates everywhere.
"""

from __future__ import annotations

import tempfile

import torch
from job import Course, Job, arguments
from peft import get_peft_model
from stock import PACKAGES, Clock, common_arguments, load_base, lora_config, rows
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments


def run(job: Job, course: Course) -> None:
    """All steps of the job."""
    on_cpu = job.device == "cpu"
    base = load_base(job.model, torch.float32 if on_cpu else torch.float16, job.device)
    base.enable_input_require_grads()
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    tokenizer.pad_token = tokenizer.eos_token
    steps = len(job.steps)
    with tempfile.TemporaryDirectory() as place:
        settings = TrainingArguments(
            output_dir=place,
            use_cpu=on_cpu,
            gradient_checkpointing=True,
            train_sampling_strategy="sequential",
            **({} if on_cpu else {"optim": "paged_adamw_32bit"}),
            **common_arguments(job, steps, job.micro_batch),
        )
        Trainer(
            model=get_peft_model(base, lora_config(job)),
            args=settings,
            train_dataset=rows(job, steps),
            data_collator=DataCollatorForSeq2Seq(tokenizer=tokenizer, padding=True),
            callbacks=[Clock(job, course, [*PACKAGES, "accelerate"])],
        ).train()


if __name__ == "__main__":
    run(*arguments()[:2])
