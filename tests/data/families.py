"""Model families by their chat templates (`tests/data/templates`), with tiny tokenizers for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

STYLES: dict[str, dict[str, Any]] = {
    "qwen25": {"special": CHATML, "eos": "<|im_end|>"},
    "qwen3": {"special": CHATML, "eos": "<|im_end|>"},
    "deepseek_r1": {
        "special": ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"],
        "bos": "<｜begin▁of▁sentence｜>",
        "eos": "<｜end▁of▁sentence｜>",
    },
    "llama31": {
        "special": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "bos": "<|begin_of_text|>",
        "eos": "<|eot_id|>",
    },
    "mistral": {
        "special": [
            *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
            *("[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        ],
        "bos": "<s>",
        "eos": "</s>",
    },
    "gemma": {
        "special": ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
        "bos": "<bos>",
        "eos": "<eos>",
    },
    "phi3": {
        "special": ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
        "eos": "<|endoftext|>",
    },
    "internlm2": {"special": ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"], "bos": "<s>", "eos": "</s>"},
    "zephyr": {"special": ["<unk>", "<s>", "</s>"], "bos": "<s>", "eos": "</s>"},
}


def style(family: str) -> dict[str, Any]:
    """What `tiny_tokenizers.write_folder` makes a model folder of."""
    return {**STYLES[family], "template": (TEMPLATES / f"{family}.jinja").read_text(encoding="utf-8")}
