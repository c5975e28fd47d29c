"""Sides "trl…": TRL's SFTTrainer on the same NF4 base, as it comes, with its fastest settings, with Liger's kernels.

"trl" leaves every setting that decides speed at its default: bf16, gradient checkpointing, eight samples a micro-batch.
"trl-packed" is float32, without checkpointing, packed best-fit decreasing. TRL turns the adapter on a quantised base
into bfloat16 whatever it is told; here it is turned back, so that all of the computation is float32.

TRL's documentation keeps packing for FlashAttention, which CPUs lack. It runs without, and with no warning in 1.16:
transformers sees positions start again and makes a mask that keeps the samples of a pack apart, so what is computed is
right. The mask is dense, and attention costs the square of a pack. A step of "trl-packed" has as many packs as come
nearest to the tokens of the others' steps, not the same samples: its speed can be compared, its losses cannot.

On a GPU "trl-packed" computes in bfloat16, in packs of 2,048 tokens. "trl-liger" is "trl" with `use_liger_kernel`.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from datasets import Dataset
from job import Course, Job, arguments
from stock import PACKAGES, Clock, common_arguments, load_base, lora_config, rows
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

# Of 512, 1,024 and 2,048 the fastest, since the mask is dense: 85, 72 and 46 tokens a CPU second (GSM8K, one thread of
# a Zen 4 core, median), and 2.1, 3.7 and 6.6 GB. Samples have at most 512 tokens: none is cut.
PACK_TOKENS = {"cpu": 512, "cuda": 2048}


def run(job: Job, course: Course, variant: str) -> None:
    """All steps of the job."""
    steps = len(job.steps)
    data = Dataset.from_list([{key: row[key] for key in ("input_ids", "labels")} for row in rows(job, steps)])
    with tempfile.TemporaryDirectory() as place:
        trainer = SFTTrainer(
            model=load_base(job.model, torch.float32 if job.device == "cpu" else torch.bfloat16, job.device),
            args=SFTConfig(output_dir=place, use_cpu=job.device == "cpu", **_settings(job, variant, steps)),
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(job.model),
            peft_config=lora_config(job),
            callbacks=[Clock(job, course, [*PACKAGES, "trl"], packing=variant == "packed")],
        )
        if variant == "packed" and job.device == "cpu":
            for matrix in trainer.model.parameters():
                if matrix.requires_grad:
                    matrix.data = matrix.data.to(torch.float32)
        trainer.train()


def _settings(job: Job, variant: str, steps: int) -> dict[str, Any]:
    lengths = [len(tokens) for step in job.steps for tokens, _ in step]
    if variant != "packed":
        default = SFTConfig.__dataclass_fields__["per_device_train_batch_size"].default
        micro_batch = min(default, len(job.steps[0]))
        return {
            "train_sampling_strategy": "sequential",
            # Its own default cuts at 1,024.
            "max_length": max(1024, *lengths),
            **({"use_liger_kernel": True} if variant == "liger" else {}),
            **common_arguments(job, steps, micro_batch),
        }
    size = max(PACK_TOKENS[job.device], *lengths)
    packs = max(1, round(sum(lengths) / len(job.steps) / size))
    return {
        "bf16": job.device != "cpu",
        "gradient_checkpointing": False,
        "packing": True,
        "max_length": size,
        **common_arguments(job, steps, 1),
        "gradient_accumulation_steps": packs,
    }


if __name__ == "__main__":
    run(*arguments(["default", "packed", "liger"]))
