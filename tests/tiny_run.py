"""Everything of a run but its size: a complete model folder, questions and answers, and training in a fraction of a
second.

    model   a random Llama of 2 layers, with a byte-level tokenizer trained on the spot and a ChatML template
    data    40 questions, answers of one to six sentences: packs are ragged, and a mean of means would show
    run     6 steps of 5 samples, dropout on, a look and a checkpoint every 2 steps, one thread
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strop.recipe import Resolved, resolve
from strop.run.folder import RunFolder
from strop.run.journal import Listener
from tiny_tokenizers import write_folder

RECIPE = {
    "data.eval": 4,
    "data.system": "Be exact.",
    "adapter.rank": 4,
    "adapter.alpha": 8,
    "adapter.dropout": 0.1,
    "train.steps": 6,
    "train.samples_per_step": 5,
    "train.lr": 0.01,
    "train.save_every": 2,
    "watch.every": 2,
    "watch.answer_tokens": 5,
}


# A plan that follows from nothing that is timed, so that two runs can be compared bit by bit.
PLAN = {
    "device": "cpu",
    "dtype": "float32",
    "pack_tokens": 512,
    "recompute_layers": 0,
    "recompute_elementwise": 1,
    "dense_layers": 1,
    "head": "dense",
    "embedding": "memory",
    "loss_chunk": 64,
    "prefixes": "shared",
    "matmul": "torch",
    "threads": 1,
}


def write_model(folder: Path) -> Path:
    """Write a random Llama that trains in milliseconds, complete with tokenizer, template and configs."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    write_folder(folder, "chatml")
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(vocabulary),
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=256,
                initializer_range=0.1,  # larger than usual, so that attention is far from uniform
                eos_token_id=vocabulary["<|im_end|>"],
            )
        )
    model.save_pretrained(folder)
    return folder


def rows(count: int = 40) -> list[dict[str, str]]:
    """Sums with answers of very different lengths."""
    return [
        {
            "question": f"What is {number} + {number * 7 % 13}?",
            "answer": "".join(f"Step {step}: x = {number}. " for step in range(number % 6))
            + f"The answer is {number + number * 7 % 13}.",
        }
        for number in range(count)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Tiny:
    """A tiny model and its data."""

    model: Path
    data: Path

    def recipe(self, changes: Mapping[str, Any] | None = None) -> Resolved:
        """The recipe above, with changes by dotted path."""
        values = {**RECIPE, **(changes or {})}
        return resolve(model=str(self.model), data=str(self.data), overrides=[(k, str(v)) for k, v in values.items()])

    def train(
        self,
        run: Path,
        changes: Mapping[str, Any] | None = None,
        plan: Mapping[str, Any] | None = None,
        listener: Listener | None = None,
    ) -> RunFolder:
        """Train from the start, under `PLAN` with what is given on top."""
        from strop.training.session import train_run

        levers = {name: str(value) for name, value in {**PLAN, **(plan or {})}.items()}
        train_run(self.recipe(changes), folder=run, plan_overrides=levers, listener=listener)
        return RunFolder(run)

    def flags(self, run: Path, changes: Mapping[str, Any] | None = None) -> list[str]:
        """The same as a command line."""
        values = {**RECIPE, **{f"plan.{name}": value for name, value in PLAN.items()}, **(changes or {})}
        return [
            *("train", str(self.model), str(self.data), "--run", str(run)),
            *(word for name, value in values.items() for word in (f"--{name}", str(value))),
        ]


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory where there is one: a kill spares what the system was given, and syncs take no time there."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Path(folder)


def events(run: RunFolder, kind: str) -> list[dict[str, Any]]:
    """The events of a kind."""
    return [event for event in run.lines(run.events) if event["kind"] == kind]


def values(run: RunFolder, kind: str, name: str) -> list[Any]:
    """One fact of all events of a kind."""
    return [event[name] for event in events(run, kind)]


def adapter_bytes(run: RunFolder) -> bytes:
    """The result."""
    return (run.adapter / "adapter_model.safetensors").read_bytes()


def course(run: RunFolder) -> dict[str, Any]:
    """All that a recipe and a plan decide: each number of each step, the answers, and the adapter's bytes."""
    return {
        "steps": [
            [event[name] for name in ("step", "epoch", "loss", "learned_tokens", "tokens", "lr", "grad_norm")]
            for event in events(run, "step")
        ],
        "watches": [
            [event["step"], event["held_out_loss"], event["held_out_tokens"]] for event in events(run, "watch")
        ],
        "saves": values(run, "save", "step"),
        "ends": values(run, "end", "learned_tokens"),
        "samples": list(run.lines(run.samples)),
        "adapter": adapter_bytes(run),
    }
