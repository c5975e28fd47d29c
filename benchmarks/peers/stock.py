"""What the sides on transformers + PEFT + bitsandbytes share: the base, the first adapter, padding, and the clock.

    samples ─▶ batches (a trainer's own collator) ─▶ model ─▶ Clock: tokens counted, steps timed, losses kept

`Clock` is a callback of transformers' Trainer: it sets the job's learning rates, puts the job's first adapter in place
and times every step from its first micro-batch to the end of the optimiser's step. Tokens are counted where they enter
the model, so that padding and packing count as what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from job import Course, Job, Sample, learned_tokens
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback

PACKAGES = ["torch", "transformers", "peft", "bitsandbytes"]


def load_base(folder: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    """transformers' model of a folder with bitsandbytes' NF4 layers, double quantisation.

    A folder that is quantised already says so itself, and is told only what to compute in.
    """
    config, quantization = AutoConfig.from_pretrained(folder), None
    if getattr(config, "quantization_config", None) is None:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    else:
        config.quantization_config["bnb_4bit_compute_dtype"] = str(dtype).removeprefix("torch.")
    given = {"quantization_config": quantization} if quantization else {}
    return AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=dtype, device_map=device, **given)


def lora_config(job: Job) -> Any:
    """The job's adapter as PEFT is asked for it."""
    from peft import LoraConfig

    return LoraConfig(
        r=job.rank, lora_alpha=job.alpha, lora_dropout=job.dropout, target_modules=job.targets, task_type="CAUSAL_LM"
    )


def start_from(model: nn.Module, folder: str) -> None:
    """Gives the model's adapter the numbers of the job's first adapter, in the dtype that it has."""
    from safetensors.torch import load_file

    first = load_file(Path(folder) / "adapter_model.safetensors")
    trained = {name.replace(".default", ""): m for name, m in model.named_parameters() if m.requires_grad}
    if trained.keys() != first.keys():
        raise SystemExit(f"the adapter has other matrices than the job's: {sorted(trained.keys() ^ first.keys())[:4]}")
    with torch.no_grad():
        for name, matrix in trained.items():
            matrix.copy_(first[name])


def padded(samples: Sequence[Sample], pad: int = 0) -> dict[str, Tensor]:
    """Token ids, attention mask and labels of samples, padded on the right to the longest."""
    longest = max(len(tokens) for tokens, _ in samples)
    ids = torch.full((len(samples), longest), pad, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, (tokens, learned) in enumerate(samples):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
        labels[row, : len(tokens)] = torch.where(torch.tensor(learned), torch.tensor(tokens), -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def count(course: Course, samples: Sequence[Sample], batch: dict[str, Tensor]) -> None:
    """Counts a padded micro-batch."""
    read, learned = sum(len(tokens) for tokens, _ in samples), sum(learned_tokens(sample) for sample in samples)
    course.count(batch["input_ids"].numel(), read, learned)


def rows(job: Job, steps: int) -> list[dict[str, list[int]]]:
    """All samples of the first steps in order, as a data set that is tokenised already."""
    return [
        {
            "input_ids": tokens,
            "attention_mask": [1] * len(tokens),
            "labels": [token if known else -100 for token, known in zip(tokens, learned, strict=True)],
        }
        for step in job.steps[:steps]
        for tokens, learned in step
    ]


def common_arguments(job: Job, steps: int, micro_batch: int) -> dict[str, Any]:
    """Settings of a Trainer that make its steps the job's, and keep it from writing anything."""
    return {
        "max_steps": steps,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": max(1, len(job.steps[0]) // micro_batch),
        "max_grad_norm": job.clip,
        "lr_scheduler_type": "constant",
        "learning_rate": job.rates[0],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


class Clock(TrainerCallback):
    """Times a Trainer's steps."""

    def __init__(self, job: Job, course: Course, packages: Sequence[str], **settings: Any) -> None:
        self._job, self._course, self._packages, self._settings = job, course, list(packages), settings

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any) -> None:
        """The first adapter is put in place, and tokens are counted from here."""
        assert model is not None
        start_from(model, self._job.first_adapter)
        model.register_forward_pre_hook(self._count, with_kwargs=True)
        trained = next(matrix.dtype for matrix in model.parameters() if matrix.requires_grad)
        self._course.ready(
            self._packages,
            **self._settings,
            adapter_dtype=str(trained).removeprefix("torch."),
            bf16=args.bf16,
            gradient_checkpointing=args.gradient_checkpointing,
            micro_batch=args.per_device_train_batch_size,
            optimizer=str(getattr(args.optim, "value", args.optim)),
        )

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """The job's learning rate; the clock starts."""
        for group in optimizer.param_groups:
            group["lr"] = self._job.rates[state.global_step]
        self._course.begin_step()

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A micro-batch that is not the last of its step is done."""
        self._course.end_pass()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The optimiser has moved."""
        self._course.end_step(None)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """A Trainer tells the loss after the step."""
        if logs and "loss" in logs:
            self._course.late_loss(float(logs["loss"]))

    def _count(self, _module: nn.Module, _arguments: Any, inputs: dict[str, Any]) -> None:
        ids, labels, mask = inputs["input_ids"], inputs.get("labels"), inputs.get("attention_mask")
        read = ids.numel() if mask is None else int(mask.sum())
        self._course.count(ids.numel(), read, 0 if labels is None else int((labels[:, 1:] != -100).sum()))
