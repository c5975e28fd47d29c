"""Sides "trl" and "llama-factory" of benchmarks/data.py: from a file of rows to tokens and labels, and how long.

    python prepare_data.py FILE MODEL CACHE trl|llama-factory PROCESSES|none gsm8k|turns

"trl" is TRL's own `SFTTrainer._prepare_dataset`, called without the trainer around it, which would load a model:
question and answer as prompt and completion, longer conversations as messages with `assistant_only_loss`, and
`{% generation %}` marks put into the template, which that needs. Its maps are `datasets.map`, an example at a time.

"llama-factory" does what its documentation and its data configuration describe, written anew, because the package
cannot be installed beside the others: one map that turns rows into turns, and one with batches of 1,000
(`preprocessing_batch_size`) in which each turn's prompt and answer is encoded by a call of its own and cut to
`cutoff_len`.

Prints one line of JSON: rows, tokens and learned tokens, and seconds for reading the file, for the maps and for both.
Python, the libraries and the tokenizer are loaded before the clock starts.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MAX_TOKENS = 1024
IGNORED = -100
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def prepare_trl(dataset: Any, tokenizer: Any, processes: int | None, kind: str, place: str) -> Any:
    """TRL's preparation of a data set."""
    from trl import SFTConfig, SFTTrainer

    turns = kind == "turns"
    answer = "{{ message['content'] }}{{ '<|im_end|>' }}"
    template = (
        "{% for message in messages %}"
        "{% if loop.first and messages[0]['role'] != 'system' %}"
        f"{{{{ '<|im_start|>system\\n{SYSTEM}<|im_end|>\\n' }}}}{{% endif %}}"
        "{{ '<|im_start|>' + message['role'] + '\\n' }}"
        f"{{% if message['role'] == 'assistant' %}}{{% generation %}}{answer}{{% endgeneration %}}{{% else %}}{answer}"
        "{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    config = SFTConfig(
        output_dir=place,
        use_cpu=True,
        bf16=False,
        max_length=MAX_TOKENS,
        assistant_only_loss=turns,
        dataset_num_proc=processes,
    )
    asked = SimpleNamespace(
        _tokenizer=tokenizer, chat_template=template if turns else None, completion_only_loss=not turns
    )
    return SFTTrainer._prepare_dataset(asked, dataset, tokenizer, config, False, None, "train")


def to_trl(row: dict[str, Any], kind: str) -> dict[str, Any]:
    """A row as TRL's documentation wants it."""
    if kind == "turns":
        return {"messages": row["messages"]}
    return {
        "prompt": [{"role": "user", "content": row["question"]}],
        "completion": [{"role": "assistant", "content": row["answer"]}],
    }


def align(row: dict[str, Any], kind: str) -> dict[str, Any]:
    """Rows to turns: LLaMA-Factory's first map."""
    if kind == "turns":
        return {"turns": row["messages"]}
    return {"turns": [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]}


def encode_batch(batch: dict[str, list[Any]], tokenizer: Any) -> dict[str, list[Any]]:
    """Turns to tokens and labels: its second map. A turn's frame and its content are encoded together."""
    made: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for turns in batch["turns"]:
        tokens: list[int] = []
        labels: list[int] = []
        head = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
        for asked, answered in zip(turns[::2], turns[1::2], strict=True):
            frame = f"{head}<|im_start|>user\n{asked['content']}<|im_end|>\n<|im_start|>assistant\n"
            prompt = tokenizer.encode(frame, add_special_tokens=False)
            answer = tokenizer.encode(f"{answered['content']}<|im_end|>\n", add_special_tokens=False)
            room = MAX_TOKENS - len(tokens)
            if room <= 0:
                break
            prompt, answer = prompt[:room], answer[: max(room - len(prompt), 0)]
            tokens += prompt + answer
            labels += [IGNORED] * len(prompt) + answer
            head = ""
        made["input_ids"].append(tokens)
        made["attention_mask"].append([1] * len(tokens))
        made["labels"].append(labels)
    return made


def main() -> None:
    """Prepares the file and prints the figures."""
    file, model, cache, side, processes, kind = sys.argv[1:]
    os.environ["HF_DATASETS_CACHE"] = cache
    os.environ["HF_HUB_OFFLINE"] = "1"
    from datasets import load_dataset
    from datasets.utils.logging import disable_progress_bar
    from transformers import AutoTokenizer

    if side == "trl":
        import trl.trainer.sft_trainer  # noqa: F401 - loaded before the clock starts
    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model)
    count = None if processes == "none" else int(processes)
    began = time.perf_counter()
    dataset = load_dataset("json", data_files=file, split="train")
    read = time.perf_counter()
    columns = dataset.column_names
    if side == "trl":
        dataset = dataset.map(to_trl, fn_kwargs={"kind": kind}, remove_columns=columns, num_proc=count)
        dataset = prepare_trl(dataset, tokenizer, count, kind, str(Path(cache) / "out"))
    else:
        dataset = dataset.map(align, fn_kwargs={"kind": kind}, remove_columns=columns, num_proc=count)
        dataset = dataset.map(
            encode_batch,
            batched=True,
            batch_size=1000,
            fn_kwargs={"tokenizer": tokenizer},
            remove_columns=["turns"],
            num_proc=count,
        )
    done = time.perf_counter()
    tokens = sum(map(len, dataset["input_ids"]))
    learned = sum(label != IGNORED for labels in dataset["labels"] for label in labels)
    figures = {"rows": len(dataset), "tokens": tokens, "learned": learned}
    print(json.dumps({**figures, "read_s": read - began, "map_s": done - read, "seconds": done - began}))


if __name__ == "__main__":
    main()
