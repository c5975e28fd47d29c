"""Stock templates beside the texts that they must write, and what a model folder without a template gets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from strop.data.records import Conversation, Message, Place, ToolCall
from strop.data.stock_templates import STOCK, candidates
from strop.data.template import ChatTemplate
from strop.data.tokenizer import Tokenizer
from strop.errors import ModelError, TemplateError
from tiny_tokenizers import write_folder

SYSTEM = Message("system", "S")
ONE = (Message("user", "Q1"), Message("assistant", "A1"))
TWO = (*ONE, Message("user", "Q2"), Message("assistant", "A2"))

# name → (two turns, with a system prompt), (the last question, as it is asked, without one)
EXPECTED = {
    "internlm": (
        "<s><|System|>:S\n<|User|>:Q1\n<|Bot|>:A1<eoa>\n<|User|>:Q2\n<|Bot|>:A2<eoa>\n",
        "<s><|User|>:Q1\n<|Bot|>:A1<eoa>\n<|User|>:Q2\n<|Bot|>:",
    ),
    "internlm-eoh": (
        "<s><|System|>:S\n<|User|>:Q1<eoh>\n<|Bot|>:A1<eoa>\n<|User|>:Q2<eoh>\n<|Bot|>:A2<eoa>\n",
        "<s><|User|>:Q1<eoh>\n<|Bot|>:A1<eoa>\n<|User|>:Q2<eoh>\n<|Bot|>:",
    ),
    "internlm2": (
        "<s><|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
        "<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\nA2<|im_end|>\n",
        "<s><|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
        "<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n",
    ),
    "chatml": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
        "<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\nA2<|im_end|>\n",
        "<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
        "<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n",
    ),
    "qwen": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
        "<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\nA2<|im_end|>\n",
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n"
        "<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n",
    ),
    "baichuan": (
        "S<reserved_102>Q1<reserved_103>A1</s><reserved_102>Q2<reserved_103>A2</s>",
        "<reserved_102>Q1<reserved_103>A1</s><reserved_102>Q2<reserved_103>",
    ),
    "baichuan2": (
        "S<reserved_106>Q1<reserved_107>A1</s><reserved_106>Q2<reserved_107>A2</s>",
        "<reserved_106>Q1<reserved_107>A1</s><reserved_106>Q2<reserved_107>",
    ),
    "chatglm2": (
        "[gMASK]sopS\n\n[Round 1]\n\n问：Q1\n\n答：A1\n\n[Round 2]\n\n问：Q2\n\n答：A2</s>",
        "[gMASK]sop[Round 1]\n\n问：Q1\n\n答：A1\n\n[Round 2]\n\n问：Q2\n\n答：",
    ),
    "chatglm3": (
        "[gMASK]sop<|system|>\n S<|user|>\n Q1<|assistant|>\n A1<|user|>\n Q2<|assistant|>\n A2<|user|>",
        "[gMASK]sop<|user|>\n Q1<|assistant|>\n A1<|user|>\n Q2<|assistant|>\n",
    ),
    "glm4": (
        "[gMASK]<sop><|system|>\nS<|user|>\nQ1<|assistant|>\nA1<|user|>\nQ2<|assistant|>\nA2<|user|>",
        "[gMASK]<sop><|user|>\nQ1<|assistant|>\nA1<|user|>\nQ2<|assistant|>\n",
    ),
    "gemma": (
        "<bos><start_of_turn>user\nS\n\nQ1<end_of_turn>\n<start_of_turn>model\nA1<end_of_turn>\n"
        "<start_of_turn>user\nQ2<end_of_turn>\n<start_of_turn>model\nA2<end_of_turn>\n",
        "<bos><start_of_turn>user\nQ1<end_of_turn>\n<start_of_turn>model\nA1<end_of_turn>\n"
        "<start_of_turn>user\nQ2<end_of_turn>\n<start_of_turn>model\n",
    ),
    "phi": (
        "S\nInstruct: Q1\nOutput: A1<|endoftext|>\nInstruct: Q2\nOutput: A2<|endoftext|>\n",
        "Instruct: Q1\nOutput: A1<|endoftext|>\nInstruct: Q2\nOutput:",
    ),
    "phi3": (
        "<|system|>\nS<|end|>\n<|user|>\nQ1<|end|>\n<|assistant|>\nA1<|end|>\n<|user|>\nQ2<|end|>\n"
        "<|assistant|>\nA2<|end|>\n",
        "<|user|>\nQ1<|end|>\n<|assistant|>\nA1<|end|>\n<|user|>\nQ2<|end|>\n<|assistant|>\n",
    ),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nQ1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        "A1<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nQ2<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA2<|eot_id|>",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nQ1<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nQ2<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
}


def test_every_stock_template_has_its_text() -> None:
    assert set(EXPECTED) == set(STOCK)


@pytest.mark.parametrize("name", EXPECTED)
def test_texts(name: str) -> None:
    template = ChatTemplate(STOCK[name].source, {})
    whole, asked = EXPECTED[name]
    assert template.render((SYSTEM, *TWO), add_generation_prompt=False) == whole
    assert template.render(TWO[:3], add_generation_prompt=True) == asked
    for control in STOCK[name].control:
        assert control in whole + asked


@pytest.mark.parametrize("name", EXPECTED)
def test_tools_are_refused(name: str) -> None:
    template = ChatTemplate(STOCK[name].source, {}, "the stock template")
    assert not template.shows_tools
    assert not template.shows_calls
    called = (
        *ONE,
        Message("user", "Q"),
        Message("assistant", "A", calls=(ToolCall("f", "{}", None),)),
        Message("tool", "1"),
    )
    with pytest.raises(TemplateError, match="no place for a turn of the role tool"):
        template.render(called, add_generation_prompt=True)


@pytest.mark.parametrize("name", EXPECTED)
def test_answers_end_in_a_learned_stop_token_and_are_asked_as_they_are_learned(name: str, tmp_path: Path) -> None:
    tokenizer = folder_with(tmp_path, name)
    conversation = Conversation((SYSTEM, *TWO), Place("here"))
    segments = tokenizer.segmenter.conversation(conversation)
    text = "".join(segment.text for segment in segments)
    assert text == EXPECTED[name][0].rstrip("\n") or text == EXPECTED[name][0]
    learned = [segment.text for segment in segments if segment.learned]
    ends = STOCK[name].eos
    # ChatGLM 2 ends only its last answer; the others' earlier answers are learned as well.
    count = 1 if name == "chatglm2" else 2
    space = " " if name in ("phi", "chatglm3") else ""
    assert learned == [f"{space}{answer}{ends}" for answer in ("A1", "A2")[-count:]]
    asked = "".join(segment.text for segment in tokenizer.segmenter.prompt((SYSTEM, *TWO[:3])))
    assert text.startswith(asked)
    assert text[len(asked) :].startswith(learned[-1])


MODEL_TYPES = {
    "internlm-eoh": None,
    "internlm": {"model_type": "internlm"},
    "internlm2": {"model_type": "internlm3"},
    "chatml": {"model_type": "qwen3"},
    "qwen": {"model_type": "qwen"},
    "baichuan": {"model_type": "baichuan", "vocab_size": 64000},
    "baichuan2": {"model_type": "baichuan", "vocab_size": 125696},
    "chatglm2": {"model_type": "chatglm", "_name_or_path": "THUDM/chatglm2-6b"},
    "chatglm3": {"model_type": "chatglm", "_name_or_path": "THUDM/chatglm3-6b"},
    "glm4": {"model_type": "glm"},
    "gemma": {"model_type": "gemma3_text"},
    "phi": {"model_type": "phi"},
    "phi3": {"model_type": "phi3"},
    "llama3": {"model_type": "llama"},
}


def folder_with(folder: Path, name: str) -> Tokenizer:
    """A tokenizer folder whose only template is the stock one of that name, chosen by its config where one names it."""
    special = list(dict.fromkeys(["<unk>", "<s>", "</s>", *STOCK[name].control]))
    template = STOCK[name].source
    write_folder(folder, {"special": special, "template": template, "eos": "</s>"})
    config = MODEL_TYPES[name]
    if config is not None:
        (folder / "chat_template.jinja").unlink()
        (folder / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.template.source == template
    assert config is None or f"stock template {name}" in tokenizer.template.name
    return tokenizer


def test_the_folders_own_template_comes_first(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "chatml")
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    assert "chat_template.jinja" in Tokenizer.from_folder(folder).template.name


def test_without_its_control_tokens_no_stock_template_is_taken(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "phi3")
    (folder / "chat_template.jinja").unlink()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    assert [one.name for one in candidates({"model_type": "qwen3"})] == ["chatml"]
    with pytest.raises(ModelError, match="no stock template fits"):
        Tokenizer.from_folder(folder)
    shutil.rmtree(folder)
