"""Model folders with tiny tokenizers, trained on the spot, and chat templates in the styles that models use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

CHATML = """\
{%- if messages[0]['role'] != 'system' -%}
    {{- '<|im_start|>system\\nBe kind.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{- message.content | trim + '<|eot_id|>' }}{%- endgeneration %}
    {%- else %}
        {{- message.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

LLAMA2 = """\
{%- if messages[0].role == 'system' -%}
    {%- set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' -%}
    {%- set messages = messages[1:] -%}
{%- else -%}
    {%- set system = '' -%}
{%- endif -%}
{%- for message in messages -%}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('roles must alternate') -}}
    {%- endif -%}
    {%- if message.role == 'user' -%}
        {{- bos_token + '[INST] ' + (system if loop.first else '') + message.content + ' [/INST]' -}}
    {%- else -%}
        {{- ' ' + message.content + ' ' + eos_token -}}
    {%- endif -%}
{%- endfor -%}
"""

PHI3 = """\
{%- for message in messages -%}
    {{- '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
"""

_TEXT = [
    "How many apples are left? Natalia sold 48/2 = 24 clips in May. The answer is 72.",
    "system user assistant Be kind.\n\nStep 1: x + 2 = 7, so x = 5.\nStep 2: done.\n#### 5 it's a  test",
    "Größe, naïve, 日本語, émigré 🙂 [INST] [/INST] <<SYS>> <</SYS>>",
] * 4

KINDS: dict[str, dict[str, Any]] = {
    "chatml": {"template": CHATML, "special": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "eos": "<|im_end|>"},
    "llama3": {
        "template": LLAMA3,
        "special": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "bos": "<|begin_of_text|>",
        # The eos_token of many such folders is not the token that ends a turn.
        "eos": "<|end_of_text|>",
    },
    "llama2": {"template": LLAMA2, "special": ["<unk>", "<s>", "</s>"], "bos": "<s>", "eos": "</s>", "metaspace": True},
    "phi3": {
        "template": PHI3,
        "special": ["<|endoftext|>", *("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")],
        "eos": "<|endoftext|>",
        "strips": True,
    },
}
"""Styles of models: a template, its control tokens, and how its tokenizer treats spaces."""


def write_folder(folder: Path, kind: str | dict[str, Any], *, template: str | None = None, **config: Any) -> Path:
    """Write the tokenizer files of a kind, or of a style of one's own; ``config`` goes into tokenizer_config.json."""
    style = KINDS[kind] if isinstance(kind, str) else kind
    folder.mkdir(parents=True, exist_ok=True)
    _train(style).save(str(folder / "tokenizer.json"))
    named = {f"{name}_token": style[name] for name in ("bos", "eos") if name in style}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **named, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template or style["template"], encoding="utf-8")
    return folder


def _train(style: dict[str, Any]) -> tokenizers.Tokenizer:
    special = [AddedToken(text, special=True, rstrip=style.get("strips", False)) for text in style["special"]]
    if style.get("metaspace"):
        tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(spaces)
        alphabet = []
    else:
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False, max_token_length=8
    )
    # Words one by one: a Metaspace tokenizer would otherwise learn whole sentences.
    words = [word for text in _TEXT for word in text.split(" ")]
    tokenizer.train_from_iterator(words, trainer)
    if style.get("metaspace"):
        return _with_bytes(tokenizer)
    return tokenizer


def _with_bytes(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Put the 256 byte tokens of byte fallback into the vocabulary, as ordinary tokens."""
    written = json.loads(tokenizer.to_str())
    vocabulary = written["model"]["vocab"]
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    return tokenizers.Tokenizer.from_str(json.dumps(written))
