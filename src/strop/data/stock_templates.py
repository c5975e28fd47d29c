"""Chat templates for model folders that have none: older repositories keep theirs in code, base models nowhere.

    template       written by                                       an answer ends in
    internlm       InternLM 1's repository since January 2024       <eoa>
    internlm-eoh   the same before that: questions end in <eoh>     <eoa>
    internlm2      InternLM 2, 2.5 and 3: ChatML behind <s>         <|im_end|>
    qwen           Qwen 1 to 2.5: ChatML with a system turn always  <|im_end|>
    chatml         ChatML and nothing else                          <|im_end|>
    baichuan, baichuan2   reserved tokens for the two roles         </s>
    chatglm2       "[Round 1]", 问, 答                              </s>
    chatglm3, glm4 role tokens                                      <|user|>, which opens the next turn
    gemma, phi, phi3, llama3   as the models' cards say             <end_of_turn>, <|endoftext|>, <|end|>, <|eot_id|>

A folder's own template is always taken first. A stock template is taken only where the tokenizer has all of its
control tokens, so that what ends an answer is one token, and learned. None of them has a place for tools: rows with
tools are refused. ``strop models --template NAME`` prints one, to be put into a folder as chat_template.jinja.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent / "templates"
_CHATML = ("<|im_start|>", "<|im_end|>")


@dataclass(frozen=True, slots=True)
class StockTemplate:
    """A chat template of Strop's own.

    Attributes:
        name: its name.
        control: the control tokens that a tokenizer must have for it.
        eos: the token that ends an answer.
    """

    name: str
    control: tuple[str, ...]
    eos: str

    @property
    def source(self) -> str:
        """The Jinja source."""
        return (_FOLDER / f"{self.name}.jinja").read_text(encoding="utf-8")


STOCK = {
    template.name: template
    for template in (
        StockTemplate("internlm", ("<s>", "<eoa>"), "<eoa>"),
        StockTemplate("internlm-eoh", ("<s>", "<eoh>", "<eoa>"), "<eoa>"),
        StockTemplate("internlm2", ("<s>", *_CHATML), "<|im_end|>"),
        StockTemplate("qwen", _CHATML, "<|im_end|>"),
        StockTemplate("chatml", _CHATML, "<|im_end|>"),
        StockTemplate("baichuan", ("<reserved_102>", "<reserved_103>", "</s>"), "</s>"),
        StockTemplate("baichuan2", ("<reserved_106>", "<reserved_107>", "</s>"), "</s>"),
        StockTemplate("chatglm2", ("[gMASK]", "sop", "</s>"), "</s>"),
        StockTemplate("chatglm3", ("[gMASK]", "sop", "<|system|>", "<|user|>", "<|assistant|>"), "<|user|>"),
        StockTemplate("glm4", ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"), "<|user|>"),
        StockTemplate("gemma", ("<bos>", "<start_of_turn>", "<end_of_turn>"), "<end_of_turn>"),
        StockTemplate("phi", ("<|endoftext|>",), "<|endoftext|>"),
        StockTemplate("phi3", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), "<|end|>"),
        StockTemplate(
            "llama3", ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>"
        ),
    )
}
"""Every stock template, by its name."""

_BY_MODEL_TYPE: dict[str, tuple[str, ...]] = {
    "internlm": ("internlm",),
    "internlm2": ("internlm2",),
    "internlm3": ("internlm2",),
    "qwen": ("qwen",),
    "qwen2": ("qwen",),
    "qwen3": ("chatml",),
    "qwen3_moe": ("chatml",),
    "baichuan": ("baichuan2", "baichuan"),
    "chatglm": ("glm4", "chatglm3"),
    "glm": ("glm4",),
    "glm4": ("glm4",),
    "gemma": ("gemma",),
    "gemma2": ("gemma",),
    "gemma3_text": ("gemma",),
    "gemma3": ("gemma",),
    "phi": ("phi",),
    "phi3": ("phi3",),
    "llama": ("llama3", "chatml"),
    "mistral": ("chatml",),
    "mixtral": ("chatml",),
}
_BAICHUAN_2 = 125696


def candidates(config: Mapping[str, Any]) -> list[StockTemplate]:
    """The stock templates that fit a model's config.json, the likeliest first.

    ChatGLM 2 and Baichuan 1 share model_type and tokens with their successors; the path that their config was saved
    from and the size of their vocabulary tell them apart.
    """
    kind = str(config.get("model_type"))
    names = _BY_MODEL_TYPE.get(kind, ())
    if kind == "chatglm" and "chatglm2" in str(config.get("_name_or_path", "")).lower():
        names = ("chatglm2",)
    if kind == "baichuan":
        names = ("baichuan2",) if config.get("vocab_size") == _BAICHUAN_2 else ("baichuan",)
    return [STOCK[name] for name in names]


def stock_template(config: Mapping[str, Any], token_to_id: Callable[[str], int | None]) -> StockTemplate | None:
    """The stock template for a model whose folder has none.

    Args:
        config: its config.json.
        token_to_id: looks a token up in its tokenizer.

    Returns:
        The first that fits the config and of which the tokenizer has all control tokens; None if there is none.
    """
    return next(
        (one for one in candidates(config) if all(token_to_id(token) is not None for token in one.control)), None
    )
