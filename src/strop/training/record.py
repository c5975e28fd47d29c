"""The record of a run: everything that is known before its first step, in the files that its folder appears with."""

from __future__ import annotations

import platform
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from typing import Any

import torch

from strop.data.examples import Dataset
from strop.data.preview import length_histogram, segments
from strop.data.samples import Joined
from strop.kernels import select
from strop.model.four_bit import as_facts, in_four_bits
from strop.model.general.spec import GeneralSpec
from strop.model.lora import adapter_size
from strop.plan.forecast import Choice
from strop.plan.plan import Plan
from strop.run.folder import RunFolder, write_text
from strop.training.identity import plan_identity
from strop.training.inputs import Inputs
from strop.training.state import record

# Samples whose tokens the report shows in colour.
_SHOWN_SAMPLES = 6
_LIBRARIES = ("torch", "numpy", "tokenizers", "safetensors", "jinja2")


def write_record(run: RunFolder, inputs: Inputs, choice: Choice) -> None:
    """Writes everything that is known before the first step."""
    dataset, spec, recipe = inputs.dataset, inputs.spec, inputs.recipe
    write_text(run.recipe, inputs.resolved.to_yaml())
    run.write_json("plan.json", record(choice, choice.forecast))
    shown = dataset.learned[:_SHOWN_SAMPLES]
    run.write_json(
        "data.json",
        {
            "lengths": _histogram(dataset),
            "samples": [
                {
                    "place": str(example.place),
                    "segments": [{"text": text, "kind": kind} for text, kind in segments(example, inputs.tokenizer)],
                }
                for example in shown
            ],
        },
    )
    refused = (*dataset.refused, *dataset.held_out_refused)
    run.write_lines("refused.jsonl", (refusal.as_dict() for refusal in refused))
    identity = inputs.identity
    run.write_json(
        "manifest.json",
        {
            "strop": version("strop"),
            "created": datetime.now().astimezone().isoformat(timespec="seconds"),
            "model": {
                "path": recipe.model,
                **identity["model"],
                "family": spec.family,
                "parameters": spec.parameters,
                "trainable": adapter_size(spec, inputs.targets, recipe.adapter.rank),
                # Loading checks that it is so.
                "nf4": as_facts(in_four_bits(spec)),
            },
            "template": identity["template"],
            "recipe": identity["recipe"],
            "adapter": identity["adapter"],
            "plan": plan_identity(choice.forecast.plan),
            "data": {
                "train": recipe.data.train,
                **identity["data"],
                "read": dataset.read,
                "refused": len(dataset.refused),
                "held_out_read": dataset.held_out_read,
                "held_out_refused": len(dataset.held_out_refused),
                "sources": [asdict(source) for source in dataset.sources],
                "shapes": dict(dataset.shapes),
            },
            "versions": _versions(inputs),
            "device": _device_facts(choice.forecast.plan),
        },
    )


def _versions(inputs: Inputs) -> dict[str, str]:
    """Of Python and of what computes the run."""
    names = (*_LIBRARIES, "transformers") if isinstance(inputs.spec, GeneralSpec) else _LIBRARIES
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _histogram(dataset: Dataset) -> dict[str, list[int]]:
    """Lengths of all samples: the lower edges of the bars and, last, the upper end; and how many lie in each."""
    buckets = length_histogram(Joined(dataset.learned, dataset.held_out))
    edges = [bucket.low for bucket in buckets] + [bucket.high + 1 for bucket in buckets[-1:]]
    return {"bins": edges, "counts": [bucket.count for bucket in buckets]}


def _device_facts(plan: Plan) -> dict[str, Any]:
    import psutil

    name, of_gpu = platform.processor(), {}
    if plan.on_gpu:
        card = torch.cuda.get_device_properties(plan.device)
        name = card.name
        of_gpu = {
            "capability": f"{card.major}.{card.minor}",
            "gpu_memory_bytes": card.total_memory,
            "cuda": torch.version.cuda,
            "kernels": select.describe(torch.device(plan.device)),
        }
    return {
        "device": plan.device,
        "name": name or platform.machine(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": psutil.cpu_count(logical=False),
        "memory_bytes": psutil.virtual_memory().total,
        **of_gpu,
    }
