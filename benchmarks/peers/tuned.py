"""Side "tuned": transformers + PEFT + bitsandbytes by hand, with what makes it fast on a CPU.

float32, or "bfloat16" for base and activations beside adapters in float32 (PEFT's default, and faster than autocast
over a base in float32: 492 tokens a second beside 414 on a Xeon with AMX). No checkpointing, micro-batches of samples
of like length (the step's samples sorted, so that little is padding), fused AdamW. The loss is summed over learned
tokens and divided once by those of the step, from logits at all positions, as transformers makes them.
"""

from __future__ import annotations

import torch
from job import Course, Job, arguments, learned_tokens
from peft import get_peft_model
from stock import PACKAGES, count, load_base, lora_config, padded, start_from
from torch.nn.functional import cross_entropy

MICRO_BATCH = 4


def run(job: Job, course: Course, variant: str) -> None:
    """All steps of the job."""
    dtype = torch.bfloat16 if variant == "bfloat16" else torch.float32
    model = get_peft_model(load_base(job.model, dtype), lora_config(job))
    start_from(model, job.first_adapter)
    model.train()
    trained = [matrix for matrix in model.parameters() if matrix.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0, fused=True)
    course.ready(PACKAGES, micro_batch=MICRO_BATCH, dtype=str(dtype).removeprefix("torch."))
    for step, rate in zip(job.steps, job.rates, strict=True):
        course.begin_step()
        samples = sorted(step, key=lambda sample: -len(sample[0]))
        total = sum(learned_tokens(sample) for sample in samples)
        loss_sum = 0.0
        for start in range(0, len(samples), MICRO_BATCH):
            batch = padded(samples[start : start + MICRO_BATCH])
            count(course, samples[start : start + MICRO_BATCH], batch)
            outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            logits = outputs.logits[:, :-1].flatten(0, 1).float()
            loss = cross_entropy(logits, batch["labels"][:, 1:].flatten(), ignore_index=-100, reduction="sum")
            loss_sum += loss.item()
            (loss / total).backward()
            course.end_pass()
        torch.nn.utils.clip_grad_norm_(trained, job.clip)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        course.end_step(loss_sum / total)


if __name__ == "__main__":
    run(*arguments())
